"""An engine that is closed gives the memory of keys and values back."""

import gc
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
import tiny
import torch

from twinpass import finetune
from twinpass.config.compose import build
from twinpass.config.load import load_config
from twinpass.core import BASE, Request
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.trainable import Activated

REQUESTS = [Request((3, 4, 5, 6, 7), (8,), 3), Request((3, 4, 9, 6, 7), (8,), 3)]


def test_keys_and_values_are_given_back_and_made_again_when_they_are_asked_for() -> None:
    engine = TorchEngine(tiny.model(), Activated(rank=2))
    before = engine.score(REQUESTS, [BASE])
    assert engine._scorer is not None
    pool = engine._scorer.passes.pool
    assert pool.nbytes > 0
    assert before.cache.held > 0
    engine.close()
    assert pool.nbytes == 0
    after = engine.score(REQUESTS, [BASE])
    assert after.work.computed == before.work.computed
    assert all(np.array_equal(a, b) for a, b in zip(before.values[0], after.values[0], strict=True))


def test_an_engine_that_was_composed_is_open_until_it_is_closed(tmp_path: Path) -> None:
    """It holds weights in oneDNN's blocks, which a closed one has made plain again, and a closed server is gone."""
    engine = build(load_config(tiny.config(tmp_path))).engine
    assert isinstance(engine, TorchEngine)

    def blocked() -> int:
        return sum(weight.layout is not torch.strided for weight in engine.model.parameters())

    assert blocked()
    engine.score(REQUESTS, [BASE])
    engine.close()
    assert not blocked()


def test_a_run_from_python_keeps_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of a notebook are run again and again."""
    made: list[TorchEngine] = []
    held: list[int] = []
    begin = TorchEngine.__init__

    def init(self: TorchEngine, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        made.append(self)

    end = TorchEngine.close

    def close(self: TorchEngine) -> None:
        assert self._scorer is not None
        held.append(self._scorer.passes.pool.nbytes)
        end(self)

    monkeypatch.setattr(TorchEngine, "__init__", init)
    monkeypatch.setattr(TorchEngine, "close", close)
    rows: Any = tiny.rows(6)
    options: Any = {"prompt": "Review: {text}\n", "suffix": "Sentiment:", "options": [" bad", " good"]}
    finetune(tiny.model(), tiny.tokenizer(), rows, rows, out=tmp_path / "run", max_seconds=1e-3, **options)
    (engine,) = made
    assert engine._scorer is not None
    assert held[0] > 0
    assert engine._scorer.passes.pool.nbytes == 0


def test_a_graph_that_was_measured_is_let_go() -> None:
    """It holds weights of the model: whoever trains again and again would run out of memory."""
    engine = TorchEngine(tiny.model(), Activated(rank=2))
    weight = ref(engine.model.get_submodule("model.layers.0.mlp.up_proj").get_parameter("weight"))
    assert engine.graph_bytes(REQUESTS) > 0
    engine.close()
    assert weight() is not None
    del engine
    gc.collect()
    assert weight() is None
