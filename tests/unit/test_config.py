"""A configuration is checked whole: every fault is named with section and key, or it loads."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from twinpass.config.load import load_config, parse, portable
from twinpass.config.schema import SECTIONS, Config
from twinpass.errors import ConfigError
from twinpass.model.trainable import Full, Layers, Lora, Pattern
from twinpass.reuse.debiased import Debiased
from twinpass.reuse.transported import Transported
from twinpass.schedule.adaptive import AdaptiveEpsilon
from twinpass.schedule.epsilon import ConstantEpsilon, CosineEpsilon, JoinedEpsilon, Known

pytestmark = pytest.mark.usefixtures("any_processor")

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("**/*.toml"))
Values = dict[str, Any]
WriteConfig = Callable[[Values], Path]


def minimal(**changes: Values) -> Values:
    """The shortest valid configuration; ``changes`` add keys to its sections, and None removes one."""
    values: Values = {
        "model": {"path": "some/model"},
        "trainable": {"kind": "full"},
        "task": {"train": "train.jsonl", "eval": "eval.csv", "prompt": "{text}", "options": [" no", " yes"]},
        "optimizer": {"lr": 1e-3, "steps": 10},
        "run": {"out": "runs/it"},
    }
    for section, keys in changes.items():
        merged = values.get(section, {}) | keys
        values[section] = {key: value for key, value in merged.items() if value is not None}
    return values


def problems_of(values: Values) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(values, "it.toml", Path("/nowhere"))
    return caught.value.problems


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
    config = parse(minimal(), "it.toml", Path("/nowhere"))
    assert isinstance(config, Config)
    assert (config.optimizer.lr, config.optimizer.batch_size) == (1e-3, 16)
    assert (config.estimator.probes, config.estimator.perturbation) == (1, "tandem")
    assert config.epsilon.at(3, Known()) == 1e-3
    assert config.run.seed == 0
    assert config.task.train_rows is None
    assert set(config.values) == set(SECTIONS) - {"objective", "generation"}
    assert config.objective is None


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"kind": "full"}, Full),
        ({"kind": "lora", "rank": 2, "targets": ["a"]}, Lora),
        ({"kind": "pattern", "pattern": "mlp"}, Pattern),
        ({"kind": "layers", "first": 0, "last": 2}, Layers),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_kind_picks_the_class(keys: Values, kind: type) -> None:
    assert type(parse(minimal(trainable=keys), "it.toml", Path("/nowhere")).trainable) is kind


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


def test_faults_of_all_tables_are_reported_at_once() -> None:
    values = minimal(
        epsilon={"kind": "join", "schedules": [{"valu": 1.0}, 3, {"value": 0.0}], "boundaries": [1, 2]},
        reuse={"policy": "debiased", "inner": {"policy": "frozen", "check": -1.0, "chek": 1.0}},
    )
    starts = [problem.partition(":")[0] for problem in problems_of(values)]
    epsilon = ["[epsilon.schedules.0] valu", "[epsilon.schedules.1]", "[epsilon.schedules.2] value"]
    assert starts[:3] == epsilon
    assert set(starts[3:]) == {"[reuse.inner] check", "[reuse.inner] chek"}


def test_an_override_may_be_a_table(write: WriteConfig) -> None:
    overrides = ["reuse.policy=debiased", 'reuse.inner={policy = "transported", refresh = 7}']
    assert load_config(write(minimal()), overrides).reuse == Debiased(inner=Transported(refresh=7))


def test_an_integer_may_stand_for_a_float() -> None:
    assert parse(minimal(optimizer={"lr": 1}), "it.toml", Path("/nowhere")).optimizer.lr == 1.0


def debiased(policy: str, **keys: Any) -> dict[str, Values]:
    return {"reuse": {"policy": "debiased", "inner": {"policy": policy, **keys}}}


def joined(*schedules: Any) -> dict[str, Values]:
    return {"epsilon": {"kind": "join", "schedules": list(schedules), "boundaries": [5]}}


FAULTS: list[tuple[Values, tuple[str, ...]]] = [
    # unknown names
    ({"optimiser": {"lr": 1.0}}, ("[optimiser]: no such section", "did you mean 'optimizer'?", "trainable")),
    ({"zzz": {"a": 1}}, ("[zzz]: no such section; there are model",)),
    ({"optimizer": {"batchsize": 4}}, ("[optimizer] batchsize: no such key", "did you mean 'batch_size'?")),
    ({"engine": {"qqq": 1}}, ("[engine] qqq: no such key",)),
    ({"model": {"kind": "x"}}, ("[model] kind: no such key", "there are path, dtype")),
    # kinds
    ({"trainable": {"kind": "lorra"}}, ("[trainable] kind: there is no 'lorra'", "did you mean 'lora'?", "pattern")),
    ({"trainable": {"kind": 3}}, ("[trainable] kind: there is no 3",)),
    ({"trainable": {"kind": ["full"]}}, ("[trainable] kind: there is no ['full']",)),
    ({"reuse": {"policy": "exat"}}, ("[reuse] policy: there is no 'exat'", "did you mean 'exact'?")),
    ({"reuse": {"policy": "activated"}}, ("[reuse] policy: 'activated' needs [trainable] kind = \"activated\"",)),
    ({"reuse": {"policy": "invariant"}}, ("[reuse] policy: 'invariant' shares the layers below", "there are none")),
    ({"reuse": {"policy": "exact", "spill": "kv"}}, ("[reuse] spill: no such key",)),
    ({"reuse": {"budget": "much"}}, ("[reuse] expected a size such as 2GiB", "got 'much'")),
    ({"reuse": {"budget": 0}}, ("[reuse] budget:", "got 0")),
    ({"reuse": {"budget": "900TiB"}}, ("[reuse] budget:", "less than or equal to")),
    ({"reuse": {"budget": "1" * 400}}, ("[reuse] expected a size",)),
    ({"trainable": {"kind": "layers", "first": 0, "last": 2, "every": 5}}, ("[trainable] every: 5 steps a block",)),
    (
        {"trainable": {"kind": "activated", "invocation": [1]}, "reuse": {"policy": "invariant"}},
        ("[reuse] policy: activated adapters share more than layers",),
    ),
    ({"reuse": {"page_size": 0}}, ("[reuse] page_size:", "got 0")),
    ({"trainable": {"kind": "activated"}}, ("[task] suffix: activated adapters act from it on",)),
    ({"task": {"train": "a\0b"}}, ("[task] train: 'a\\x00b' is not a usable path",)),
    # tables inside sections
    ({"reuse": {"policy": "debiased"}}, ("[reuse] inner: is missing",)),
    (debiased("frozn"), ("[reuse.inner] policy: there is no 'frozn'", "did you mean 'frozen'?", "choose from auto")),
    (debiased("frozen", chek=0.5), ("[reuse.inner] chek: no such key (did you mean 'check'?)", "budget, page_size")),
    (debiased("frozen", check=2.0), ("[reuse.inner] check:", "less than or equal to 1", "got 2.0")),
    (debiased("exact"), ("[reuse] inner: there is no bias to correct", "'reflected' or 'transported'")),
    (debiased("debiased", inner={"policy": "frozen"}), ("[reuse] inner: there is no bias to correct",)),
    ({"reuse": {"policy": "debiased", "inner": {}}}, ("[reuse] inner: there is no bias to correct",)),
    ({"reuse": {"policy": "debiased", "inner": "frozen"}}, ("[reuse.inner]: expected a table such as { policy = ... }",)),
    ({"reuse": {"policy": "debiased", "inner": [{"policy": "frozen"}]}}, ("[reuse] inner:", "instance of Policy")),
    ({"reuse": {"policy": "frozen", "inner": {"policy": "frozen"}}}, ("[reuse] inner: no such key", "check")),
    ({"epsilon": {"kind": "join", "boundaries": [5]}}, ("[epsilon] schedules: is missing",)),
    (joined({"value": 1.0}), ("[epsilon] boundaries: 1 schedules meet at 0 steps",)),
    (joined({}, {"kind": "adaptiv"}), ("[epsilon.schedules.1] kind: there is no 'adaptiv'", "did you mean 'adaptive'?")),
    (joined({}, {"valu": 1.0}), ("[epsilon.schedules.1] valu: no such key (did you mean 'value'?)",)),
    (joined({"value": -1.0}, {}), ("[epsilon.schedules.0] value:", "greater than 0", "got -1.0")),
    (joined({}, {"kind": "cosine", "start": 1.0, "end": 1.0}), ("[epsilon.schedules.1] steps: is missing",)),
    (joined({}, 1e-3), ("[epsilon.schedules.1]: expected a table such as { kind = ... }, got 0.001",)),
    (joined({}, joined({}, {"valu": 1})["epsilon"]), ("[epsilon.schedules.1.schedules.1] valu: no such key",)),
    ({"epsilon": {"kind": "join", "schedules": 3, "boundaries": []}}, ("[epsilon.schedules]: expected a table", "got 3")),
    ({"epsilon": {"schedules": [{}]}}, ("[epsilon] schedules: no such key", "there are value")),
    # settings of approximations
    ({"epsilon": {"kind": "adaptive", "start": 1.0}}, ("[epsilon] start: 1 is not between lowest (1e-06)",)),
    ({"epsilon": {"kind": "adaptive", "target": 1.0}}, ("[epsilon] target:", "less than 1", "got 1.0")),
    ({"estimator": {"kind": "one_sided", "normalise": True}}, ("[estimator] normalise:", "set probes to 2 or more")),
    ({"reuse": {"policy": "transported", "refresh": 0}}, ("[reuse] refresh:", "got 0")),
    ({"reuse": {"policy": "frozen", "check": 1.5}}, ("[reuse] check:", "got 1.5")),
    ({"reuse": {**debiased("frozen")["reuse"], "probability": 0.0}}, ("[reuse] probability: must be above 0",)),
    ({"task": {"shots": -1}}, ("[task] shots:", "got -1")),
    # approximations that could not work, or would gain nothing
    ({"reuse": {"policy": "reflected"}}, ("[reuse] policy: 'reflected' runs one base lane for all probes", "'transported'")),
    (debiased("reflected"), ("[reuse] policy: 'reflected' runs one base lane", "set [estimator] probes to 2 or more")),
    (
        {"reuse": {"policy": "reflected"}, "estimator": {"kind": "one_sided"}},
        ("[reuse] policy: 'reflected' has no minus lanes to reflect", "use 'exact'"),
    ),
    ({**debiased("reflected"), "estimator": {"kind": "one_sided"}}, ("[reuse] policy: 'reflected' has no minus lanes",)),
    (
        {"reuse": {"policy": "transported"}, "estimator": {"kind": "jvp"}},
        ("[reuse] policy: an estimator that differentiates perturbs nothing", "use 'exact'"),
    ),
    ({"epsilon": {"kind": "adaptive"}, "estimator": {"kind": "jvp"}}, ("[epsilon] kind:", "'jvp'")),
    (
        {"reuse": {"policy": "frozen"}, "estimator": {"perturbation": "inplace"}},
        ("[reuse] policy: 'frozen' needs all lanes in one pass", "perturbation = \"tandem\""),
    ),
    (
        {"reuse": {"policy": "transported"}, "trainable": {"kind": "lora", "first": 1}},
        ("[reuse] policy: 'transported' approximates what these weights let share exactly; use 'auto'",),
    ),
    (
        {"reuse": {"policy": "frozen"}, "trainable": {"kind": "layers", "first": 1, "last": 2}},
        ("[reuse] policy: 'frozen' approximates what these weights let share exactly",),
    ),
    (
        {**debiased("frozen"), "trainable": {"kind": "activated", "invocation": [1]}},
        ("[reuse] policy: 'debiased' approximates what these weights let share exactly",),
    ),
    # what SGLang cannot do
    *(
        ({"engine": {"kind": "sglang"}, "trainable": {"kind": "lora"}, **changes}, words)
        for changes, words in [
            ({"estimator": {"kind": "jvp"}}, ("[engine] kind: \"sglang\" takes no derivatives", "[estimator] kind")),
            ({"estimator": {"perturbation": "inplace"}}, ("[engine] kind: on \"sglang\" adapters are", "\"tandem\"")),
            ({"reuse": {"policy": "transported"}}, ("[engine] kind: \"sglang\" reuses what is exact", "[reuse] policy")),
        ]
    ),
    ({"reuse": {"budget": 7}, "engine": {"kind": "sglang", "url": "http://localhost:1"}}, ("[reuse] budget",)),
    (
        {
            "engine": {"kind": "sglang"},
            "trainable": {"kind": "layers", "first": 1, "last": 2},
            "reuse": {"policy": "invariant"},
        },
        ("[engine] kind: \"sglang\" reuses what is exact within a lane",),
    ),
    ({"engine": {"kind": "sglang", "url": "here:1"}}, ("[engine] url: expected an address such as http://127.0.0.1",)),
    ({"engine": {"kind": "sglang", "url": "http://a:b"}}, ("[engine] url: expected an address such as http://127.0.0.1",)),
    ({"engine": {"kind": "sglang", "url": "http://a?b=1"}}, ("[engine] url: expected an address such as http://127.0.0.1",)),
    ({"engine": {"kind": "sglang"}, "model": {"dtype": "float64"}}, ("[model] dtype: SGLang has no float64",)),
    (
        {"engine": {"kind": "sglang"}, "model": {"dtype": "bfloat16"}, "trainable": {"kind": "lora"}},
        ("[model] dtype: SGLang holds adapters in bfloat16", "float32"),
    ),
    ({"engine": {"kind": "sglang", "url": "http://me:secret@there"}}, ("[engine] url: keys do not belong into",)),
    ({"engine": {"kind": "sglang", "url": "http://a", "device": "cpu"}}, ("[engine] url: the server has been started",)),
    ({"engine": {"kind": "sglang", "url": "http://a", "arguments": {"a": 1}}}, ("[engine] url: the server has been started; leave arguments",)),
    ({"engine": {"kind": "sglang", "timeout": 5}}, ("[engine] timeout: only a server at a url has one",)),
    (
        {
            "engine": {"kind": "sglang"},
            "trainable": {"kind": "activated", "invocation": [1]},
            "reuse": {"policy": "activated", "spill": "kv"},
        },
        ("[engine] kind: \"sglang\" keeps its cache in memory", "[reuse] spill"),
    ),
    (
        {"engine": {"kind": "sglang", "arguments": {"page_size": 4}}, "trainable": {"kind": "lora"}},
        ("[engine] arguments: 'page_size' is set by twinpass", "[reuse] page_size"),
    ),
    ({"engine": {"kind": "sglang", "device": "tpu"}, "trainable": {"kind": "lora"}}, ("[engine] device:", "'cuda'")),
    # missing keys
    ({"model": {"path": None}}, ("[model] path: is missing",)),
    ({"trainable": {"kind": "layers", "first": 0}}, ("[trainable] last: is missing",)),
    ({"run": {"out": None}}, ("[run] out: is missing",)),
    (
        {"task": {"options": None, "suffix": None, "label": None, "labels": None}},
        ('[task] options: is missing; name the answers to choose from, such as [" bad", " good"], or the text to write: completion',),
    ),
    ({"task": {"train": None}}, ("[task] train:",)),
    ({"task": {"eval": ""}}, ("[task] eval:", "not empty")),
    ({"task": {"train": ["a.jsonl", 1]}}, ("[task] train:", "an array of such")),
    # wrong types
    ({"optimizer": {"lr": "fast"}}, ("[optimizer] lr:", "number", "got 'fast'")),
    ({"optimizer": {"steps": 1.5}}, ("[optimizer] steps:", "integer", "got 1.5")),
    ({"optimizer": {"steps": True}}, ("[optimizer] steps:", "integer", "got True")),
    ({"run": {"out": 7}}, ("[run] out:", "string", "got 7")),
    ({"task": {"options": " no"}}, ("[task] options:", "got ' no'")),
    ({"task": {"options": [" no", 1]}}, ("[task] options.1:", "string", "got 1")),
    ({"task": {"train": 5}}, ("[task] train:", "string", "got 5")),
    # out of range
    ({"optimizer": {"lr": 0.0}}, ("[optimizer] lr:", "greater than 0", "got 0.0")),
    ({"optimizer": {"lr": float("nan")}}, ("[optimizer] lr:", "got nan")),
    ({"optimizer": {"lr": float("inf")}}, ("[optimizer] lr:", "finite", "got inf")),
    ({"optimizer": {"steps": 0}}, ("[optimizer] steps:", "got 0")),
    ({"optimizer": {"clip": -1.0}}, ("[optimizer] clip:", "got -1.0")),
    ({"optimizer": {"schedule": "square"}}, ("[optimizer] schedule:", "'linear'", "got 'square'")),
    ({"epsilon": {"value": -1e-3}}, ("[epsilon] value:", "got -0.001")),
    ({"estimator": {"probes": 0}}, ("[estimator] probes:", "got 0")),
    ({"estimator": {"noise": "cauchy"}}, ("[estimator] noise:", "'rademacher'", "got 'cauchy'")),
    ({"model": {"dtype": "float16"}}, ("[model] dtype:", "'bfloat16'", "got 'float16'")),
    ({"model": {"path": ""}}, ("[model] path:", "got ''")),
    ({"run": {"seed": -1}}, ("[run] seed:", "got -1")),
    ({"task": {"train_rows": 0}}, ("[task] train_rows:", "got 0")),
    # impossible combinations
    ({"engine": {"compute_dtype": "float16"}}, ("[engine] compute_dtype:", "'bfloat16'", "got 'float16'")),
    (
        {"engine": {"compute_dtype": "bfloat16"}, "model": {"dtype": "bfloat16"}},
        ("[engine] compute_dtype: \"bfloat16\" is for float32 weights", "[model] dtype", "a bfloat16 model computes in bfloat16"),
    ),
    (
        {"engine": {"compute_dtype": "float32"}, "model": {"dtype": "float64"}},
        ("[engine] compute_dtype: \"float32\" is for float32 weights", "[model] dtype"),
    ),
    *(
        ({"engine": {"compute_dtype": "bfloat16"}, **changes}, ("[engine] compute_dtype: \"bfloat16\" keeps what two signs", "\"spsa\""))
        for changes in (
            {"estimator": {"kind": "one_sided"}}, {"estimator": {"kind": "jvp"}}, {"estimator": {"perturbation": "inplace"}}
        )
    ),
    (
        {"engine": {"compute_dtype": "bfloat16"}, "reuse": {"policy": "transported"}},
        ("[engine] compute_dtype: \"bfloat16\" needs each lane's own", "[reuse] policy"),
    ),
    ({"estimator": {"perturbation": "inplace", "noise": "gaussian"}}, ("[estimator] perturbation: 'inplace'", "rademacher")),
    ({"trainable": {"kind": "layers", "first": 2, "last": 2}}, ("[trainable] first:", "last must be larger")),
    ({"trainable": {"kind": "pattern", "pattern": "("}}, ("[trainable] pattern:", "not a regular expression")),
    ({"task": {"options": [" yes"]}}, ("[task] options:", "at least two")),
    ({"task": {"options": [" a", " a"]}}, ("[task] options:", "different")),
    ({"task": {"options": [" a", ""]}}, ("[task] options:", "not empty")),
    ({"task": {"labels": ["one"]}}, ("[task] labels:", "1 names for 2 options")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"), FAULTS, ids=lambda value: None if isinstance(value, tuple) else str(value)
)
def test_a_fault_is_named_with_section_and_key(changes: Values, words: tuple[str, ...]) -> None:
    (problem,) = problems_of(minimal(**changes))
    assert problem.startswith(words[0])
    for word in words:
        assert word in problem


@pytest.mark.parametrize("kind", ["full", "layers", "pattern"])
def test_inplace_cannot_restore_bfloat16_weights(kind: str) -> None:
    kinds: dict[str, Values] = {"full": {}, "layers": {"first": 0, "last": 1}, "pattern": {"pattern": "mlp"}}
    values = minimal(
        model={"dtype": "bfloat16"}, estimator={"perturbation": "inplace"}, trainable={"kind": kind, **kinds[kind]}
    )
    (problem,) = problems_of(values)
    assert problem.startswith("[estimator] perturbation: 'inplace'")
    assert "[model] dtype" in problem


def test_products_in_bfloat16_are_refused_where_they_save_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = minimal(engine={"compute_dtype": "bfloat16"})
    parse(values, "it.toml", Path("/nowhere"))
    monkeypatch.setattr("twinpass.config.engines.multiplies_tiles", lambda: False)
    (problem,) = problems_of(values)
    assert problem.startswith("[engine] compute_dtype")
    assert "AMX" in problem
    assert "leave it out" in problem
    parse(minimal(engine={"compute_dtype": "float32"}), "it.toml", Path("/nowhere"))


@pytest.mark.parametrize(
    ("gpu", "changes", "words"),
    [
        (False, {"engine": {"device": "cuda"}}, ('[engine] device: "cuda" needs a GPU that torch can use', '"cpu"')),
        (True, {"model": {"dtype": "float64"}}, ("[model] dtype: weights on a GPU", '[engine] device = "cpu"')),
        (
            True,
            {"engine": {"compute_dtype": "bfloat16"}},
            ('[engine] compute_dtype: "bfloat16" runs on the CPU only', 'device = "cpu"'),
        ),
    ],
    ids=str,
)
def test_what_a_gpu_cannot_do(
    gpu: bool, changes: dict[str, Values], words: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    (problem,) = problems_of(minimal(**changes))
    for word in words:
        assert word in problem
    engine = {"engine": {**changes.get("engine", {}), "device": "cpu"}}
    parse(minimal(**(changes | engine)), "it.toml", Path("/nowhere"))


@pytest.mark.parametrize(
    "changes",
    [
        {"estimator": {"perturbation": "inplace"}},
        {"estimator": {"perturbation": "inplace"}, "model": {"dtype": "bfloat16"}, "trainable": {"kind": "lora"}},
        {"estimator": {"noise": "gaussian"}, "model": {"dtype": "bfloat16"}},
        {"reuse": {"policy": "reflected"}, "estimator": {"probes": 2}},
        {"reuse": {"policy": "transported"}, "estimator": {"kind": "one_sided"}},
        {"reuse": {"policy": "transported"}, "trainable": {"kind": "lora"}},
        {**debiased("transported"), "estimator": {"kind": "one_sided", "probes": 2, "normalise": True}},
        {"estimator": {"kind": "jvp"}, "reuse": {"policy": "exact"}},
        {"engine": {"kind": "sglang", "arguments": {"log_level": "info"}}, "trainable": {"kind": "lora"}},
        {"engine": {"kind": "sglang"}, "estimator": {"perturbation": "inplace"}},
        {"engine": {"kind": "sglang"}, "trainable": {"kind": "layers", "first": 1, "last": 2}},
        {"engine": {"kind": "sglang", "url": "http://localhost:1", "timeout": 5}, "reuse": {"policy": "exact"}},
        {"engine": {"compute_dtype": "bfloat16"}, "epsilon": {"kind": "adaptive"}},
        {"engine": {"compute_dtype": "float32"}, "estimator": {"kind": "one_sided"}},
    ],
    ids=str,
)
def test_possible_combinations_are_let_through(changes: dict[str, Values]) -> None:
    parse(minimal(**changes), "it.toml", Path("/nowhere"))


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


def test_all_faults_are_reported_at_once() -> None:
    values = minimal(
        model={"dtype": "int8"},
        trainable={"kind": "lowrank"},
        task={"options": [" one"], "prompt": "{text}", "train": "x.jsonl"},
        estimator={"perturbation": "inplace", "noise": "gaussian"},
        optimizer={"lr": "x", "steps": 0, "stepz": 3},
        epsilon={"value": 0.0},
        run={"out": None},
        modle={"path": "m"},
    )
    with pytest.raises(ConfigError) as caught:
        parse(values, "it.toml", Path("/nowhere"))
    starts = {problem.partition(":")[0] for problem in caught.value.problems}
    assert starts == {
        "[modle]",
        "[model] dtype",
        "[trainable] kind",
        "[task] options",
        "[estimator] perturbation",
        "[optimizer] lr",
        "[optimizer] steps",
        "[optimizer] stepz",
        "[epsilon] value",
        "[run] out",
    }
    assert len(caught.value.problems) == 10
    message = str(caught.value)
    assert message.startswith("it.toml: 10 problems in the configuration:")
    assert message.count("\n  - ") == 10


def test_one_problem_is_counted_in_the_singular() -> None:
    with pytest.raises(ConfigError, match=r"^it\.toml: 1 problem in the configuration:\n  - \[optimizer\] lr: "):
        parse(minimal(optimizer={"lr": -1.0}), "it.toml", Path("/nowhere"))


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


def test_a_model_path_is_relative_to_the_configuration_like_data_paths(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    for given, meant in (("models/mine", str(tmp_path / "models" / "mine")), ("some/hub-id", "some/hub-id")):
        config = parse(minimal(model={"path": given}), "it.toml", tmp_path)
        assert (config.model.path, config.values["model"]["path"]) == (meant, meant)
    assert not config.model.trust_remote_code
    assert parse(minimal(model={"trust_remote_code": True}), "it.toml", tmp_path).model.trust_remote_code
