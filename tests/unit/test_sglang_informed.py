"""Fitted directions on SGLang, as far as that goes without one: what it is started with, and the engine beside it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiny

from twinpass.core import Lane, Request, Score, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.sglang import launch
from twinpass.engine.sglang.engine import SglangEngine
from twinpass.engine.sglang.examine import require_fitting_arguments
from twinpass.engine.sglang.server import Server, Variant
from twinpass.engine.sglang.variants import Variants
from twinpass.engine.subject import Subject
from twinpass.errors import EngineError, ModelError
from twinpass.estimate.directions import fit
from twinpass.model.causal import CausalModel
from twinpass.model.defaults import OUTPUTS
from twinpass.model.space import Space
from twinpass.model.trainable import Informed, Lora, Trainable
from twinpass.reuse.auto import Auto

INFORMED = Informed(layers=1, rank=3)
FITTING: dict[str, Any] = {
    "dtype": "float32",
    "enable_lora": True,
    "max_lora_rank": 64,
    "lora_target_modules": ["o_proj", "down_proj"],
    "max_loras_per_batch": 2,
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"enable_lora": False}, "--enable-lora --max-lora-rank 64 --lora-target-modules o_proj down_proj"),
        ({"max_lora_rank": 8}, r"--max-lora-rank 64 \(it has 8; or set \[trainable\] rank to that\)"),
        (
            {"lora_target_modules": ["q_proj", "o_proj"]},
            r"--lora-target-modules o_proj down_proj \(it has o_proj q_proj\)",
        ),
        ({"max_loras_per_batch": 1}, "--max-loras-per-batch 2"),
        ({"dtype": "bfloat16"}, "--dtype float32"),
        ({"speculative_algorithm": "EAGLE"}, "no --speculative-algorithm"),
    ],
)
def test_a_server_that_has_no_room_for_directions_is_refused(changes: dict[str, Any], says: str) -> None:
    require_fitting_arguments(FITTING, "float32", Informed(), OUTPUTS)
    with pytest.raises(EngineError, match=says):
        require_fitting_arguments(FITTING | changes, "float32", Informed(), OUTPUTS)


def started_with(
    trainable: Trainable, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "llama"
) -> dict[str, object]:
    """What SGLang is told of adapters."""
    told: dict[str, object] = {}

    def start(folder: str, arguments: Mapping[str, object]) -> None:
        told.update(arguments)
        raise EngineError("far enough")

    monkeypatch.setattr(launch, "InProcess", start)
    path = str(tiny.save(folder / "model", name))
    subject = Subject(tiny.model(name), tiny.tokenizer(), trainable, Auto(), path, "float32", lanes=4, invocation=(2,))
    with pytest.raises(EngineError, match="far enough"):
        launch.launch(subject, device="cpu", arguments={})
    return {name: told[name] for name in ("max_lora_rank", "lora_target_modules", "max_loras_per_batch")}


def test_it_is_started_with_room_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_with(INFORMED, tmp_path, monkeypatch) == {
        "max_lora_rank": 3,
        "lora_target_modules": ["o_proj", "down_proj"],
        "max_loras_per_batch": 6,
    }


@pytest.mark.parametrize(
    ("trainable", "name", "targets"),
    [
        (Lora(rank=2, targets="outputs"), "llama", ["o_proj", "down_proj"]),
        (Lora(rank=2), "gpt_neox", ["query_key_value", "dense"]),
        (INFORMED, "gpt_neox", ["dense", "dense_4h_to_h"]),
    ],
)
def test_it_is_started_for_the_modules_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainable: Trainable, name: str, targets: list[str]
) -> None:
    """However they are called there, and whatever stands for them."""
    assert started_with(trainable, tmp_path, monkeypatch, name)["lora_target_modules"] == targets


class Told(Variants):
    """Hears what it is to do."""

    trained, activated = 2, True

    def __init__(self) -> None:
        self.heard: list[object] = []

    def effective_eps(self, eps: float) -> float:
        return eps

    def groups(self, lanes: Sequence[Lane]) -> Iterator[list[Variant]]:
        return iter(())

    def use(self, space: Space) -> None:
        self.heard.append(space)

    def update(self, terms: Sequence[Term]) -> None:
        self.heard += terms

    def reset(self) -> None:
        self.heard.append("reset")

    def save(self, run: Path) -> Path:
        return run

    def close(self) -> None:
        return


REQUESTS = [Request((1, text, 2), (option,), 2) for text in (6, 7, 9) for option in (3, 4)]


def slopes(scores: Sequence[Score]) -> list[Score]:
    return [np.full(len(score), -1.0 if i % 2 else 0.5) for i, score in enumerate(scores)]


def engine(trainable: Trainable) -> TorchEngine:
    return TorchEngine(tiny.model(), trainable, invocation=(2,))


def test_the_engine_beside_sglang_goes_where_sglang_goes() -> None:
    embedded, variants = engine(INFORMED), Told()
    model = tiny.model()
    sglang = SglangEngine(CausalModel(model), embedded.base_hash, cast(Server, None), variants, beside=engine(INFORMED))
    digests = []
    for step in range(2):
        space = fit(sglang.observe(REQUESTS, slopes), sglang.outputs, rank=3)
        assert space.digest == fit(embedded.observe(REQUESTS, slopes), embedded.outputs, rank=3).digest
        digests.append(space.digest)
        for one in (embedded, sglang):
            one.use(space)
            one.update([Term(step, 0.5)])
        assert variants.heard[-2:] == [space, Term(step, 0.5)]
    assert digests[0] != digests[1]
    sglang.reset()
    assert variants.heard[-1] == "reset"
    assert sglang.outputs is None
    assert fit(sglang.observe(REQUESTS, slopes), None, rank=3).digest == digests[0]


def test_sglang_alone_does_not_tell() -> None:
    sglang = SglangEngine(CausalModel(tiny.model()), "", cast(Server, None), Told())
    assert sglang.outputs is None
    with pytest.raises(ModelError, match="does not tell what enters a module"):
        sglang.observe(REQUESTS, slopes)
    with pytest.raises(ModelError, match="takes no directions; use trainable"):
        Variants.use(Told(), cast(Space, None))
