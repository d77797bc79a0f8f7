"""Command line and ``finetune`` are one: what a configuration file may not combine, Python may not either."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from twinpass import finetune
from twinpass.config.compose import build
from twinpass.config.load import load_config, parse
from twinpass.config.schema import SECTIONS
from twinpass.engine.base import Engine
from twinpass.errors import ConfigError
from twinpass.model.defaults import CHOSEN
from twinpass.objective.base import Objective
from twinpass.objective.choice import Choice
from twinpass.objective.completion import Completion
from twinpass.schedule.epsilon import ConstantEpsilon, Known
from twinpass.train.adamw import AdamW
from twinpass.train.folder import RunFolder
from twinpass.train.journal import Journal
from twinpass.train.optimizer import Sgd
from twinpass.train.plan import TrainingPlan

pytestmark = pytest.mark.usefixtures("any_processor")

ROOT = Path(__file__).parents[2]
EXAMPLES, PAGE = ROOT / "examples", ROOT / "docs" / "defaults.md"
Keys = dict[str, Any]

CHOICES: Mapping[str, list[Keys]] = {
    "trainable": [
        {"kind": "lora"},
        {"kind": "lora", "first": 1},
        {"kind": "full"},
        {"kind": "pattern", "pattern": "mlp"},
        {"kind": "layers", "first": 1, "last": 2},
        {"kind": "layers", "first": 0, "last": 2, "block": 1},
        {"kind": "activated"},
        {"kind": "activated", "invocation": [1]},
        {"kind": "projections"},
    ],
    "estimator": [
        {"kind": "spsa"},
        {"kind": "spsa", "probes": 2},
        {"kind": "one_sided"},
        {"kind": "one_sided", "probes": 2},
        {"kind": "jvp"},
        {"kind": "line"},
        {"kind": "backprop"},
        {"kind": "feedback"},
    ],
    "optimizer": [
        {"kind": "sgd", "lr": 1e-3, "steps": 2},
        {"kind": "sign", "steps": 2},
        {"kind": "adamw"},
        {"kind": "relative"},
    ],
    "epsilon": [
        {"kind": "constant", "value": 1e-3},
        {"kind": "adaptive"},
        {"kind": "join", "schedules": [{"kind": "constant", "value": 1e-3}, {"kind": "adaptive"}], "boundaries": [3]},
    ],
    "reuse": [
        *({"policy": name} for name in SECTIONS["reuse"].kinds if name != "debiased"),
        *({"policy": "debiased", "inner": {"policy": name}} for name in ("reflected", "transported", "frozen")),
    ],
    "engine": [{}, {"perturbation": "inplace"}, {"compute_dtype": "bfloat16"}, {"compute_dtype": "float32"}],
    "task": [{"suffix": " Sentiment:"}, {}],
    "model": [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "float64"}],
}
"""By section; the first of each is what the others are combined with."""


def combined() -> Iterator[dict[str, Keys]]:
    """Every combination in which up to three sections are not the first of their kind."""
    for sections in combinations(CHOICES, 3):
        for chosen in product(*(CHOICES[section] for section in sections)):
            yield {
                **{section: kinds[0] for section, kinds in CHOICES.items()},
                **dict(zip(sections, chosen, strict=True)),
            }


def refusal_of_the_file(chosen: Mapping[str, Keys]) -> tuple[str, ...]:
    """Its problems, none where it is valid."""
    task = {"train": "a.jsonl", "eval": "b.jsonl", "prompt": "{text}", "options": [" bad", " good"]}
    values = {
        **chosen,
        "task": {**task, **chosen["task"]},
        "model": {"path": "some/model", **chosen["model"]},
        "run": {"out": "runs/it"},
    }
    try:
        parse(values, "it.toml", Path("/nowhere"))
    except ConfigError as error:
        return error.problems
    return ()


def made(section: str, keys: Keys) -> Any:
    """The object that a section stands for."""
    family = SECTIONS[section]
    assert family.key is not None
    options = {key: value for key, value in keys.items() if key != family.key}
    if "inner" in options:
        options["inner"] = made(section, options["inner"])
    if "schedules" in options:
        options["schedules"] = tuple(made(section, each) for each in options["schedules"])
    return family.kinds[keys[family.key]](**options)


def test_what_a_file_refuses_finetune_refuses_in_the_same_words(tmp_path: Path) -> None:
    models = {name: tiny.model().to(getattr(torch, name)) for name in ("float32", "bfloat16", "float64")}
    tokenizer, refused = tiny.tokenizer(), 0
    for chosen in combined():
        if not (problems := refusal_of_the_file(chosen)):
            continue
        refused += 1
        with pytest.raises(ConfigError) as caught:
            finetune(
                models[chosen["model"]["dtype"]],
                tokenizer,
                tiny.rows(4),
                prompt="{text}",
                options=(" bad", " good"),
                out=tmp_path / "run",
                **chosen["task"],
                **chosen["engine"],
                **{
                    name: made(name, chosen[name])
                    for name in ("trainable", "estimator", "optimizer", "epsilon", "reuse")
                },
            )
        assert caught.value.problems == problems, chosen
    assert refused > 500
    assert not list(tmp_path.iterdir())


def untrained(folder: RunFolder, engine: Engine, plan: TrainingPlan, journal: Journal, *rest: object) -> dict[str, Any]:
    """Instead of training."""
    journal.close()
    return {}


@pytest.mark.parametrize("kind", SECTIONS["trainable"].kinds)
def test_file_finetune_and_page_have_the_same_defaults(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Keys] = {"layers": {"first": 0, "last": 2}, "pattern": {"pattern": "mlp"}}
    task: Keys = {"prompt": "{text}", "options": [" bad", " good"], "suffix": " Sentiment:"}
    values = {
        "model": {"path": "some/model"},
        "trainable": {"kind": kind, **options.get(kind, {})},
        "task": {**task, "train": "a.jsonl", "eval": "b.jsonl"},
        "run": {"out": "runs/it"},
    }
    config = parse(values, "it.toml", Path("/nowhere"))
    in_file = (config.epsilon.at(0, Known()), config.optimizer.lr, config.optimizer.steps, config.optimizer.batch_size)
    monkeypatch.setattr("twinpass.api.carry_out", untrained)
    trainable = made("trainable", values["trainable"])
    finetune(tiny.model(), tiny.tokenizer(), tiny.rows(4), **task, trainable=trainable, out=tmp_path)
    run = tomllib.loads((tmp_path / "config.toml").read_text())
    in_python = (run["epsilon"]["value"], *(run["optimizer"][key] for key in ("lr", "steps", "batch_size")))

    (row,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{kind}` |")]
    assert f"`{type(trainable).__name__}`" in row
    on_page = tuple(float(cell) for cell in row.split("|")[3:-1])
    assert in_file == in_python == on_page


LEARNED: Mapping[str, Mapping[str, Keys]] = {
    "nothing": {},
    "lora": {"trainable": {"kind": "lora"}},
    "activated": {"trainable": {"kind": "activated"}},
    "full": {"trainable": {"kind": "full"}},
    "full by feedback": {"trainable": {"kind": "full"}, "estimator": {"kind": "feedback"}},
    "full by random directions": {"trainable": {"kind": "full"}, "estimator": {"kind": "spsa"}},
    "projections": {"trainable": {"kind": "projections", "layers": 3}},
    "informed": {"trainable": {"kind": "informed"}},
    "one-sided": {"trainable": {"kind": "lora"}, "estimator": {"kind": "one_sided"}},
    "eps": {"epsilon": {"kind": "constant", "value": 1e-3}},
    "Gauss-Newton": {"estimator": {"kind": "gauss_newton"}},
    "approximate": {"trainable": {"kind": "lora"}, "reuse": {"policy": "transported"}},
    "no derivative": {"objective": {"kind": "accuracy"}},
    "bfloat16": {"engine": {"compute_dtype": "bfloat16"}},
    "bfloat16 lora": {"engine": {"compute_dtype": "bfloat16"}, "trainable": {"kind": "lora"}},
}
WORKED_ON: Mapping[str, Keys] = {
    "choice": {"prompt": "{text}", "options": [" bad", " good"], "suffix": " Sentiment:"},
    "text": {"prompt": "Review:", "completion": " {text}", "suffix": " Text:", "end": False},
    "anywhere": {"prompt": "Review: ", "completion": "{text}", "end": False},
}


@pytest.mark.parametrize("on", WORKED_ON)
@pytest.mark.parametrize("said", LEARNED)
def test_a_file_and_finetune_learn_alike(said: str, on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is said of how to learn: both fill in the same, or both refuse it."""
    task, sections = WORKED_ON[on], LEARNED[said]
    names = ("trainable", "estimator", "optimizer", "epsilon", "run")
    values = {"model": {"path": "m"}, "task": {**task, "train": "a.jsonl", "eval": "b.jsonl"}, "run": {"out": "it"}}
    try:
        config = parse({**values, **sections}, "it.toml", Path("/nowhere"))
        in_file = {name: config.values[name] for name in names}
    except ConfigError as error:
        in_file = {"problems": error.problems}
    monkeypatch.setattr("twinpass.api.carry_out", untrained)
    objects = {name: made(name, keys) for name, keys in sections.items() if name != "engine"}
    try:
        finetune(
            tiny.model(),
            tiny.tokenizer(),
            tiny.rows(4),
            tiny.rows(2),
            **task,
            **objects,
            **sections.get("engine", {}),
            out=tmp_path,
        )
        run = tomllib.loads((tmp_path / "config.toml").read_text())
        in_python = {name: run[name] for name in names}
    except ConfigError as error:
        in_python = {"problems": error.problems}
    assert kinds_and_defaults(in_file) == kinds_and_defaults(in_python)


def kinds_and_defaults(found: Mapping[str, Any]) -> dict[str, Any]:
    """What both say, in one spelling: kinds, and what follows them."""
    if "problems" in found:
        return dict(found)
    kinds = {name: str(found[name].get("kind", default)).lower().replace("_", "") for name, default in KINDS.items()}
    steps = {
        key: found["optimizer"][key] for key in ("lr", "steps", "batch_size", "schedule") if key in found["optimizer"]
    }
    return {
        **kinds,
        **steps,
        "eval_every": found["run"].get("eval_every", 0),
        "patience": found["run"].get("patience", 0),
    }


KINDS = {"trainable": "", "estimator": "", "optimizer": "sgd"}


def test_the_page_has_the_defaults_of_adamw() -> None:
    (stated,) = re.findall(r"AdamW's own defaults hold: lr ([\de-]+), (\d+) steps of (\d+) rows", PAGE.read_text())
    own = AdamW()
    assert tuple(map(float, stated)) == (own.lr, own.steps, own.batch_size)


@pytest.mark.parametrize("name", ["reviews", "reviews-mezo", "reviews-full"])
def test_the_examples_for_reviews_are_trained_by_the_defaults(name: str) -> None:
    config = load_config(EXAMPLES / f"{name}.toml")
    suited = CHOSEN if name == "reviews" else config.trainable.defaults
    assert (config.optimizer.lr, config.optimizer.steps, config.optimizer.batch_size) == (
        suited.lr,
        suited.steps,
        suited.batch_size,
    )
    assert config.epsilon == ConstantEpsilon(value=suited.eps)


def test_what_is_filled_in_is_what_a_run_is_resumed_with() -> None:
    values = {
        "model": {"path": "some/model"},
        "trainable": {"kind": "full"},
        "task": {"prompt": "{text}", "options": [" bad", " good"], "train": "a.jsonl", "eval": "b.jsonl"},
        "optimizer": {"lr": 1.0},
        "epsilon": {"kind": "join", "schedules": [{}, {"value": 0.5}], "boundaries": [3]},
        "run": {"out": "runs/it"},
    }
    resolved = parse(values, "it.toml", Path("/nowhere")).values
    assert resolved["optimizer"] == {"kind": "sgd", "lr": 1.0, "steps": 120, "batch_size": 16, "schedule": "linear"}
    assert [schedule["value"] for schedule in resolved["epsilon"]["schedules"]] == [1e-3, 0.5]


def test_an_objective_can_be_chosen_apart_from_its_task(tmp_path: Path) -> None:
    path = tiny.config(tmp_path, objective={"kind": "completion"}, optimizer={"steps": 1})
    run = build(load_config(path))
    assert type(run.plan.objective) is Completion
    example, request = run.plan.train[0], run.plan.objective.requests(run.plan.train[:1])
    assert [each.completion for each in request] == [example.options[example.label]]
    summary = finetune(
        tiny.model(),
        tiny.tokenizer(),
        tiny.rows(4),
        tiny.rows(4),
        prompt="{text}",
        options=(" bad", " good"),
        objective=Completion(),
        optimizer=Sgd(lr=1e-3, steps=1, batch_size=2),
        out=tmp_path / "python",
    )
    assert summary["metric_name"] == "token_probability"
    assert tomllib.loads((tmp_path / "python/config.toml").read_text())["objective"] == {
        "kind": "Completion",
        "regularise": "none",
    }


@pytest.mark.parametrize(
    ("task", "said", "meant"),
    [
        ({"prompt": "{text}", "options": [" bad", " good"]}, {"regularise": "kl"}, Choice(regularise="kl")),
        ({"prompt": "{text}", "completion": " {label}"}, {"regularise": "kl"}, Completion(regularise="kl")),
        ({"name": "copa"}, {"regularise": "kl"}, Choice(score="mean", regularise="kl")),
        ({"name": "copa"}, {"kind": "choice", "over": "vocabulary"}, Choice(score="mean", over="vocabulary")),
        ({"name": "copa"}, {"kind": "choice", "score": "sum"}, Choice()),
        ({"name": "copa"}, {"kind": "completion"}, Completion()),
        ({"name": "squad"}, {"regularise": "kl"}, Completion(regularise="kl")),
    ],
    ids=str,
)
def test_an_objective_is_the_tasks_own_but_for_what_it_says(task: Keys, said: Keys, meant: Objective) -> None:
    """Tasks by name compare options by the mean of their tokens: what holds the model to what it was does not change that."""
    values: dict[str, Keys] = {
        "model": {"path": "m"}, "task": {**task, "train": "rows.jsonl"}, "objective": said, "run": {"out": "runs/it"},
    }  # fmt: skip
    config = parse(values, "it.toml", Path("/nowhere"))
    assert config.objective == meant
    assert parse(config.values, "it.toml", Path("/nowhere"), begun=True).objective == meant
    if said == {"kind": "choice", "over": "vocabulary"}:
        earlier = {**config.values, "objective": said}
        assert parse(earlier, "it.toml", Path("/nowhere"), begun=True).objective == Choice(over="vocabulary")


def test_comparing_takes_options(tmp_path: Path) -> None:
    task = {"prompt": "{text}", "completion": " {label}"}
    values: dict[str, Keys] = {
        "model": {"path": "some/model"},
        "trainable": {"kind": "full"},
        "task": {**task, "kind": "completion", "train": "a.jsonl", "eval": "b.jsonl"},
        "objective": {"kind": "choice"},
        "run": {"out": "runs/it"},
    }
    with pytest.raises(ConfigError) as in_file:
        parse(values, "it.toml", Path("/nowhere"))
    with pytest.raises(ConfigError) as in_python:
        finetune(tiny.model(), tiny.tokenizer(), tiny.rows(4), **task, objective=Choice(), out=tmp_path / "x")  # type: ignore[arg-type]
    assert in_file.value.problems == in_python.value.problems
    assert in_file.value.problems[0].startswith("[objective] kind: it compares options")
    assert not (tmp_path / "x").exists()
