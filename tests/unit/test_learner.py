"""What is trained, and how, where a configuration or a call does not say."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from twinpass import finetune
from twinpass.config.learner import (
    ANYWHERE,
    CHOOSING,
    CHOOSING_ANYWHERE,
    CHOOSING_AT_THE_END,
    CHOOSING_SERVED,
    NAMED,
    SERVED,
    SERVED_ANYWHERE,
    SPELT,
    UNSEEN,
    WEIGHTS,
    WRITING,
)
from twinpass.config.load import parse
from twinpass.config.schema import Config
from twinpass.errors import ConfigError
from twinpass.estimate.backprop import Backprop
from twinpass.estimate.feedback import Feedback
from twinpass.estimate.gauss_newton import GaussNewton
from twinpass.estimate.spsa import Spsa
from twinpass.model.defaults import ADAPTERS, CHOSEN, CHOSEN_ANYWHERE, EXACT, PROJECTIONS, WRITTEN, Defaults
from twinpass.model.projections import Projections
from twinpass.model.trainable import Activated, Full, Informed, Layers, Lora
from twinpass.task.sources.lines import read_standard_input
from twinpass.train.adamw import AdamW
from twinpass.train.optimizer import Sgd
from twinpass.train.relative import Relative

FOLDER = Path("/nowhere")
CHOICE = {"prompt": "Review: {text}\n", "suffix": "Sentiment:", "options": [" bad", " good"]}
TEXT = {"prompt": "Question: {q}\n", "suffix": "Answer:", "completion": " {a}"}
OPEN = {"prompt": "{q} ", "completion": "{a}"}
CHAT = {"kind": "chat"}
ALIKE = {**CHOICE, "prompt": "Review: {text}\nSentiment:", "suffix": ""}
ENDING_IN_A_FIELD = {**ALIKE, "prompt": "Sentiment of {text} "}


def short(completions: list[str], **rest: Any) -> list[float]:
    return [-float(len(text)) for text in completions]


def config(task: dict[str, Any], folder: Path = FOLDER, **sections: Any) -> Config:
    values = {"model": {"path": "m"}, "task": {"train": "rows.jsonl", **task}, "run": {"out": "run"}, **sections}
    return parse(values, "it.toml", folder)


@pytest.mark.parametrize(
    ("task", "trainable", "reason"),
    [
        (CHOICE, Activated, CHOOSING),
        (ALIKE, Informed, CHOOSING_AT_THE_END),
        (ENDING_IN_A_FIELD, Lora, CHOOSING_ANYWHERE),
        (TEXT, Activated, WRITING),
        (OPEN, Lora, ANYWHERE),
        (CHAT, Activated, WRITING),
    ],
)
def test_the_task_decides(task: dict[str, Any], trainable: type[Any], reason: Any) -> None:
    found = config(task)
    assert type(found.trainable) is trainable
    assert found.reason == reason.reason
    assert found.values["trainable"]["kind"] == reason.trainable
    if reason is CHOOSING_AT_THE_END:
        assert isinstance(found.estimator, GaussNewton)
        assert isinstance(found.optimizer, Sgd)
    else:
        assert isinstance(found.estimator, Backprop)
        batch_size, eval_every = {CHOOSING: (32, 8), CHOOSING_ANYWHERE: (16, 8)}.get(reason, (8, 10))
        assert found.optimizer == AdamW(lr=4e-3, steps=40, batch_size=batch_size)
        assert found.run.eval_every == eval_every


@pytest.mark.parametrize(
    ("row", "trainable"),
    [
        ({"text": "a", "label": 1}, Activated),
        ({"prompt": "a", "completion": "b"}, Lora),
        ({"instruction": "a", "output": "b"}, Activated),
        ({"messages": [{"role": "user", "content": "a"}]}, Activated),
        ({"unknown": 1}, Lora),
    ],
)
def test_where_the_task_does_not_say_the_first_row_does(tmp_path: Path, row: dict[str, Any], trainable: type) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert type(config({}, tmp_path).trainable) is trainable


def test_a_pattern_is_looked_at_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('not json\n{"text": "a", "label": 1}\n')
    assert type(config({"train": "*.jsonl"}, tmp_path).trainable) is Activated
    assert type(config({"train": "a.jsonl"}, tmp_path).trainable) is Activated


def test_a_suffix_with_fields_is_none_to_act_from() -> None:
    assert type(config({**TEXT, "suffix": "Q: {q}\nAnswer:"}).trainable) is Lora
    assert type(config({**CHOICE, "suffix": "About {text}"}).trainable) is Lora
    assert type(config({**CHOICE, "suffix": "About {text}\nSentiment:"}).trainable) is Informed


@pytest.mark.parametrize("train", ["gone.jsonl", "somebody/something"])
def test_rows_that_cannot_be_looked_at_yet_get_what_works_for_all(tmp_path: Path, train: str) -> None:
    found = config({"train": train}, tmp_path)
    assert type(found.trainable) is Lora
    assert found.reason == UNSEEN.reason


@pytest.mark.parametrize(
    ("piped", "trainable"),
    [
        ('\n{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n', Activated),
        ('not json\n{"instruction": "a", "output": "b"}', Activated),
        ("", Lora),
    ],
)
def test_what_is_piped_in_is_looked_at_like_a_file(
    monkeypatch: pytest.MonkeyPatch, piped: str, trainable: type
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped.encode())))
    for _ in range(2):
        assert type(config({"train": "-"}).trainable) is trainable
    lines = [line for line in piped.splitlines() if line]
    assert len(list(read_standard_input())) == len(lines)


@pytest.mark.parametrize(("task", "expected"), [(TEXT, SERVED), (OPEN, SERVED_ANYWHERE)])
def test_a_server_tells_scores_alone(task: dict[str, Any], expected: Any) -> None:
    found = config(task, engine={"kind": "sglang"})
    assert found.values["trainable"]["kind"] == expected.trainable
    assert isinstance(found.estimator, Spsa)
    assert found.optimizer == Sgd(lr=ADAPTERS.lr, steps=ADAPTERS.steps)


def test_options_are_learned_along_informed_directions_on_a_server() -> None:
    found = config(CHOICE, engine={"kind": "sglang"})
    assert (type(found.trainable), type(found.estimator), found.reason) == (
        Informed,
        GaussNewton,
        CHOOSING_SERVED.reason,
    )
    assert (found.optimizer.steps, found.run.eval_every) == (12, 1)


@pytest.mark.parametrize(
    "said", [{"estimator": {"kind": "spsa"}}, {"epsilon": {"value": 1e-2}}, {"optimizer": {"kind": "sign"}}]
)
def test_who_speaks_of_probes_to_a_server_gets_random_ones(said: dict[str, Any]) -> None:
    found = config(CHOICE, engine={"kind": "sglang"}, **said)
    assert (type(found.trainable), type(found.estimator)) == (Activated, Spsa)
    assert found.optimizer.steps == ADAPTERS.steps


def test_what_is_said_holds() -> None:
    random = config(TEXT, estimator={"kind": "spsa"})
    assert isinstance(random.trainable, Activated)
    assert random.optimizer == Sgd(lr=ADAPTERS.lr, steps=ADAPTERS.steps)
    layers = config(CHOICE, trainable={"kind": "layers", "first": 1, "last": 2}, estimator={"kind": "backprop"})
    assert layers.optimizer == AdamW()
    fed_back = config(CHOICE, trainable={"kind": "activated"}, estimator={"kind": "feedback"})
    assert fed_back.optimizer == AdamW()
    slower = config(TEXT, optimizer={"lr": 1e-4})
    assert slower.optimizer == AdamW(lr=1e-4, steps=40, batch_size=8)


@pytest.mark.parametrize("kind", ["lora", "activated"])
@pytest.mark.parametrize(
    ("task", "suited"),
    [(CHOICE, CHOSEN), (TEXT, EXACT), ({"rewards": [f"{__file__}:short"], "prompt": "{text}", "suffix": ":"}, WRITTEN)],
)
def test_adapters_that_are_named_learn_as_those_that_are_not(task: dict[str, Any], suited: Defaults, kind: str) -> None:
    found = config(task, trainable={"kind": kind, "rank": 2})
    if kind == "lora" and suited is CHOSEN:
        suited = CHOSEN_ANYWHERE
    assert (type(found.estimator), found.reason) == (Backprop, NAMED)
    assert found.optimizer == AdamW(lr=suited.lr, steps=suited.steps, batch_size=suited.batch_size)
    assert found.run.eval_every == suited.eval_every


@pytest.mark.parametrize(
    "said",
    [
        {"estimator": {"probes": 4}},
        {"epsilon": {"value": 1e-3}},
        {"optimizer": {"kind": "sgd"}},
        {"optimizer": {"kind": "sign"}},
        {"reuse": {"policy": "transported"}},
        {"objective": {"kind": "accuracy"}},
        {"engine": {"kind": "sglang"}},
        {"engine": {"noise": "gaussian"}},
        {"engine": {"perturbation": "inplace"}},
    ],
)
def test_who_speaks_of_probes_gets_them(said: dict[str, Any]) -> None:
    found = config(CHOICE, trainable={"kind": "lora"}, **said)
    assert (type(found.estimator), found.reason) == (Spsa, "")
    assert found.optimizer.steps == ADAPTERS.steps


@pytest.mark.parametrize("estimator", [{}, {"kind": "backprop"}])
def test_who_speaks_of_the_gradient_gets_it_as_by_default(estimator: dict[str, Any]) -> None:
    found = config(CHOICE, trainable={"kind": "lora"}, estimator=estimator, optimizer={"kind": "adamw", "lr": 1e-3})
    assert isinstance(found.estimator, Backprop)
    assert found.optimizer == AdamW(lr=1e-3, steps=CHOSEN_ANYWHERE.steps, batch_size=CHOSEN_ANYWHERE.batch_size)


@pytest.mark.parametrize("said", [{}, {"estimator": {"kind": "feedback"}}, {"optimizer": {"kind": "relative"}}])
@pytest.mark.parametrize("task", [CHOICE, TEXT, OPEN])
def test_the_models_own_weights_learn_by_feedback(task: dict[str, Any], said: dict[str, Any]) -> None:
    for kind in ("full", "projections"):
        found = config(task, trainable={"kind": kind}, **said)
        assert (found.trainable, found.estimator, found.reason) == (Projections(), Feedback(), WEIGHTS)
        assert found.optimizer == (Relative() if task is CHOICE else Relative(batch_size=8))
        assert found.optimizer.lr == PROJECTIONS.lr
        assert (found.run.eval_every, found.values["trainable"]["kind"]) == (PROJECTIONS.eval_every, kind)


@pytest.mark.parametrize(
    "said",
    [
        {"estimator": {"kind": "spsa"}},
        {"epsilon": {"value": 1e-3}},
        {"optimizer": {"kind": "sgd"}},
        {"reuse": {"policy": "transported"}},
        {"objective": {"kind": "accuracy"}},
        {"engine": {"kind": "sglang"}},
        {"engine": {"noise": "gaussian"}},
        {"engine": {"perturbation": "inplace"}},
        {"model": {"path": "m", "dtype": "bfloat16"}},
        {"task": {"train": "rows.jsonl", "rewards": [f"{__file__}:short"], "prompt": "{text}"}},
    ],
)
def test_all_weights_are_moved_along_random_directions_where_feedback_does_not_go(said: dict[str, Any]) -> None:
    values = {"model": {"path": "m"}, "task": {"train": "rows.jsonl", **CHOICE}, "run": {"out": "run"}, **said}
    found = parse({**values, "trainable": {"kind": "full"}}, "it.toml", FOLDER)
    assert (found.trainable, found.reason) == (Full(), "")
    assert isinstance(found.optimizer, Sgd)


def test_layers_have_no_feedback_and_named_ones_no_default() -> None:
    found = config(CHOICE, trainable={"kind": "layers", "first": 1, "last": 2})
    assert (type(found.trainable), type(found.estimator)) == (Layers, Spsa)


def test_an_objective_without_a_derivative_is_learned_along_random_directions() -> None:
    found = config(CHOICE, objective={"kind": "accuracy"})
    assert (type(found.trainable), type(found.estimator), found.reason) == (Activated, Spsa, SPELT)


def test_what_takes_no_gradient_is_learned_by_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinpass.config.engines.multiplies_tiles", lambda: True)
    found = config(CHOICE, estimator={"kind": "gauss_newton"})
    assert type(found.trainable) is Informed
    assert isinstance(found.optimizer, Sgd)


def test_products_in_bfloat16_change_no_learner_of_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinpass.config.engines.multiplies_tiles", lambda: True)
    for task in (CHOICE, TEXT, OPEN):
        low, own = config(task, engine={"compute_dtype": "bfloat16"}), config(task)
        assert (low.trainable, low.estimator, low.optimizer, low.reason) == (
            own.trainable,
            own.estimator,
            own.optimizer,
            own.reason,
        )


def test_own_weights_are_moved_by_probes_where_products_round_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinpass.config.engines.multiplies_tiles", lambda: True)
    low = config(CHOICE, engine={"compute_dtype": "bfloat16"}, trainable={"kind": "full"})
    assert (type(low.trainable), type(low.estimator)) == (Full, Spsa)


def test_python_has_the_same_defaults(tmp_path: Path) -> None:
    options: Any = {"prompt": "Review:", "suffix": " Sentiment:", "completion": " {text}"}
    summary = finetune(
        tiny.model(),
        tiny.tokenizer(),
        tiny.rows(8),
        tiny.rows(4),
        out=tmp_path / "run",
        end=False,
        max_seconds=1e-3,
        **options,
    )
    values = (tmp_path / "run" / "config.toml").read_text()
    assert summary["steps"] == 1
    assert 'kind = "Activated"' in values
    assert 'kind = "Backprop"' in values
    assert 'kind = "AdamW"' in values


def test_restated_noise_asks_for_nothing() -> None:
    found = config(CHOICE, trainable={"kind": "lora"}, engine={"noise": "binomial", "perturbation": "tandem"})
    assert isinstance(found.estimator, Backprop)


def test_python_has_probes_where_their_noise_is_said(tmp_path: Path) -> None:
    options: Any = {"prompt": "Review: {text}", "options": [" bad", " good"], "max_seconds": 1e-3}
    finetune(tiny.model(), tiny.tokenizer(), tiny.rows(8), out=tmp_path / "run", noise="rademacher", **options)
    assert 'kind = "Spsa"' in (tmp_path / "run" / "config.toml").read_text()


def test_who_asks_a_server_for_the_gradient_is_told_of_no_weights_that_nobody_named() -> None:
    with pytest.raises(ConfigError) as raised:
        config(CHOICE, engine={"kind": "sglang"}, estimator={"kind": "backprop"})
    assert "informed" not in str(raised.value)
    assert "sglang" in str(raised.value)


@pytest.mark.parametrize(("dtype", "moved"), [("float32", True), ("float16", False)])
def test_weights_of_low_precision_are_not_moved_by_feedback(
    dtype: str, moved: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    model, tokenizer = tiny.model().to(getattr(torch, dtype)), tiny.tokenizer()
    rows = [{"text": word, "label": i % 2} for i, word in enumerate(["good", "bad", "fine", "dull"])]
    settings: dict[str, Any] = {"prompt": CHOICE["prompt"], "suffix": CHOICE["suffix"], "options": CHOICE["options"]}
    if not moved:
        with pytest.raises(ConfigError, match="float16"):
            finetune(
                model,
                tokenizer,
                rows,
                rows,
                **settings,
                trainable=Full(),
                estimator=Feedback(),
                out=str(tmp_path / "run"),
            )
        return
    finetune(model, tokenizer, rows, rows, **settings, trainable=Full(), out=str(tmp_path / "run"))
    assert WEIGHTS in " ".join(capsys.readouterr().err.split())
