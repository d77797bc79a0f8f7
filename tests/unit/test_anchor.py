"""Held to the model as it was: by the divergence's own formula, and in runs that resume and replay to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from architectures import build
from quotients import slopes_of
from safetensors.numpy import load_file

import twinpass
from twinpass.cli.main import main
from twinpass.config.load import load_config
from twinpass.core import BASE, Score
from twinpass.engine.base import AdamStep
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import ConfigError, ModelError
from twinpass.model.trainable import Lora
from twinpass.objective.anchor import TOKENS, anchored
from twinpass.objective.base import Objective
from twinpass.objective.choice import Choice
from twinpass.objective.completion import Completion
from twinpass.task.example import Anchor, Example
from twinpass.train.journal import read

HELD = Anchor((1, 2), 1, (7, 8), (-1.0, -2.0))
EXAMPLES = [Example((1, 2), ((3,), (4, 5)), 1, 1, anchor=HELD), Example((6,), ((7,), (8,)), 0, 0)]


def scores(objective: Objective, seed: int = 0) -> list[Score]:
    """Random ones, in the shapes of the requests; the text's gained 0.5 and lost 1 nat."""
    draw = np.random.default_rng(seed)
    found = [-draw.random(len(request.completion)) for request in objective.requests(EXAMPLES)]
    found[-1] = np.array([-0.5, -3.0])
    return found


@pytest.mark.parametrize("objective", [Choice(), Choice(score="mean", over="vocabulary"), Completion()], ids=repr)
def test_its_loss_and_derivatives_are_added(objective: Objective) -> None:
    known = scores(objective)
    bare = [Example(one.prompt, one.options, one.label, one.suffix_start) for one in EXAMPLES]
    extra = (np.exp(0.5) - 0.5 - 1 + np.exp(-1) + 1 - 1) / 2
    assert objective.loss(EXAMPLES, known) == pytest.approx(objective.loss(bare, known[:-1]) + extra)
    assert objective.metric(EXAMPLES, known) == objective.metric(bare, known[:-1])
    slopes_of(objective, EXAMPLES, known)
    tangents = [scores(objective, seed) for seed in (1, 2)]
    more = objective.curvature(EXAMPLES, known, tangents) - objective.curvature(
        bare, known[:-1], [own[:-1] for own in tangents]
    )
    weights = np.exp([0.5, -1.0]) / 2
    expected = [[(a[-1] * weights * b[-1]).sum() for b in tangents] for a in tangents]
    np.testing.assert_allclose(more, expected, rtol=1e-9)


def test_texts_are_the_models_own_and_cost_nothing_before_training() -> None:
    engine = TorchEngine(build("llama"), Lora(4, 8.0))
    rows = [Example((5, 6, i), ((3,), (4,)), 0, 2) for i in range(8, 18)]
    held = anchored(engine, rows, 3)
    assert held == anchored(engine, rows, 3) != anchored(engine, rows, 4)
    assert all(one.anchor is not None and len(one.anchor.tokens) == TOKENS for one in held)
    many = anchored(engine, rows * 80, 3)
    assert sum(one.anchor is not None for one in many) == 800 // 16
    with pytest.raises(ModelError, match="no prompt leaves 16 of the 64 tokens"):
        anchored(engine, [Example((5,) * 50, ((3,),), 0, 2)], 3)
    objective = Choice(regularise="kl")
    requests = objective.requests(held)

    def losses() -> tuple[float, float]:
        """Of the objective on what is held, and of answers alone."""
        answers = Choice()
        scored = [
            engine.score(own.requests(who), [BASE]).values[0] for own, who in ((objective, held), (answers, rows))
        ]
        return objective.loss(held, scored[0]), answers.loss(rows, scored[1])

    before, bare = losses()
    assert before == pytest.approx(bare, abs=1e-6)
    engine.descend(engine.gradient(requests, lambda found: objective.gradient(held, found)), AdamStep(1, 3e-2))
    after, bare = losses()
    assert after > bare + 1e-4


@pytest.mark.parametrize("kind", ["informed", "backprop", "spsa"])
def test_a_run_resumes_and_replays(tmp_path: Path, kind: str) -> None:
    known: dict[str, dict[str, Any]] = {
        "informed": {"trainable": tiny.INFORMED, "estimator": {"probes": 2}},
        "backprop": {"estimator": {"kind": "backprop"}, "optimizer": {"kind": "adamw", "snapshot_every": 2}},
        "spsa": {},
    }
    more = known[kind]
    optimizer = {"steps": 3, "batch_size": 4, **more.get("optimizer", {})}
    sections = {**more, "optimizer": optimizer, "objective": {"kind": "choice", "regularise": "kl"}}
    run = tmp_path / "run"
    path = tiny.config(tmp_path, run={"out": str(run), "seed": 3, "keep": "last"}, **sections)
    assert main(["train", str(path), "--json"]) in (0, 3)
    whole, lines = (run / "journal.jsonl").read_bytes(), len(read(run / "journal.jsonl").records)
    (run / "journal.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    assert main(["train", "--resume", str(run), "--json"]) in (0, 3)
    assert (run / "journal.jsonl").read_bytes() == whole
    assert lines > 3
    assert main(["replay", str(run), "--step", "3"]) == 0
    one, two = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, run / "step-3"))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_server_has_no_random_numbers_for_it(tmp_path: Path) -> None:
    path = tiny.config(tmp_path, objective={"kind": "choice", "regularise": "kl"}, engine={"kind": "sglang"})
    with pytest.raises(ConfigError, match="regularise: was not tried on"):
        load_config(path)


def test_from_python(tmp_path: Path) -> None:
    summary = twinpass.finetune(
        tiny.model(),
        tiny.tokenizer(),
        tiny.rows(12),
        prompt="{text}",
        suffix=" Sentiment:",
        options=(" bad", " good"),
        objective=Choice(regularise="kl"),
        optimizer=twinpass.Sgd(lr=1e-3, steps=2, batch_size=2),
        trainable=twinpass.Lora(rank=2),
        out=tmp_path / "run",
    )
    assert summary["steps"] == 2
