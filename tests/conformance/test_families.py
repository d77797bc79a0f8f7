"""Every kind of every family keeps its contract. A kind without a row fails, and so does a family without a table."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from architectures import build
from contracts import CONTRACTS

from twinpass.config.engines import TorchSettings
from twinpass.config.named import TaskByName
from twinpass.config.reward import RewardTask
from twinpass.config.schema import SECTIONS
from twinpass.config.tasks import AutoTask, ChatTask, ChoiceTask, CompletionTask
from twinpass.engine.subject import Subject
from twinpass.estimate.backprop import Backprop
from twinpass.estimate.feedback import Feedback
from twinpass.estimate.gauss_newton import GaussNewton
from twinpass.estimate.jvp import Jvp
from twinpass.estimate.line import LineSearch
from twinpass.estimate.one_sided import OneSided
from twinpass.estimate.spsa import Spsa
from twinpass.model.projections import Projections
from twinpass.model.trainable import Activated, Full, Informed, Layers, Lora, Pattern
from twinpass.objective.accuracy import Accuracy
from twinpass.objective.choice import Choice
from twinpass.objective.completion import Completion
from twinpass.objective.expected_accuracy import ExpectedAccuracy
from twinpass.reuse.activated import ActivatedReuse
from twinpass.reuse.auto import Auto
from twinpass.reuse.debiased import Debiased
from twinpass.reuse.exact import Exact
from twinpass.reuse.frozen import Frozen
from twinpass.reuse.invariant import Invariant
from twinpass.reuse.reflected import Reflected
from twinpass.reuse.transported import Transported
from twinpass.schedule.adaptive import AdaptiveEpsilon
from twinpass.schedule.epsilon import ConstantEpsilon, CosineEpsilon, JoinedEpsilon
from twinpass.task.rows import Row
from twinpass.train.adamw import AdamW
from twinpass.train.normalised import Normalised
from twinpass.train.optimizer import Sgd
from twinpass.train.relative import Relative
from twinpass.train.sign import Sign

DATA: Any = {"train": "a.jsonl", "eval": "b.jsonl"}

ROWS: Mapping[str, Mapping[str, Any]] = {
    "trainable": {
        "full": Full(),
        "lora": Lora(rank=2),
        "pattern": Pattern(pattern="mlp"),
        "layers": Layers(first=0, last=2, block=1),
        "activated": Activated(rank=2),
        "informed": Informed(layers=1),
        "projections": Projections(layers=1),
    },
    "task": {
        "auto": AutoTask(),
        "chat": ChatTask(),
        "choice": ChoiceTask(prompt="Review: {text}", options=(" bad", " good"), **DATA),
        "named": TaskByName("sst2"),
        "completion": CompletionTask(prompt="Review: {text}", completion=" {text}", end=False, **DATA),
        "reward": RewardTask(prompt="Review: {text}", rewards=("rewards.py:few",), **DATA),
    },
    "objective": {
        "choice": Choice(),
        "accuracy": Accuracy(),
        "expected_accuracy": ExpectedAccuracy(),
        "completion": Completion(),
    },
    "estimator": {
        "spsa": Spsa(probes=2),
        "one_sided": OneSided(probes=2),
        "jvp": Jvp(probes=2),
        "line": LineSearch(probes=2),
        "gauss_newton": GaussNewton(probes=2),
        "backprop": Backprop(),
        "feedback": Feedback(),
    },
    "optimizer": {
        "sgd": Sgd(lr=1e-3, steps=9),
        "sign": Sign(),
        "normalised": Normalised(),
        "adamw": AdamW(),
        "relative": Relative(),
    },
    "epsilon": {
        "constant": ConstantEpsilon(value=1e-3),
        "cosine": CosineEpsilon(start=1e-2, end=1e-3, steps=9),
        "join": JoinedEpsilon(schedules=(ConstantEpsilon(value=1e-2), AdaptiveEpsilon()), boundaries=(4,)),
        "adaptive": AdaptiveEpsilon(),
    },
    "reuse": {
        "auto": Auto(),
        "exact": Exact(),
        "invariant": Invariant(),
        "activated": ActivatedReuse(),
        "reflected": Reflected(),
        "transported": Transported(),
        "frozen": Frozen(),
        "debiased": Debiased(inner=Frozen()),
    },
    "engine": {"torch": TorchSettings(device="cpu")},
}
"""A row a kind, by section and name."""

ELSEWHERE = {"sglang": "engines/sglang/test_contract.py"}
"""Engines that need what is not installed here keep the same contract in a file of their own."""

EACH = [(section, name) for section, rows in ROWS.items() for name in rows]


def test_every_family_has_a_table_and_every_kind_a_row() -> None:
    families = {section: set(known.kinds.own) for section, known in SECTIONS.items() if hasattr(known.kinds, "own")}
    assert set(families) == set(ROWS) == set(CONTRACTS)
    for section, names in families.items():
        elsewhere = set(ELSEWHERE) if section == "engine" else set()
        assert names == set(ROWS[section]) | elsewhere, section
    for section, name in EACH:
        assert type(ROWS[section][name]) is SECTIONS[section].kinds[name]
    for file in ELSEWHERE.values():
        assert "engine_contract(" in (Path(__file__).parents[1] / file).read_text()


@pytest.mark.parametrize("section", ROWS)
def test_a_kind_without_a_row_is_noticed_in_every_family(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = vars(SECTIONS[section].kinds)
    monkeypatch.setitem(family, "own", {**family["own"], "one_more": next(iter(family["own"].values()))})
    with pytest.raises(AssertionError, match=section):
        test_every_family_has_a_table_and_every_kind_a_row()


@pytest.mark.parametrize(("section", "name"), [each for each in EACH if each[0] not in ("task", "engine")])
def test_it_keeps_its_contract(section: str, name: str) -> None:
    CONTRACTS[section](ROWS[section][name])


MESSAGES = [{"role": "user", "content": "a film"}, {"role": "assistant", "content": "good"}]


@pytest.mark.parametrize("name", ROWS["task"])
def test_a_task_keeps_its_contract(name: str) -> None:
    more: Mapping[str, Mapping[str, Any]] = {"chat": {"messages": MESSAGES}, "named": {"sentence": "a film"}}
    rows = [Row({**row, **more.get(name, {})}, f"row {i}") for i, row in enumerate(tiny.rows(5))]
    tokenizer = tiny.tokenizer("0", "1")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}{% endif %}"
    )
    CONTRACTS["task"](ROWS["task"][name], rows, tokenizer)


@pytest.mark.parametrize("name", ROWS["engine"])
@pytest.mark.parametrize("perturbation", ["tandem", "inplace"])
def test_an_engine_keeps_its_contract(name: str, perturbation: Any) -> None:
    subject = Subject(
        build("llama", torch.float32),
        tiny.tokenizer(),
        Full(),
        Auto(),
        "",
        "float32",
        reload=lambda: dict(build("llama", torch.float32).named_parameters()),
    )
    settings = replace(ROWS["engine"][name], perturbation=perturbation)
    CONTRACTS["engine"](settings.start(subject), near=1e-4)
