"""``twinpass bench``: rivals that compute what they say, and results that add up."""

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from architectures import REQUESTS

from twinpass.bench import gemm, phases, population
from twinpass.bench.naive import completion_logprobs, lean_logprobs
from twinpass.bench.peak import RESET, peaks
from twinpass.bench.phases import PHASES, Clock
from twinpass.bench.probe import LinearProbe, regress
from twinpass.bench.race import race, suiting
from twinpass.bench.rivals import first_order, naive
from twinpass.cli.bench import WORKLOADS, joined
from twinpass.cli.main import main
from twinpass.config.compose import build_embedded
from twinpass.config.load import load_config
from twinpass.core import BASE, Lane, Probe
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import DataError
from twinpass.model.causal import CausalModel
from twinpass.objective.choice import Choice
from twinpass.phases import phase

pytestmark = pytest.mark.usefixtures("any_processor")

FULL: dict[str, Any] = {"trainable": {"kind": "full"}, "estimator": {"probes": 1}, "optimizer": {"batch_size": 4}}
ACTIVATED = {**FULL, "trainable": {"kind": "activated", "rank": 2, "targets": ["q_proj", "v_proj"]}}
KEYS = {
    "workload",
    "dtype",
    "naive_step_seconds",
    "step_seconds",
    "ratio",
    "gemm_fraction",
    "noise_update_fraction",
    "hit_rate",
    "peak_rss_bytes",
    "naive_peak_rss_bytes",
    "inference_peak_rss_bytes",
    "relative_error",
    "versions",
    "machine",
    "commit",
}


def engine_of(path: Path) -> Any:
    session = build_embedded(load_config(path))
    assert isinstance(session.engine, TorchEngine)
    return session


def test_plain_mezo_scores_what_the_engine_scores(tmp_path: Path) -> None:
    """Padding, masks and all options on their own lead to the same losses, before and after its perturbation is undone."""
    path = tiny.config(tmp_path, **FULL)
    session, rival = engine_of(path), naive(load_config(path), Choice())
    examples, objective = session.plan.train[:4], session.plan.objective
    scores = session.engine.score(objective.requests(examples), [BASE]).values[0]
    assert rival.loss(examples) == pytest.approx(objective.loss(examples, scores), abs=1e-5)
    assert rival.metric(examples) == objective.metric(examples, scores)
    rival.step(examples, 1, 1e-3, 0.0)
    assert rival.loss(examples) == pytest.approx(objective.loss(examples, scores), abs=1e-5)


def test_a_step_of_plain_mezo_is_that_of_algorithm_1(tmp_path: Path) -> None:
    path = tiny.config(tmp_path, **FULL)
    config = load_config(path)
    rival, before = naive(config, Choice()), naive(config, Choice())
    examples, lr, eps = build_embedded(config).plan.train[:4], 1e-2, 1e-3
    plus, minus = rival.step(examples, 5, eps, lr)
    assert plus != minus
    torch.manual_seed(5)
    g = (plus - minus) / (2 * eps)
    for old, new in zip(before.parameters, rival.parameters, strict=True):
        z = torch.normal(mean=0, std=1, size=old.shape)
        assert torch.allclose(new, old - lr * g * z, atol=1e-6)


def test_the_trained_weights_are_those_of_the_configuration(tmp_path: Path) -> None:
    path = tiny.config(tmp_path, **{**FULL, "trainable": {"kind": "layers", "first": 1, "last": 2}})
    config = load_config(path)
    assert sum(p.numel() for p in naive(config, Choice()).parameters) == sum(
        p.numel() for p in config.trainable.attach(build_embedded(config).engine.model, 0).parameters.values()
    )


def test_adapters_of_upper_layers_are_those_of_upper_layers(tmp_path: Path) -> None:
    lora = {**FULL, "trainable": {"kind": "lora", "rank": 2, "alpha": 4.5, "first": 1}}
    config = load_config(tiny.config(tmp_path, **lora))
    rival: Any = naive(config, Choice())
    trained = [name for name, _ in rival.model.named_parameters() if "lora_" in name]
    assert trained
    assert all(".layers.1." in name for name in trained)
    scalings = {
        tuple(m.scaling.values())
        for m in rival.model.modules()
        if hasattr(m, "scaling") and m.__class__.__module__.startswith("peft")
    }
    assert scalings == {(2.25,)}


def test_first_order_lora_learns(tmp_path: Path) -> None:
    config = load_config(tiny.config(tmp_path, **ACTIVATED))
    rival, examples = first_order(config, Choice()), build_embedded(config).plan.train[:8]
    losses = [rival.step(examples) for _ in range(30)]
    assert losses[-1] < losses[0]


def no_memory_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinpass.bench.peak.RESET", Path("/nowhere"))


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks are not measured, as where the system does not tell them: each takes a process of its own, and seconds."""
    no_memory_told(monkeypatch)


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.full)], ids=["untold", "memory"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether peaks are measured."""
    if not request.param:
        no_memory_told(monkeypatch)
    return bool(request.param)


def fits(peak: int | None, memory: bool) -> bool:
    return (peak or 0) > 2**20 if memory else peak is None


class Ticks:
    """A clock that shows these times, one a look; after them, one second more each time."""

    def __init__(self, *times: float) -> None:
        self._times = list(times)
        self._now = 0.0

    def perf_counter(self) -> float:
        self._now = self._times.pop(0) if self._times else self._now + 1.0
        return self._now


def test_clocks_give_every_phase_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "time", Ticks())
    session = engine_of(tiny.config(tmp_path, **FULL))
    requests = session.plan.objective.requests(session.plan.train[:4])
    clock = Clock()
    with clock.running():
        session.engine.score(requests, [Lane(Probe(1), 1, 1e-3), Lane(Probe(1), -1, 1e-3)])
        session.engine.update([])
    shares = clock.shares()
    assert tuple(shares) == PHASES
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(share > 0 for share in shares.values())
    counted = dict(clock.seconds)
    session.engine.score(requests, [BASE])
    assert clock.seconds == counted


def test_a_phase_takes_its_time_from_the_one_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "time", Ticks(0, 0, 1, 3, 10, 12, 13))
    clock = Clock()
    with clock.running():
        phase("linear")(phase("noise")(lambda: None))()
    assert {name: seconds for name, seconds in clock.seconds.items() if seconds} == {
        "other": 1 + 1,
        "linear": 2 + 2,
        "noise": 7,
    }


def test_forming_a_product_s_weights_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call, for no rows, tells how long; it is no part of the step's time."""
    monkeypatch.setattr(phases, "time", Ticks(0, 0, 1, 2, 4, 14, 15, 16))
    clock, rows = Clock(), list[tuple[int, int]]()

    @phase("product")
    def multiply(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> str:
        rows.append((x.shape[1], y.shape[1]))
        return "done"

    with clock.running():
        assert phase("linear")(multiply)(np.zeros((2, 3)), y=np.zeros((2, 3, 4))) == "done"
    assert rows == [(0, 0), (3, 3)]
    assert {name: seconds for name, seconds in clock.seconds.items() if seconds} == {
        "other": 1 + 1,
        "linear": 1 + 11 - 2,
        "noise": 2,
    }


@pytest.mark.parametrize(("sections", "times"), [(FULL, 2), (ACTIVATED, 1)], ids=["full", "activated"])
def test_products_are_those_of_distinct_tokens(tmp_path: Path, sections: Mapping[str, Any], times: int) -> None:
    """Each lane multiplies its own weights, or all share the base's; rows are what the accounting counts."""
    session = engine_of(tiny.config(tmp_path, **sections))
    engine = session.engine
    lanes = [Lane(Probe(1), 1, 1e-3), Lane(Probe(1), -1, 1e-3)]
    requests = session.plan.objective.requests(session.plan.train[:4])
    engine.score(requests, lanes)
    with gemm.recorded(engine.model, set(engine.parameters), len(lanes)) as shapes:
        work = engine.score(requests, lanes).work
    assert shapes
    assert {shape.times for shape in shapes} == {times}
    hidden = engine.model.config.hidden_size
    queries = [s for s in shapes if s.columns == hidden and s.rows * s.times * engine.layers == work.computed]
    assert len(queries) >= engine.layers
    handles = [module._forward_pre_hooks for module in engine.model.modules()]
    assert not any(handles)


def test_a_benchmark_says_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str], memory: bool) -> None:
    path = tiny.config(tmp_path, **ACTIVATED)
    file, plot = tmp_path / "result.json", tmp_path / "plot.png"
    chosen = ["--repeats", "2", "--probes", "2", "--out", str(file), "--json", "--plot", str(plot)]
    assert main(["bench", str(path), *chosen]) == 0
    found = json.loads(file.read_text())
    assert found.keys() >= KEYS
    assert found["ratio"] == pytest.approx(found["naive_step_seconds"] / found["step_seconds"])
    assert found["gemm_fraction"] == pytest.approx(found["gemm_seconds"] / found["step_seconds"])
    low, high = found["spread"]["step_seconds"]
    assert low <= found["step_seconds"] <= high
    assert found["hit_rate"] > 0.5
    assert 0 < found["relative_error"] < 0.05
    assert all(fits(found[f"{prefix}peak_rss_bytes"], memory) for prefix in ("", "naive_", "inference_"))
    assert plot.stat().st_size > 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == found


@pytest.mark.usefixtures("untold")
def test_products_in_bfloat16_are_timed_beside_our_own_in_float32(tmp_path: Path) -> None:
    path, file = tiny.config(tmp_path, **FULL), tmp_path / "result.json"
    chosen = ["--compute-dtype", "bfloat16", "--repeats", "2", "--probes", "8", "--out", str(file)]
    assert main(["bench", str(path), *chosen]) == 0
    found = json.loads(file.read_text())
    assert found["config"]["engine"]["compute_dtype"] == found["compute_dtype"] == "bfloat16"
    low, high = found["spread_float32"]["ours_float32_step_seconds"]
    assert 0 < low <= found["ours_float32_step_seconds"] <= high
    slow, fast = found["spread_float32"]["ratio_to_float32"]
    assert slow <= found["ratio_to_float32"] <= fast
    assert 1e-3 < found["relative_error"] < 0.1


@pytest.mark.usefixtures("untold")
def test_a_race_begins_with_nothing_on_disk(tmp_path: Path) -> None:
    """Keys and values of an earlier run would be read instead of computed, and their seconds left out."""
    own = tmp_path / "kv-cache"
    sections = {**ACTIVATED, "reuse": {"policy": "activated", "spill": str(own)}}
    config = load_config(tiny.config(tmp_path, **sections))
    assert config.values["reuse"]["spill"] == str(own)
    config = replace(config, optimizer=replace(config.optimizer, steps=2))
    told: list[int] = []
    race(config, 1.1, 1e9, {"twinpass": 2}, lambda method, step, *point: told.append(step), ["twinpass"])
    assert told == [0, 2]
    assert not own.exists()


def test_sums_and_differences_take_half_as_many_products_again() -> None:
    assert gemm.paired([gemm.Shape(10, 3, 4, 2)]) == [gemm.Shape(20, 3, 4), gemm.Shape(10, 3, 4)]
    assert gemm.paired([gemm.Shape(20, 3, 4)]) == [gemm.Shape(20, 3, 4)]


def test_every_method_of_a_race_trains_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: bool) -> None:
    monkeypatch.setattr("twinpass.bench.race.time", Ticks())
    config = load_config(tiny.config(tmp_path, **ACTIVATED))
    config = replace(config, optimizer=replace(config.optimizer, steps=4))
    told: list[tuple[str, int]] = []
    every = {"twinpass": 2, "lean": 2, "naive": 2, "first-order": 2}
    names = list(every)
    found = race(config, 1.1, 1e9, every, lambda method, step, seconds, accuracy: told.append((method, step)), names)
    assert told == [(method, step) for method in every for step in (0, 2, 4)]
    assert found["methods"]["naive"]["forwards"] == 2 * found["methods"]["lean"]["forwards"] == 5 * 4 * 2 * 2
    assert found["methods"]["twinpass"]["forwards"] > 0
    for name, method in found["methods"].items():
        assert method["seconds_to_target"] is None
        seconds = [point["seconds"] for point in method["course"]]
        assert seconds[0] == 0.0
        assert name == "twinpass" or seconds == [0, 2, 4], "a second a step, evaluations not counted"
        assert fits(method["peak_rss_bytes"], memory)
    few = ["twinpass", "lean"]
    early = race(config, 0.0, 1e9, every, lambda *args: None, few)
    assert all(method["seconds_to_target"] == 0.0 for method in early["methods"].values())
    late = race(config, 1.1, 1e-9, every, lambda *args: None, few)
    assert all(len(method["course"]) == 2 for method in late["methods"].values())


def test_the_other_learners_race_too(tmp_path: Path, memory: bool) -> None:
    """Each by its own settings, beside a linear probe; a race in two parts is one."""
    sections = {**ACTIVATED, "reuse": {"policy": "activated", "spill": str(tmp_path / "kv")}}
    config = load_config(tiny.config(tmp_path, **sections))
    every = {"linear-probe": 4, "informed": 2, "backprop": 30}
    found = race(config, 1.1, 1e9, every, lambda *point: None, list(every))
    steps = {name: [point["step"] for point in method["course"]] for name, method in found["methods"].items()}
    assert steps == {"linear-probe": [0, 4, 4, 12], "informed": [*range(0, 13, 2)], "backprop": [0, 30, 60]}
    assert found["methods"]["linear-probe"]["forwards"] == 12
    for method in found["methods"].values():
        assert fits(method["peak_rss_bytes"], memory)
        assert set(method["seconds_to"]) == {"0.70", "0.80", "0.85", "0.87", "0.90"}
    about = {
        "workload": "it",
        "config": {},
        "commit": "a",
        "machine": {},
        "versions": {},
        "target": 1,
        "limit_seconds": 2,
    }
    one, other = ({**about, "methods": {name: found["methods"][name]}} for name in ("informed", "backprop"))
    assert list(joined(one, other)["methods"]) == ["informed", "backprop"]
    assert joined({**one, "commit": "b"}, other) == other


@pytest.mark.usefixtures("untold")
def test_texts_race_to_nats(tmp_path: Path) -> None:
    task = {
        "kind": "completion",
        "train": "train.jsonl",
        "eval": "eval.jsonl",
        "prompt": "Review:",
        "suffix": " Sentiment:",
    }
    sections = {**ACTIVATED, "task": {**task, "completion": " {text}", "end": False}}
    config = load_config(tiny.config(tmp_path, **sections))
    assert "linear-probe" not in suiting(config)
    every, names = {"backprop": 60, "first-order": 8}, ["backprop", "first-order"]
    found = race(config, 0.1, 1e9, every, lambda *point: None, names)["methods"]
    for name in names:
        nats = [point["nats"] for point in found[name]["course"]]
        assert nats[-1] < nats[0]
        assert found[name]["seconds_to_target"] is None
    assert found["backprop"]["course"][0]["nats"] == pytest.approx(found["first-order"]["course"][0]["nats"], abs=1e-5)


def test_a_linear_probe_finds_the_layer_that_tells_labels_apart() -> None:
    labels = torch.arange(60) % 3
    states = torch.randn(60, 2, 8, generator=torch.Generator().manual_seed(3))
    states[:, 1, :3] += 4 * torch.nn.functional.one_hot(labels, 3)
    probe = LinearProbe(CausalModel(tiny.model()))
    fitted = probe.fit(states, labels)
    assert fitted.layer == 1
    assert fitted.accuracy(states, labels) > 0.95
    other = regress(states, labels, 0, 0.1)
    assert other.accuracy(states, labels) < 0.8


def test_a_probe_reads_hidden_states_of_the_last_prompt_token(tmp_path: Path) -> None:
    examples = engine_of(tiny.config(tmp_path, **ACTIVATED)).plan.train[:5]
    model: Any = tiny.model()
    probe = LinearProbe(CausalModel(model))
    states = probe.states(examples)
    assert states.shape == (5, len(probe.layers), 32)
    for i, example in enumerate(examples):
        whole = model(input_ids=torch.tensor([example.prompt]), output_hidden_states=True).hidden_states
        for k, layer in enumerate(probe.layers):
            assert torch.allclose(states[i, k], whole[layer][0, -1], atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt"])
def test_lean_scores_are_the_plain_ones(name: str) -> None:
    """Left padding, one sequence for options of one token, few logits: the same log-probabilities."""
    model = tiny.model(name)
    with torch.no_grad():
        plain, lean = (read(model, REQUESTS) for read in (completion_logprobs, lean_logprobs))
    for a, b in zip(plain, lean, strict=True):
        assert torch.allclose(a, b, atol=2e-4)


def test_the_lean_step_is_the_plain_one(tmp_path: Path) -> None:
    config = load_config(tiny.config(tmp_path, **ACTIVATED))
    plain, lean = naive(config, Choice()), naive(config, Choice(), lean=True)
    lean.model.load_state_dict(plain.model.state_dict())
    examples = build_embedded(config).plan.train[:4]
    for seed in (1, 2):
        assert plain.step(examples, seed, 1e-2, 1e-2) == pytest.approx(lean.step(examples, seed, 1e-2, 1e-2), abs=1e-4)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(plain.parameters, lean.parameters, strict=True))


def test_public_rows_are_read_in_their_own_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    module: Any = import_module("race")
    assert module.trec("NUM:dist How far is it ?\n\nHUM:ind Who ?\n") == [
        {"question": "How far is it ?", "label": "number"},
        {"question": "Who ?", "label": "person"},
    ]
    assert module.gsm8k(json.dumps({"question": "Q", "answer": "a b " + "c " * 40}))[0]["answer"].split()[:3] == [
        "a",
        "b",
        "c",
    ]


@pytest.mark.full
def test_peaks_are_those_of_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(tiny.config(tmp_path, **FULL))
    (peak,) = peaks(config, ("inference",)).values()
    assert fits(peak, RESET.exists())
    no_memory_told(monkeypatch)
    assert peaks(config, ("ours",)) == {"ours": None}


@pytest.mark.parametrize(
    ("arguments", "sections", "message"),
    [
        (["--repeats", "0"], {}, "--repeats 0, --probes 4: expected at least 1 and 2"),
        (["--probes", "1"], {}, "expected at least 1 and 2"),
        (["--target", "0.9"], {}, "--target: no effect here, only time-to-accuracy is a race"),
        (["--out", "/nowhere/at/all.json"], {}, "all.json: its folder does not exist"),
        (["--batch", "0"], {}, "batch_size"),
        ([], {"estimator": {"kind": "one_sided"}}, 'set kind = "spsa" to compare'),
    ],
)
def test_what_cannot_be_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sections: dict[str, Any], message: str
) -> None:
    path = tiny.config(tmp_path, **{**FULL, **sections})
    assert main(["bench", str(path), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_names_are_told_where_there_is_no_such_workload(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("reviews-0shot", "nonsense"):
        assert main(["bench", name]) == 2
        message = capsys.readouterr().err
        assert "activated-8shot" in message
        assert "checkout" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "85"], "--target 85, --seconds 240: expected a share"),
        (["--repeats", "2", "--probes", "3"], "--repeats and --probes: no effect here"),
    ],
)
def test_what_cannot_be_raced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert main(["bench", "time-to-accuracy", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_population_writes_beside_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All write as much; phases are the whole; the model that public strategies perturb is the configuration's again."""
    monkeypatch.chdir(Path(__file__).parents[2])
    sets = [*WORKLOADS["rewards"][1], f"model.path={tiny.save(tmp_path / 'model')}", "task.prompt=a {question} b"]
    config = load_config(Path("examples/gsm8k.toml"), sets)
    written: list[int] = []
    generate = TorchEngine.generate

    def counted(self: TorchEngine, prompts: Any, lanes: Any, *args: Any) -> Any:
        found = generate(self, prompts, lanes, *args)
        written.append(sum(len(text.tokens) for own in found.values for text in own))
        return found

    monkeypatch.setattr(TorchEngine, "generate", counted)
    result = population.measure(config, population.Size(lanes=4, prompts=2, tokens=3), 1)
    assert set(written) == {4 * 2 * 3}
    for kind in ("activated", "lora"):
        found = result[kind]
        assert sum(found["phases"].values()) == pytest.approx(1)
        assert min(found["phases"][name] for name in ("prefill", "decode", "choosing", "reward")) > 0
        assert found["tokens_per_second"] * found["seconds"] == pytest.approx(24)
        assert found["of_bare"] == pytest.approx(found["bare"]["seconds"] / found["seconds"])
        assert found["ratio"] == pytest.approx(result["public"]["seconds"] / found["seconds"])
    assert result["activated"]["hit_rate"] > result["lora"]["hit_rate"]
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    about = {"commit": "0123456789abcdef", "machine": {"processor": "some"}}
    section = import_module("page").population({**about, **result})
    row = next(line for line in section.splitlines() if line.startswith("| lora"))
    assert f" | {result['lora']['of_bare']:.2f} | {result['lora']['ratio']:.1f} | " in row
    assert row.count("|") == section.splitlines()[section.splitlines().index(row) - 2].count("|")
    with pytest.raises(DataError, match="9 prompts are asked for, and there are 8"):
        population.measure(config, population.Size(lanes=2, prompts=9, tokens=3), 1)


def test_named_workloads_are_valid_configurations() -> None:
    folder = Path(__file__).parents[2] / "examples"
    for name, (file, sets) in WORKLOADS.items():
        assert load_config(folder / file, sets), name


def test_the_page_of_results_is_what_their_files_say(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    page: Any = import_module("page")
    results = page.read()
    assert page.PAGE.read_text().startswith(page.whole(results)), (
        "how old results are follows, as of the commit it was written at"
    )
    for name, result in results.items():
        assert f"](images/bench/{name}.png)" in page.page(results)
        assert (page.IMAGES / f"{name}.png").exists()
        assert not result["commit"].endswith("-dirty")
