"""Races to a score: every learner trains and stops, none finds anything on disk, and a linear probe runs beside them."""

import json
from argparse import Namespace
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import benching
import pytest
import tiny
import torch
from benching import ACTIVATED, Ticks, engine_of

from twinpass.bench import rivals
from twinpass.bench.probe import LinearProbe, regress
from twinpass.bench.race import race, suiting
from twinpass.cli.bench import joined
from twinpass.cli.main import main
from twinpass.config.engines import TorchSettings
from twinpass.config.load import load_config
from twinpass.errors import ConfigError
from twinpass.estimate.spsa import Spsa
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Lora

untold = benching.untold

pytestmark = pytest.mark.usefixtures("any_processor")


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


def test_a_race_has_a_clock_of_its_own(tmp_path: Path) -> None:
    config = load_config(tiny.config(tmp_path, **ACTIVATED), ["optimizer.schedule=plateau", "run.eval_every=2"])
    with pytest.raises(ConfigError, match="a clock of its own"):
        race(config, 1.1, 1e9, {"twinpass": 2}, lambda *point: None, ["twinpass"])


@pytest.mark.usefixtures("untold")
def test_every_method_of_a_race_trains_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinpass.bench.race.time", Ticks())
    config = load_config(tiny.config(tmp_path, **ACTIVATED))
    config = replace(config, optimizer=replace(config.optimizer, steps=4))
    told: list[tuple[str, int]] = []
    every = {"twinpass": 2, "lean": 2, "naive": 2, "first-order": 2}
    names = list(every)
    found = race(config, 1.1, 1e9, every, lambda method, step, seconds, accuracy: told.append((method, step)), names)
    assert told == [(method, step) for method in every for step in (0, 2, 4)]
    assert found["methods"]["naive"]["forwards"] == 2 * found["methods"]["lean"]["forwards"] == 5 * 4 * 2 * 2
    assert found["methods"]["first-order"]["forwards"] == 5 * 4 * 3, "options of one token share their input"
    assert found["methods"]["twinpass"]["forwards"] > 0
    for name, method in found["methods"].items():
        assert method["seconds_to_target"] is None
        seconds = [point["seconds"] for point in method["course"]]
        assert seconds[0] == 0.0
        assert name == "twinpass" or seconds == [0, 2, 4], "a second a step, evaluations not counted"
        assert method["peak_rss_bytes"] is None


def test_plain_mezo_on_all_tokens_has_a_rate_of_its_own(tmp_path: Path) -> None:
    config = load_config(tiny.config(tmp_path, **ACTIVATED))
    assert rivals.mezo_lr(config) == rivals.MEZO_LR != config.optimizer.lr
    everywhere = replace(config, trainable=Lora())
    assert rivals.mezo_lr(everywhere) == config.optimizer.lr


@pytest.mark.usefixtures("untold")
def test_a_race_ends_at_the_target_and_in_time(tmp_path: Path) -> None:
    config = load_config(tiny.config(tmp_path, **ACTIVATED))
    every = {"twinpass": 2, "lean": 2}
    early = race(config, 0.0, 1e9, every, lambda *args: None, list(every))
    assert all(method["seconds_to_target"] == 0.0 for method in early["methods"].values())
    late = race(config, 1.1, 1e-9, every, lambda *args: None, list(every))
    assert all(len(method["course"]) == 2 for method in late["methods"].values())


def test_the_other_learners_race_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by its own settings and beside its own peak, with a linear probe; a race in two parts is one."""
    monkeypatch.setattr("twinpass.bench.race.peaks", lambda config, modes: {mode: f"peak of {mode}" for mode in modes})
    sections = {**ACTIVATED, "reuse": {"policy": "activated", "spill": str(tmp_path / "kv")}}
    config = load_config(tiny.config(tmp_path, **sections))
    every = {"linear-probe": 4, "informed": 2, "backprop": 30, "feedback": 30}
    found = race(config, 1.1, 1e9, every, lambda *point: None, list(every))
    steps = {name: [point["step"] for point in method["course"]] for name, method in found["methods"].items()}
    own = {"linear-probe": [0, 4, 4, 12], "informed": [*range(0, 13, 2)]}
    assert steps == {**own, "backprop": [0, 30, 40], "feedback": [0, 30, 60]}
    assert found["methods"]["linear-probe"]["forwards"] == 12
    peaks = {name: method["peak_rss_bytes"] for name, method in found["methods"].items()}
    modes = {"linear-probe": "probe", "informed": "informed", "backprop": "exact", "feedback": "fed_back"}
    assert peaks == {name: f"peak of {mode}" for name, mode in modes.items()}
    assert found["inference_peak_rss_bytes"] == "peak of inference"
    for method in found["methods"].values():
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


@pytest.mark.parametrize("said", [{"noise": "gaussian"}, {"perturbation": "inplace"}])
def test_learners_of_other_kinds_do_not_take_over_how_weights_are_perturbed(
    tmp_path: Path, said: dict[str, str]
) -> None:
    """An exact gradient is taken along no direction, and fitted ones have the noise that they are measured with."""
    config = load_config(tiny.config(tmp_path, **ACTIVATED, engine={**said, "chunk_rows": 99}))
    for other in (rivals.exact(config), rivals.informed(config)):
        assert other.engine == TorchSettings(chunk_rows=99)


def test_races_of_public_rows_have_a_sound_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    module: Any = import_module("race")
    rows = tmp_path / "rows.txt"
    rows.write_text("NUM:dist How far is it ?\nHUM:ind Who ?\n")
    args = Namespace(file=rows, train=1, held_out=1, model="smollm2")
    config = load_config(module._write(tmp_path, module.KINDS["trec"], args))
    assert isinstance(config.estimator, Spsa)
    assert config.engine.noise == "gaussian"


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
