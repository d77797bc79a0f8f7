"""A configuration is checked whole: every fault is named with section and key, or it loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from configurations import Values, debiased, joined, minimal, problems_of

from twinpass.config.load import handed_on, load_config, parse, portable
from twinpass.config.schema import SECTIONS, Config
from twinpass.config.tasks import ChoiceTask
from twinpass.errors import ConfigError
from twinpass.model.projections import Projections
from twinpass.model.trainable import Full, Layers, Lora, Pattern
from twinpass.reuse.debiased import Debiased
from twinpass.reuse.transported import Transported
from twinpass.schedule.adaptive import AdaptiveEpsilon
from twinpass.schedule.epsilon import ConstantEpsilon, CosineEpsilon, JoinedEpsilon, Known

pytestmark = pytest.mark.usefixtures("any_processor")

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("**/*.toml"))
WriteConfig = Callable[[Values], Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteConfig:
    def write_config(values: Values) -> Path:
        path = tmp_path / "it.toml"
        path.write_text(tomli_w.dumps(values), encoding="utf-8")
        return path

    return write_config


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_shipped_example_loads_and_finds_its_data(path: Path) -> None:
    config = load_config(path)
    assert config.source == str(path)
    for data in (*config.task.train, *config.task.eval):
        assert Path(data).is_file()


def test_there_are_examples() -> None:
    assert EXAMPLES


def test_defaults_are_filled_in() -> None:
    config = parse(minimal(estimator={"kind": "spsa"}), "it.toml", Path("/nowhere"))
    assert isinstance(config, Config)
    assert (config.optimizer.lr, config.optimizer.batch_size) == (1e-3, 16)
    assert (config.estimator.probes, config.engine.noise, config.engine.perturbation) == (1, "binomial", "tandem")
    assert config.epsilon.at(3, Known()) == 1e-3
    assert config.run.seed == 0
    assert config.task.train_rows is None
    assert set(config.values) == set(SECTIONS) - {"objective", "generation"}
    assert config.objective is None


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"kind": "full"}, Projections),
        ({"kind": "projections", "layers": 3}, Projections),
        ({"kind": "lora", "rank": 2, "targets": ["a"]}, Lora),
        ({"kind": "pattern", "pattern": "mlp"}, Pattern),
        ({"kind": "layers", "first": 0, "last": 2}, Layers),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_kind_picks_the_class(keys: Values, kind: type) -> None:
    assert type(parse(minimal(trainable=keys), "it.toml", Path("/nowhere")).trainable) is kind


def test_of_all_weights_feedback_tells_output_projections() -> None:
    along_probes = parse(minimal(estimator={"kind": "spsa"}), "it.toml", Path("/nowhere"))
    assert (along_probes.trainable, along_probes.values["trainable"]) == (Full(), {"kind": "full"})
    fed_back = parse(minimal(estimator={"kind": "feedback"}), "it.toml", Path("/nowhere"))
    assert (fed_back.trainable, fed_back.values["trainable"]) == (Projections(), {"kind": "full"})


@pytest.mark.parametrize(
    ("given", "size"), [("2GiB", 2 << 30), ("1.5 g", 3 << 29), ("512MiB", 512 << 20), ("64k", 65536), (100, 100)]
)
def test_sizes(given: object, size: int) -> None:
    assert parse(minimal(reuse={"budget": given}), "it.toml", Path("/nowhere")).reuse.budget == size


def test_nested_tables_become_what_they_name() -> None:
    values = minimal(
        reuse={"policy": "debiased", "probability": 0.5, "inner": {"policy": "transported", "refresh": 7}},
        epsilon={
            "kind": "join",
            "schedules": [{"value": 0.5}, {"kind": "cosine", "start": 1, "end": 0.5, "steps": 2}, {"kind": "adaptive"}],
            "boundaries": [3, 5],
        },
    )
    config = parse(values, "it.toml", Path("/nowhere"))
    assert config.reuse == Debiased(inner=Transported(refresh=7), probability=0.5)
    schedules = (ConstantEpsilon(value=0.5), CosineEpsilon(start=1.0, end=0.5, steps=2), AdaptiveEpsilon())
    assert config.epsilon == JoinedEpsilon(schedules=schedules, boundaries=(3, 5))


@pytest.mark.parametrize("name", [name for name in SECTIONS["reuse"].kinds if name not in ("invariant", "activated")])
def test_every_policy_can_be_chosen_by_name(name: str) -> None:
    keys = {"inner": {"policy": "frozen"}} if name == "debiased" else {}
    config = parse(minimal(reuse={"policy": name, **keys}, estimator={"probes": 2}), "it.toml", Path("/nowhere"))
    assert type(config.reuse) is SECTIONS["reuse"].kinds[name]


@pytest.mark.parametrize("name", SECTIONS["estimator"].kinds)
def test_every_estimator_can_be_chosen_by_name(name: str) -> None:
    whole = {"trainable": {"kind": "lora"}} if name in ("backprop", "feedback") else {}
    config = parse(minimal(estimator={"kind": name}, **whole), "it.toml", Path("/nowhere"))
    assert type(config.estimator) is SECTIONS["estimator"].kinds[name]


def test_an_override_may_be_a_table(write: WriteConfig) -> None:
    overrides = ["reuse.policy=debiased", 'reuse.inner={policy = "transported", refresh = 7}']
    assert load_config(write(minimal()), overrides).reuse == Debiased(inner=Transported(refresh=7))


def test_an_integer_may_stand_for_a_float() -> None:
    assert parse(minimal(optimizer={"lr": 1}), "it.toml", Path("/nowhere")).optimizer.lr == 1.0


def test_results_name_data_from_where_they_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse(
        minimal(task={"train": "data/a.jsonl", "eval": "/elsewhere/b.jsonl"}), "it.toml", tmp_path / "examples"
    )
    task = portable(config)["task"]
    assert (task["train"], task["eval"]) == ("examples/data/a.jsonl", "/elsewhere/b.jsonl")
    assert config.values["task"]["train"] == str(tmp_path / "examples/data/a.jsonl")


def test_a_missing_section_is_reported_by_its_keys() -> None:
    assert any(problem.startswith("[run] out: is missing") for problem in problems_of({"model": {"path": "m"}}))


@pytest.mark.parametrize("value", ["text", 3, [1], [{"path": "m"}]])
def test_a_section_must_be_a_table(value: object) -> None:
    (problem,) = problems_of(minimal() | {"model": value})
    assert problem == f"model: expected a section [model], got {value!r}"


@pytest.mark.parametrize(
    ("override", "section", "key", "expected"),
    [
        ("optimizer.lr=2e-4", "optimizer", "lr", 2e-4),
        ("optimizer.steps=7", "optimizer", "steps", 7),
        ("optimizer.schedule=cosine", "optimizer", "schedule", "cosine"),
        ('optimizer.schedule="cosine"', "optimizer", "schedule", "cosine"),
        (" run.out = runs/other ", "run", "out", "runs/other"),
        ("run.out=a=b", "run", "out", "a=b"),
        ('task.options=[" bad", " good", " fine"]', "task", "options", (" bad", " good", " fine")),
        ("task.suffix=", "task", "suffix", ""),
        ("estimator.probes=3", "estimator", "probes", 3),
    ],
)
def test_an_override_wins(write: WriteConfig, override: str, section: str, key: str, expected: object) -> None:
    assert getattr(getattr(load_config(write(minimal()), [override]), section), key) == expected


def test_the_last_override_wins_and_may_pick_a_kind(write: WriteConfig) -> None:
    overrides = ["optimizer.lr=1", "trainable.kind=lora", "trainable.rank=3", "optimizer.lr=2"]
    config = load_config(write(minimal()), overrides)
    assert config.optimizer.lr == 2.0
    assert config.trainable == Lora(rank=3)
    assert config.values["trainable"] == {"kind": "lora", "rank": 3}


@pytest.mark.parametrize("override", ["optimizer.lr", "lr=3", "=3", "optimizer", ""])
def test_an_override_with_bad_syntax_shows_how_to_write_it(write: WriteConfig, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(minimal()), [override, "optimizer.steps=0"])
    syntax, steps = caught.value.problems
    assert syntax.startswith(f"--set {override}: expected section.key=value")
    assert steps.startswith("[optimizer] steps:")


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("optimzer.lr=3", "[optimzer]: no such section (did you mean 'optimizer'?)"),
        ("optimizer.l=3", "[optimizer] l: no such key"),
        ("optimizer.lr=fast", "[optimizer] lr:"),
        ("optimizer.steps=3.5", "[optimizer] steps:"),
    ],
)
def test_an_override_is_checked_like_the_file(write: WriteConfig, override: str, start: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(minimal()), [override])
    assert [problem.startswith(start) for problem in caught.value.problems] == [True]


@pytest.mark.parametrize("given", ["data/a.jsonl", "./data/a.jsonl", "data/x/../a.jsonl"])
def test_data_paths_are_relative_to_the_configuration_file(
    write: WriteConfig, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    path = write(minimal(task={"train": given}))
    monkeypatch.chdir(path.parent.parent)
    for name in (path, path.relative_to(path.parent.parent)):
        config = load_config(name)
        assert config.task.train == (str(path.parent / "data/a.jsonl"),)
        assert config.task.eval == (str(path.parent / "eval.csv"),)
        assert (config.values["task"]["train"],) == config.task.train
        assert config.run.out == "runs/it"


def test_absolute_and_home_paths_stay(write: WriteConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    config = load_config(write(minimal(task={"train": "/abs/a.jsonl", "eval": "~/b.csv"})))
    assert (config.task.train, config.task.eval) == (("/abs/a.jsonl",), (str(home / "b.csv"),))


def test_the_given_values_are_not_changed() -> None:
    values = {"trainable": {"kind": "full"}, **minimal(), "epsilon": {}}
    parse(values, "it.toml", Path("/nowhere"))
    assert values["epsilon"] == {}
    assert values["task"]["train"] == "train.jsonl"


def test_the_given_tables_are_not_changed() -> None:
    values = minimal(**joined({"value": 0.5}, {}))
    parse(values, "it.toml", Path("/nowhere"))
    assert values["epsilon"]["schedules"] == [{"value": 0.5}, {}]


@pytest.mark.parametrize("changes", [{}, debiased("transported", refresh=7), joined({}, {"kind": "adaptive"})], ids=str)
def test_the_resolved_values_load_again_from_anywhere(
    write: WriteConfig, tmp_path: Path, changes: dict[str, Values]
) -> None:
    first = load_config(write(minimal(**changes)))
    second = parse(first.values, first.source, tmp_path / "elsewhere")
    assert second == first
    assert load_config(write(dict(first.values))) == first


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: 1 problem .*\n.*cannot be read: No such file"):
        load_config(tmp_path / "none.toml")


def test_a_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


@pytest.mark.parametrize("data", [b"[model", b"model = ", b"a = 1\na = 2", b"\xff\xfe", b'x = "\xe9"'])
def test_a_file_that_is_not_toml_is_reported(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "it.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(path)


def test_what_is_handed_on_names_no_folders() -> None:
    values: dict[str, Any] = {
        "model": {"path": "/home/a/model"},
        "task": {
            "train": ["/home/a/x.jsonl", "owner/name"],
            "eval": "/home/a/y.csv",
            "rewards": ["/home/a/r.py:f", "pkg:g"],
        },
        "run": {"out": "/home/a/runs/b", "seed": 1},
        "reuse": {"spill": "/tmp/kv"},
    }
    assert handed_on(values) == {
        "model": {"path": "/home/a/model"},
        "task": {"train": ["x.jsonl", "owner/name"], "eval": "y.csv", "rewards": ["r.py:f", "pkg:g"]},
        "run": {"out": "b", "seed": 1},
        "reuse": {"spill": "kv"},
    }
    assert values["run"]["out"] == "/home/a/runs/b"
    assert handed_on({"optimizer": {"steps": 1}}) == {"optimizer": {"steps": 1}}


def test_a_model_path_is_relative_to_the_configuration_like_data_paths(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    for given, meant in (("models/mine", str(tmp_path / "models" / "mine")), ("some/hub-id", "some/hub-id")):
        config = parse(minimal(model={"path": given}), "it.toml", tmp_path)
        assert (config.model.path, config.values["model"]["path"]) == (meant, meant)
    assert not config.model.trust_remote_code
    assert parse(minimal(model={"trust_remote_code": True}), "it.toml", tmp_path).model.trust_remote_code


def test_rows_are_called_what_people_call_them() -> None:
    task = ChoiceTask(prompt="{text}", options=("a", "b"), train=("-", "/far/away/rows.jsonl"))
    assert task.source == "standard input, rows.jsonl"
