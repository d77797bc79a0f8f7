"""``twinpass bench``: rivals that compute what they say, and results that add up."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import benching
import pytest
import tiny
import torch
from architectures import REQUESTS
from benching import ACTIVATED, FULL, engine_of, fits, no_memory_told

from twinpass.bench import peak, population
from twinpass.bench.naive import completion_logprobs, lean_logprobs
from twinpass.bench.peak import MODES, RESET, peaks
from twinpass.bench.rivals import first_order, naive
from twinpass.cli.bench import WORKLOADS
from twinpass.cli.main import main
from twinpass.config.compose import build_embedded
from twinpass.config.load import load_config
from twinpass.core import BASE
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import DataError
from twinpass.model.causal import is_linear
from twinpass.objective.choice import Choice

memory = benching.memory

pytestmark = pytest.mark.usefixtures("any_processor")
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


@pytest.mark.full
@pytest.mark.skipif(not RESET.exists(), reason="the system does not tell peaks")
@pytest.mark.parametrize("mode", sorted(MODES.keys() - {"ours", "naive", "inference"}))
def test_every_other_rival_has_a_peak(tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str) -> None:
    """Of those that a benchmark's own table leaves out, by what a process of its own would run."""
    file = tmp_path / "twinpass.json"
    file.write_text(json.dumps(dict(load_config(tiny.config(tmp_path, **ACTIVATED)).values)))
    peak.main(str(file), mode)
    assert fits(int(capsys.readouterr().out), memory=True)


def test_no_process_is_begun_where_peaks_are_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_memory_told(monkeypatch)
    monkeypatch.setattr("subprocess.run", None)
    assert peaks(load_config(tiny.config(tmp_path, **FULL)), ("ours",)) == {"ours": None}


@pytest.mark.parametrize(
    ("arguments", "sections", "message"),
    [
        (["--repeats", "0"], {}, "--repeats 0, --probes 4: expected at least 1 and 2"),
        (["--probes", "1"], {}, "expected at least 1 and 2"),
        (["--target", "0.9"], {}, "--target: no effect here, only time-to-accuracy is a race"),
        (["--out", "/nowhere/at/all.json"], {}, "all.json: its folder does not exist"),
        (["--batch", "0"], {}, "batch_size"),
        ([], {"estimator": {"kind": "one_sided"}}, 'set kind = "spsa" to compare'),
        (
            [],
            {"objective": {"kind": "choice", "regularise": "kl"}},
            "[objective] regularise: rivals are held to nothing",
        ),
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


def test_a_population_writes_beside_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All write as much; phases are the whole; the model that public strategies perturb is the configuration's again."""
    monkeypatch.chdir(Path(__file__).parents[2])
    sets = [
        *WORKLOADS["rewards"][1],
        f"model.path={tiny.save(tmp_path / 'model')}",
        "task.prompt=a bad film : {question}",
    ]
    config = load_config(Path("examples/gsm8k.toml"), sets)
    written: list[int] = []
    begun: set[tuple[int, int]] = set()  # lanes, and how many prompts begin otherwise
    generate = TorchEngine.generate

    def counted(self: TorchEngine, prompts: Any, lanes: Any, *args: Any) -> Any:
        found = generate(self, prompts, lanes, *args)
        written.append(sum(len(text.tokens) for own in found.values for text in own))
        begun.add((len(lanes), len({prompt.tokens[:1] for prompt in prompts})))
        return found

    monkeypatch.setattr(TorchEngine, "generate", counted)
    result = population.measure(config, population.Size(lanes=4, prompts=2, tokens=3), 1)
    assert set(written) == {4 * 2 * 3}
    assert begun == {(4, 1), (1, 1), (1, 4)}
    for kind in ("activated", "lora"):
        found = result[kind]
        bare = found["bare"]
        assert sum(found["phases"].values()) == pytest.approx(1) == sum(bare["phases"].values())
        assert min(found["phases"][name] for name in ("prefill", "decode", "choosing", "reward")) > 0
        assert bare["phases"]["reward"] == 0 < min(bare["phases"][name] for name in ("prefill", "decode", "choosing"))
        after, before = (
            sum(own["phases"][name] for name in ("decode", "choosing")) * own["seconds"] for own in (found, bare)
        )
        assert found["of_bare_prompts_read"] == pytest.approx(before / after)
        assert found["tokens_per_second"] * found["seconds"] == pytest.approx(24)
        assert found["of_bare"] == pytest.approx(found["bare"]["seconds"] / found["seconds"])
        assert found["of_apart"] == pytest.approx(found["apart"]["seconds"] / found["seconds"])
        assert found["ratio"] == pytest.approx(result["public"]["seconds"] / found["seconds"])
        assert sum(found["engine_phases"].values()) == pytest.approx(1)
        assert min(found["engine_phases"][name] for name in ("linear", "attention", "logits")) > 0
        products = found["products"]
        assert products["share"] * found["seconds"] == pytest.approx(products["seconds"])
        assert products["ratio"] * products["seconds"] == pytest.approx(result["public"]["seconds"])
        assert products["of_peak"] * products["peak_ratio"] == pytest.approx(products["ratio"])
    weights = sum(module.get_parameter("weight").numel() for module in tiny.model().modules() if is_linear(module))
    rows = 4 * 2 * 3  # each text's last prompt token, and all of its own but the last
    assert result["activated"]["products"]["flops"] == 2 * rows * weights < result["lora"]["products"]["flops"]
    assert result["activated"]["hit_rate"] > result["lora"]["hit_rate"]
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    about = {"commit": "0123456789abcdef", "machine": {"processor": "some"}}
    section = import_module("page").population({**about, **result})
    row, most = (line for line in section.splitlines() if line.startswith("| lora"))
    lora = result["lora"]
    assert (
        f" | {lora['of_bare']:.2f} | {lora['of_apart']:.2f} | {lora['of_bare_prompts_read']:.2f} | {lora['ratio']:.1f} | "
        in row
    )
    assert f" | {lora['ratio']:.1f} | {lora['products']['ratio']:.1f} | {lora['products']['peak_ratio']:.1f} | " in most
    for line in (row, most):
        assert line.count("|") == section.splitlines()[section.splitlines().index(line) - 2].count("|")
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
