"""The embedded engine on a CUDA device beside itself on the CPU: scores agree, weights move by the same bits.

Under Triton's interpreter (``TRITON_INTERPRET=1``, as ``make test-interpreted`` runs this file) the models stay on the CPU, and only
the kernels are Triton's.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import LANES, REQUESTS, TARGETS, build, deviation
from estimating import forward_mode
from kernels_on import INTERPRETED
from reusing import PROMPTS, TERMS, TWO, trainables
from tensors import assert_same_weights
from tiers import some_fast

from twinpass.core import BASE, Request, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.trainable import Activated, Full, Lora, Trainable
from twinpass.perturb import parameters
from twinpass.perturb.backend import triton
from twinpass.perturb.noise import DISTRIBUTIONS
from twinpass.reuse.plan import Spans
from twinpass.reuse.reflected import Reflected

CLOSE = 2e-4
"""float32, in nats: the same numbers summed in another order."""

on_a_gpu = pytest.mark.skipif(INTERPRETED, reason="only a GPU can tell")


@contextmanager
def kernels_of_triton() -> Iterator[None]:
    """Inside the block Triton's kernels are taken for tensors in main memory, where they are interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setattr(parameters, "backend_for", lambda tensor: replace(triton(), devices=("cpu",)))
        yield


def pair(
    name: str, trainable: Trainable, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[TorchEngine, TorchEngine]:
    """On the device, and on the CPU."""
    model: Any = build(name, dtype)
    with kernels_of_triton():
        device = TorchEngine(model if INTERPRETED else model.cuda(), trainable, **options)
    assert device.parameters.backend.kernels.__name__.endswith("triton_kernels")
    return device, TorchEngine(build(name, dtype), trainable, **options)


def assert_close(found: Sequence[Sequence[Any]], expected: Sequence[Sequence[Any]], tolerance: float = CLOSE) -> None:
    for lane, other in zip(found, expected, strict=True):
        assert deviation(lane, other) < tolerance


@pytest.mark.table
@pytest.mark.parametrize("kind", ["full", "lora", "layers", "activated"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_scores_agree_and_weights_are_the_same_bits(name: str, kind: str) -> None:
    trainable, requests = trainables(name)[kind]
    device, host = pair(name, trainable)
    assert device.packs
    assert device.base_hash == host.base_hash
    for lanes in (LANES, TWO):
        found, expected = device.score(requests, lanes), host.score(requests, lanes)
        assert found.work == expected.work
        assert_close(found.values, expected.values)
        for engine in (device, host):
            engine.update(TERMS)
        assert_same_weights(device, host)


@pytest.mark.parametrize("noise", some_fast(DISTRIBUTIONS, ["gaussian"]))
def test_every_noise(noise: Any) -> None:
    device, host = pair("llama-untied", Full(), noise=noise)
    assert_close(device.score(REQUESTS, LANES).values, host.score(REQUESTS, LANES).values)
    for engine in (device, host):
        engine.update(TERMS)
    assert_same_weights(device, host)


@pytest.mark.full
def test_weights_in_bfloat16() -> None:
    device, host = pair("llama", Full(), torch.bfloat16)
    assert_close(device.score(REQUESTS, LANES).values, host.score(REQUESTS, LANES).values, 0.5)
    for engine in (device, host):
        engine.update(TERMS)
    assert_same_weights(device, host)


def test_relative_requests_read_a_few_logits() -> None:
    device, host = pair("llama-untied", Full())
    requests = [replace(request, completion=request.completion[:1], relative=True) for request in REQUESTS]
    found, expected = (engine.score(requests, TWO).values for engine in (device, host))
    for lane, other in zip(found, expected, strict=True):
        a, b = (np.concatenate(scores) for scores in (lane, other))
        assert np.abs((a - a[0]) - (b - b[0])).max() < CLOSE


def test_in_place_restores_the_bits() -> None:
    device, host = pair("llama", Full(), perturbation="inplace")
    before = {name: tensor.clone() for name, tensor in device.parameters.items()}
    lanes = [replace(lane, eps=2.0**-9) for lane in LANES]
    assert_close(device.score(REQUESTS, lanes).values, host.score(REQUESTS, lanes).values)
    device.settle()
    assert all(torch.equal(tensor, before[name]) for name, tensor in device.parameters.items())
    for engine in (device, host):
        engine.update([Term(3, 1e-3), Term(2**62 + 1, -0.07)])
    assert_same_weights(device, host)


def test_activated_prompts_are_found_again() -> None:
    device, host = pair("llama", Activated(2, 4.0))
    device.score(PROMPTS, TWO)
    for engine in (device, host):
        engine.update(TERMS)
    found = device.score(PROMPTS, TWO)
    assert found.work.reused["activated"] > 0
    host.score(PROMPTS, TWO)
    assert found.work == host.score(PROMPTS, TWO).work
    assert_close(found.values, host.score(PROMPTS, TWO).values)


@pytest.mark.full
def test_reflected_lanes() -> None:
    device, host = pair("llama", Full(), reuse=Reflected())
    lanes, spans = [TWO[0], replace(TWO[1], prefix="reflected"), TWO[1]], Spans("prompt", 1)
    found, expected = (engine.score(PROMPTS, lanes, spans) for engine in (device, host))
    assert_close(found.values, expected.values)
    assert found.prefix.errors == pytest.approx(expected.prefix.errors, rel=0.05)


@pytest.mark.parametrize("trainable", [Full(), Lora(2, 4.0, TARGETS["llama"])], ids=["full", "lora"])
def test_reset(trainable: Trainable) -> None:
    base: Mapping[str, Any] = dict(build("llama", torch.float32).named_parameters())
    device, _ = pair("llama", trainable, reload=lambda: base)
    before = {name: tensor.clone() for name, tensor in device.parameters.items()}
    device.update(TERMS)
    device.reset()
    assert all(torch.equal(tensor, before[name]) for name, tensor in device.parameters.items())


@pytest.mark.full
def test_the_benchmark_runs_at_a_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    gpu, page = (import_module(name) for name in ("gpu", "page_gpu"))
    with kernels_of_triton():
        assert gpu.main(["--quick", "--repeats", "1", "--no-kernels", "--json", str(tmp_path / "gpu.json")]) == 0
    result = json.loads((tmp_path / "gpu.json").read_text())
    found = result["sizes"]["tiny"]["workloads"]
    assert set(found) == set(page.NAMES)
    assert found["demonstrations"]["twinpass"]["hit_rate"] > found["options"]["twinpass"]["hit_rate"] >= 0.5
    assert found["text"]["twinpass"]["hit_rate"] == 0
    assert found["activated"]["twinpass"]["reused"]["activated"] > 0
    text = page.section(result | {"machine": {"gpu": "none"}})
    assert all(f"| {name} |" in text for name in page.NAMES.values())


@on_a_gpu
@forward_mode
def test_linear_lanes() -> None:
    device, host = pair("llama", Full())
    lanes = [replace(lane, linear=True) for lane in TWO]
    assert_close(device.score(REQUESTS, lanes).values, host.score(REQUESTS, lanes).values, 1e-2)


@pytest.mark.table
@on_a_gpu
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "mistral", "gemma2", "gemma3", "opt", "gpt_neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_architecture_packs(name: str, dtype: torch.dtype) -> None:
    device, host = pair(name, Full(), dtype)
    assert device.packs
    tolerance = CLOSE if dtype is torch.float32 else 1.0
    assert_close(device.score(REQUESTS, LANES).values, host.score(REQUESTS, LANES).values, tolerance)


@on_a_gpu
def test_scoring_takes_a_layer_beside_what_inference_takes() -> None:
    """Twelve layers of 12.6 million weights each (float32): no second copy of the model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8}
    config: Any = LlamaConfig(vocab_size=1000, num_hidden_layers=12, **shape)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    engine = TorchEngine(model, Full())
    weights = 4 * engine.trained
    requests = [Request(tuple(range(i, i + 64)), (1,)) for i in range(4)]
    peaks = []
    for lanes in ([BASE], TWO):
        torch.cuda.reset_peak_memory_stats()
        engine.score(requests, lanes)
        engine.update(TERMS)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] - peaks[0] < weights / 5
