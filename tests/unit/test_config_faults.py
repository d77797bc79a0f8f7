"""Every fault of a configuration is named with section and key."""

from pathlib import Path

import pytest
from configurations import Values, debiased, joined, minimal, problems_of

from twinpass.config.load import parse
from twinpass.errors import ConfigError

pytestmark = pytest.mark.usefixtures("any_processor")


def test_faults_of_all_tables_are_reported_at_once() -> None:
    values = minimal(
        epsilon={"kind": "join", "schedules": [{"valu": 1.0}, 3, {"value": 0.0}], "boundaries": [1, 2]},
        reuse={"policy": "debiased", "inner": {"policy": "frozen", "check": -1.0, "chek": 1.0}},
    )
    starts = [problem.partition(":")[0] for problem in problems_of(values)]
    epsilon = ["[epsilon.schedules.0] valu", "[epsilon.schedules.1]", "[epsilon.schedules.2] value"]
    assert starts[:3] == epsilon
    assert set(starts[3:]) == {"[reuse.inner] check", "[reuse.inner] chek"}


SPSA: Values = {"estimator": {"kind": "spsa"}}
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
    ({"reuse": {"policy": "invariant"}, **SPSA}, ("[reuse] policy: 'invariant' shares the layers below", "there are none")),
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
        {"reuse": {"policy": "frozen"}, "engine": {"perturbation": "inplace"}},
        ("[reuse] policy: 'frozen' needs all lanes in one pass", "[engine] perturbation = \"tandem\""),
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
            (
                {"engine": {"kind": "sglang", "perturbation": "inplace"}},
                ("[engine] perturbation: on \"sglang\" adapters are", "\"tandem\""),
            ),
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
    ({"objective": {"kind": "accuracy"}, "estimator": {"kind": "jvp"}}, ("[objective] kind: this one has no derivative",)),
    ({"objective": {"kind": "accuracy"}, "trainable": {"kind": "informed"}}, ("[objective] kind: this one has no derivative",)),
    ({"optimizer": {"lr": 1e-3, "decay": 1.0}, **SPSA}, ("[optimizer] decay: it pulls adapters back",)),
    ({"optimizer": {"kind": "adamw", "clip": 4.0}, "trainable": {"kind": "lora"}}, ("[optimizer] clip: no such key here, but with kind = 'sgd'",)),
    ({"optimizer": {"kind": "adamw", "lr": 1e-3, "decay": 1e3}, "trainable": {"kind": "lora"}}, ("[optimizer] decay: lr times decay is 1",)),
    ({"optimizer": {"kind": "sgd", "lr": 1e-3, "decay": 1e3}, "trainable": {"kind": "lora"}}, ("[optimizer] decay: lr times decay is 1, and takes all",)),
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
    ({"optimizer": {"lr": float("inf")}, **SPSA}, ("[optimizer] lr:", "finite", "got inf")),
    ({"optimizer": {"lr": float("inf")}}, ("[optimizer] lr:", "less than or equal to 1", "got inf")),
    ({"optimizer": {"steps": 0}}, ("[optimizer] steps:", "got 0")),
    ({"optimizer": {"clip": -1.0}, **SPSA}, ("[optimizer] clip:", "got -1.0")),
    ({"optimizer": {"schedule": "square"}}, ("[optimizer] schedule:", "'linear'", "got 'square'")),
    ({"epsilon": {"value": -1e-3}}, ("[epsilon] value:", "got -0.001")),
    ({"estimator": {"probes": 0}}, ("[estimator] probes:", "got 0")),
    ({"engine": {"noise": "cauchy"}}, ("[engine] noise:", "'rademacher'", "got 'cauchy'")),
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
        (
            {"engine": {"compute_dtype": "bfloat16", **engine}, "estimator": estimator},
            ("[engine] compute_dtype: \"bfloat16\" keeps what two signs", "\"spsa\"", "[engine] perturbation = \"tandem\""),
        )
        for engine, estimator in (({}, {"kind": "one_sided"}), ({}, {"kind": "jvp"}), ({"perturbation": "inplace"}, {}))
    ),
    *(
        (
            {"engine": {"compute_dtype": "bfloat16"}, "estimator": {"kind": kind}, "optimizer": {"kind": optimizer}, "trainable": trainable},
            ("[engine] compute_dtype: \"bfloat16\" rounds weights", "\"activated\"", "leave it out"),
        )
        for kind, optimizer, trainable in (
            ("backprop", "adamw", {"kind": "layers", "first": 1, "last": 2}),
            ("feedback", "relative", {"kind": "projections"}),
        )
    ),
    (
        {"engine": {"compute_dtype": "bfloat16"}, "reuse": {"policy": "transported"}},
        ("[engine] compute_dtype: \"bfloat16\" needs each lane's own", "[reuse] policy"),
    ),
    ({"engine": {"perturbation": "inplace", "noise": "gaussian"}}, ("[engine] perturbation: 'inplace'", "rademacher")),
    ({"engine": {"kind": "sglang", "perturbation": "inplace", "noise": "gaussian"}}, ("[engine] perturbation: 'inplace'",)),
    # keys that stood elsewhere in earlier versions
    ({"estimator": {"noise": "gaussian"}}, ("[estimator] noise: moved to [engine]", "[engine] noise = 'gaussian'")),
    ({"estimator": {"perturbation": "inplace"}}, ("[estimator] perturbation: moved to [engine]", "[engine] perturbation = 'inplace'")),
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
        model={"dtype": "bfloat16"}, engine={"perturbation": "inplace"}, trainable={"kind": kind, **kinds[kind]}
    )
    (problem,) = problems_of(values)
    assert problem.startswith("[engine] perturbation: 'inplace'")
    assert "[model] dtype" in problem


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": {"perturbation": "inplace"}},
        {"engine": {"perturbation": "inplace"}, "model": {"dtype": "bfloat16"}, "trainable": {"kind": "lora"}},
        {"engine": {"noise": "gaussian"}, "model": {"dtype": "bfloat16"}},
        {"reuse": {"policy": "reflected"}, "estimator": {"probes": 2}},
        {"reuse": {"policy": "transported"}, "estimator": {"kind": "one_sided"}},
        {"reuse": {"policy": "transported"}, "trainable": {"kind": "lora"}},
        {**debiased("transported"), "estimator": {"kind": "one_sided", "probes": 2, "normalise": True}},
        {"estimator": {"kind": "jvp"}, "reuse": {"policy": "exact"}},
        {"engine": {"kind": "sglang", "arguments": {"log_level": "info"}}, "trainable": {"kind": "lora"}},
        {"engine": {"kind": "sglang", "perturbation": "inplace"}},
        {"engine": {"kind": "sglang"}, "trainable": {"kind": "layers", "first": 1, "last": 2}},
        {"engine": {"kind": "sglang", "url": "http://localhost:1", "timeout": 5}, "reuse": {"policy": "exact"}},
        {"engine": {"compute_dtype": "bfloat16"}, "epsilon": {"kind": "adaptive"}},
        {
            "engine": {"compute_dtype": "bfloat16"},
            "trainable": {"kind": "lora"},
            "estimator": {"kind": "backprop"},
            "optimizer": {"kind": "adamw", "lr": 1e-3},
        },
        {"engine": {"compute_dtype": "float32"}, "estimator": {"kind": "one_sided"}},
    ],
    ids=str,
)
def test_possible_combinations_are_let_through(changes: dict[str, Values]) -> None:
    parse(minimal(**changes), "it.toml", Path("/nowhere"))


def test_all_faults_are_reported_at_once() -> None:
    values = minimal(
        model={"dtype": "int8"},
        trainable={"kind": "lowrank"},
        task={"options": [" one"], "prompt": "{text}", "train": "x.jsonl"},
        engine={"perturbation": "inplace", "noise": "gaussian"},
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
        "[engine] perturbation",
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
