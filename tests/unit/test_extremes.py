"""Extremes of every number in a configuration: refused by name, or trained with; never a traceback, a hang or nan."""

import json
import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import tiny
from pydantic import TypeAdapter, ValidationError

from twinpass.cli.main import main
from twinpass.config.load import load_config
from twinpass.config.schema import SECTIONS
from twinpass.errors import ConfigError
from twinpass.schedule.epsilon import CosineEpsilon, Known

Sections = dict[str, dict[str, Any]]

ACTIVATED: Sections = {"trainable": tiny.ACTIVATED}
INFORMED: Sections = {
    "trainable": tiny.INFORMED,
    "estimator": {"kind": "gauss_newton", "probes": 2},
}
BACKPROP: Sections = {**ACTIVATED, "estimator": {"kind": "backprop"}, "optimizer": {"kind": "adamw", "lr": 1e-2}}
MOVED: Sections = {
    "trainable": {"kind": "projections"},
    "estimator": {"kind": "feedback"},
    "optimizer": {"kind": "relative", "lr": 1e-2, "steps": 2, "batch_size": 2},
}
LINE: Sections = {"estimator": {"kind": "line", "probes": 1}}
NORMALISED: Sections = {"optimizer": {"kind": "normalised", "steps": 2, "batch_size": 2}}
SHOTS: Sections = {"trainable": {"kind": "full"}, "task": {"shots": 2}}
REFLECTED: Sections = {**SHOTS, "reuse": {"policy": "reflected", "tolerance": 10.0}}
TRANSPORTED: Sections = {**SHOTS, "reuse": {"policy": "transported"}, "estimator": {"probes": 1}}
ADAPTIVE: Sections = {"epsilon": {"kind": "adaptive", "start": 1e-3}}
COSINE: Sections = {"epsilon": {"kind": "cosine", "start": 1e-3, "end": 1e-4, "steps": 5}}
LAYERS: Sections = {"trainable": {"kind": "layers", "first": 0, "last": 2, "block": 1, "every": 2}}
SERVER: Sections = {"engine": {"kind": "sglang", "url": "http://127.0.0.1:1"}}
FROZEN: Sections = {**SHOTS, "reuse": {"policy": "frozen"}}
DEBIASED: Sections = {**SHOTS, "reuse": {"policy": "debiased", "inner": {"policy": "frozen"}}}
ROWS = {"train": "train.jsonl", "prompt": "Review: {text}"}
SPLIT: Sections = {"task": {**ROWS, "kind": "choice", "options": [" bad", " good"], "train_rows": 6}}
REWARD: Sections = {
    "task": {**ROWS, "kind": "reward", "rewards": ["rewards.py:short", "rewards.py:short"], "train_rows": 6},
    "generation": {"max_tokens": 2},
    "estimator": {"kind": "spsa"},
}
HUGE, TINY, MANY, MOST = 1e308, 1e-320, 10**12, 2**63 - 1


def written(folder: Path, sections: Sections, **more: dict[str, Any]) -> Path:
    (folder / "rewards.py").write_text(
        "def short(completions, **_):\n    return [-float(len(c)) for c in completions]\n"
    )
    return tiny.config(folder, **{key: {**sections.get(key, {}), **more.get(key, {})} for key in sections | more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("extremes")


REFUSED: list[tuple[Sections, str, Any]] = [
    ({}, "optimizer.batch_size", MANY),
    ({}, "estimator.probes", MANY),
    ({}, "trainable.rank", 10**8),
    ({}, "trainable.alpha", HUGE),
    ({}, "task.train_rows", 10**25),
    ({}, "task.shots", 2**63),
    ({}, "optimizer.steps", 10**13),
    ({}, "optimizer.warmup", 2**63),
    ({}, "optimizer.guard_lr", HUGE),
    ({}, "optimizer.guard_lr", 1.5),
    ({}, "epsilon.value", HUGE),
    ({}, "run.seed", -1),
    ({}, "run.seed", 2**64),
    ({}, "reuse.budget", "1000TiB"),
    ({}, "reuse.page_size", 0),
    ({}, "engine.chunk_rows", 10**13),
    (COSINE, "epsilon.start", HUGE),
    (COSINE, "epsilon.end", HUGE),
    (COSINE, "epsilon.steps", 0),
    (ADAPTIVE, "epsilon.highest", HUGE),
    (INFORMED, "estimator.damping", TINY),
    (INFORMED, "estimator.damping", HUGE),
    (BACKPROP, "optimizer.lr", HUGE),
    (BACKPROP, "optimizer.beta1", 1.0),
    (BACKPROP, "optimizer.beta2", 1.0),
    (MOVED, "optimizer.lr", 1.5),
    (MOVED, "optimizer.damping", TINY),
    (LINE, "estimator.trust", HUGE),
    (NORMALISED, "optimizer.beta", 1.0),
    (SERVER, "engine.timeout", HUGE),
    (LAYERS, "trainable.first", MOST),
    ({}, "optimizer.lr", math.inf),
    ({}, "optimizer.lr", math.nan),
    ({}, "optimizer.lr", 0.0),
    ({}, "trainable.targets", []),
    ({}, "optimizer.clip_window", 10**30),
    ({}, "task.eval_rows", 10**13),
    (SPLIT, "task.eval_fraction", 1.0),
    (REWARD, "task.samples", MANY),
    (REWARD, "task.steps_per_generation", MANY),
    (REWARD, "task.beta", HUGE),
    (REWARD, "task.workers", MANY),
    (REWARD, "task.reward_timeout", HUGE),
    (REWARD, "generation.max_tokens", MANY),
    (REWARD, "generation.temperature", HUGE),
    (REWARD, "generation.temperature", TINY),
    (REWARD, "generation.top_p", 0.0),
    (ADAPTIVE, "epsilon.target", 1.0),
    (DEBIASED, "reuse.probability", 0.0),
]


@pytest.mark.parametrize(("sections", "key", "value"), REFUSED)
def test_what_no_run_could_use_is_refused_by_name(folder: Path, sections: Sections, key: str, value: Any) -> None:
    section, name = key.split(".")
    config = written(folder, sections, **{section: {name: value}})
    with pytest.raises(ConfigError, match=rf"\[{section}\] {name}:"):
        load_config(config)


@pytest.mark.parametrize("text", ["x = " + "9" * 5000, "x = " + "[" * 3000 + "]" * 3000])
def test_toml_that_its_reader_cannot_take_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "config.toml")


TRAINED: list[tuple[Sections, str, Any]] = [
    ({}, "reuse.budget", 1),
    (MOVED, "optimizer.damping", 1e6),
    (MOVED, "optimizer.damping", 1e-6),
    (MOVED, "optimizer.lr", 1.0),
    (MOVED, "trainable.layers", MANY),
    ({}, "trainable.alpha", 1e6),
    ({}, "trainable.alpha", 1e-300),
    ({}, "trainable.rank", 2**14),
    ({}, "task.window", MANY),
    ({}, "reuse.page_size", MANY),
    ({}, "engine.chunk_rows", MANY),
    ({}, "engine.chunk_rows", 1),
    ({}, "optimizer.lr", HUGE),
    ({}, "optimizer.lr", TINY),
    ({}, "optimizer.warmup", MOST),
    ({}, "optimizer.guard_loss", HUGE),
    ({}, "optimizer.guard_window", MANY),
    ({}, "optimizer.guard_rollbacks", MOST),
    ({}, "optimizer.clip", HUGE),
    ({}, "optimizer.clip_window", MANY),
    ({}, "epsilon.value", 1e6),
    ({}, "epsilon.value", TINY),
    ({}, "run.seed", MOST),
    ({}, "run.eval_every", MOST),
    ({}, "run.max_seconds", HUGE),
    ({}, "run.max_seconds", TINY),
    (LINE, "estimator.trust", 1e6),
    (NORMALISED, "optimizer.beta", 1 - 2**-53),
    (INFORMED, "trainable.layers", MANY),
    (INFORMED, "trainable.fit_rows", MANY),
    (INFORMED, "trainable.ridge", HUGE),
    (INFORMED, "trainable.ridge", TINY),
    (INFORMED, "estimator.damping", 1e-12),
    (INFORMED, "estimator.damping", 1e12),
    (BACKPROP, "optimizer.lr", 1e6),
    (BACKPROP, "optimizer.eps", HUGE),
    (BACKPROP, "optimizer.eps", TINY),
    (BACKPROP, "optimizer.decay", HUGE),
    (BACKPROP, "optimizer.max_norm", HUGE),
    (BACKPROP, "optimizer.max_norm", TINY),
    (BACKPROP, "optimizer.snapshot_every", MANY),
    (REFLECTED, "reuse.tolerance", HUGE),
    (REFLECTED, "reuse.tolerance", TINY),
    (TRANSPORTED, "reuse.refresh", MANY),
    (ADAPTIVE, "epsilon.highest", 1e6),
    (ADAPTIVE, "epsilon.lowest", TINY),
    (ADAPTIVE, "epsilon.every", MANY),
    (COSINE, "epsilon.end", 1e6),
    (COSINE, "epsilon.end", TINY),
    (COSINE, "epsilon.steps", MANY),
    (LAYERS, "trainable.every", MANY),
    (LAYERS, "trainable.block", MOST),
    (LAYERS, "trainable.last", MANY),
    ({}, "task.train_rows", MANY),
    ({}, "task.shots", MOST),
    ({}, "task.window", 1),
    ({}, "task.eval_rows", MANY),
    (SPLIT, "task.eval_fraction", 1 - 2**-53),
    (SPLIT, "task.eval_fraction", TINY),
    (SPLIT, "task.eval_fraction", 0.0),
    (REWARD, "task.weights", [HUGE, HUGE]),
    (REWARD, "task.reward_timeout", TINY),
    (REWARD, "generation.temperature", 1e3),
    (REWARD, "generation.top_p", TINY),
    (REWARD, "generation.top_k", MOST),
    ({}, "optimizer.guard_metric", HUGE),
    ({}, "run.patience", MOST),
    (ADAPTIVE, "epsilon.target", TINY),
    (REFLECTED, "reuse.check", TINY),
    (FROZEN, "reuse.check", TINY),
    (DEBIASED, "reuse.probability", TINY),
]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:reuse.policy = 'frozen'")
@pytest.mark.parametrize(("sections", "key", "value"), TRAINED, ids=[f"{k}={v}" for _, k, v in TRAINED])
def test_what_is_let_through_trains_or_ends_in_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sections: Sections, key: str, value: Any
) -> None:
    config = written(tmp_path, sections, optimizer={"steps": 2, "batch_size": 4})
    code = main(["train", str(config), "--json", "--set", f"{key}={value}"])
    said = capsys.readouterr().err
    assert code in (0, 1, 2, 3)
    assert ("error: " in said) == (code in (1, 2))
    summary = tmp_path / "run/summary.json"
    if code in (0, 3):
        json.loads(summary.read_text(), parse_constant=lambda word: pytest.fail(f"{word} in the summary"))


def accepts(hint: Any, value: float) -> bool:
    try:
        TypeAdapter(hint).validate_python(value)
    except ValidationError:
        return False
    return True


def numbers() -> Iterator[tuple[str, Any]]:
    """Every key that takes numbers, and how it is declared."""
    for name, section in SECTIONS.items():
        for kind in section.kinds.values():
            hints = get_type_hints(kind, include_extras=True)
            for field in fields(kind):
                hint = hints[field.name]
                if hint is not bool and any(accepts(hint, value) for value in (0.5, 2, 64)):
                    yield f"{name}.{field.name}", hint


def test_every_number_has_ends_and_is_tried_at_one() -> None:
    tried = {key for _, key, _ in REFUSED + TRAINED}
    found = dict(numbers())
    assert len(found) > 50
    for key, hint in found.items():
        assert not any(accepts(hint, value) for value in (math.inf, -math.inf, math.nan, -HUGE, -(10**30))), key
        whole = not accepts(hint, 0.5) and not accepts(hint, 2.5)
        assert not (whole and accepts(hint, 10**30)), key
    assert not found.keys() - tried


@pytest.mark.parametrize(("start", "end"), [(1e-12, 1e6), (1e6, 1e-12), (1e-3, 1e-3)])
def test_a_cosine_of_eps_stays_between_its_ends(start: float, end: float) -> None:
    schedule = CosineEpsilon(start, end, 7)
    found = [schedule.at(step, Known()) for step in range(9)]
    assert (found[0], found[7], found[8]) == (start, end, end)
    assert all(min(start, end) <= eps <= max(start, end) for eps in found)
