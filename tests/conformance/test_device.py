"""Nothing is mixed up between main memory and a device: the whole engine on a stand-in for a GPU, beside itself on the CPU.

Scores and weights are real (``stand_in.py``); attention runs as one operator, as on a GPU. What a GPU itself makes of it is in ``tests/gpu``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from approximating import HEADED, MIXED, PLUS, WHOLE
from architectures import LANES, REQUESTS, TARGETS, build, deviation, engine_of
from reusing import PROMPTS, TERMS, TWO, architectures, trainables
from safetensors.torch import load_file
from stand_in import CUDA, DeviceTensor, Seen, stand_in, to_device
from tensors import assert_same_weights
from tiers import some_fast
from torch import nn

from twinpass import Full, Lora, Sgd, finetune
from twinpass.core import BASE, Lane, Probe, Scores, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import ModelError
from twinpass.model.device import Device
from twinpass.model.trainable import Activated, Layers, Trainable
from twinpass.reuse import activated
from twinpass.reuse.plan import Spans
from twinpass.reuse.reflected import Reflected

KINDS = pytest.mark.parametrize("kind", ["full", "lora", "layers", "activated"])
CLOSE = 2e-4
"""float32, in nats: products and softmax in another order."""


def pair(name: str, trainable: Trainable, **options: Any) -> tuple[TorchEngine, TorchEngine]:
    """The same engine on the CPU, and on the device (for inside of ``stand_in()``)."""
    here = engine_of(name, build(name, torch.float32), trainable, **options)
    return here, engine_of(name, to_device(build(name, torch.float32)), trainable, **options)


def assert_close(found: Scores, expected: Scores) -> None:
    assert found.work == expected.work
    for lane, other in zip(found.values, expected.values, strict=True):
        assert deviation(lane, other) < CLOSE


def reads(seen: Seen) -> int:
    count = seen.reads.total()
    seen.reads.clear()
    return count


@pytest.mark.table
@KINDS
@architectures
def test_scores_and_updates(name: str, kind: str) -> None:
    trainable, requests = trainables(name)[kind]
    with stand_in() as seen:
        host, device = pair(name, trainable)
        assert (device.packs, device.base_hash) == (host.packs, host.base_hash)
        for lanes in (LANES, [BASE], TWO):
            reads(seen)
            found = device.score(requests, lanes)
            assert reads(seen) <= (1 if kind in ("full", "lora") else 2) or not device.packs, (
                "the host waits only for the scores"
            )
            assert_close(found, host.score(requests, lanes))
            for engine in (device, host):
                engine.update(TERMS)
            assert not reads(seen)
            assert_same_weights(device, host)


@pytest.mark.parametrize("kind", ["full", "layers", "activated"])
def test_in_place(kind: str) -> None:
    trainable, requests = trainables("llama")[kind]
    with stand_in():
        host, device = pair("llama", trainable, perturbation="inplace")
        lanes = [replace(lane, eps=2.0**-9) for lane in LANES]
        before = {name: tensor.cpu().clone() for name, tensor in device.parameters.items()}
        assert_close(device.score(requests, lanes), host.score(requests, lanes))
        device.settle()
        assert all(torch.equal(tensor.cpu(), before[name]) for name, tensor in device.parameters.items())
        for engine in (device, host):
            engine.update([Term(3, 1e-3), Term(2**62 + 1, -0.07)])
        assert_same_weights(device, host)


@pytest.mark.parametrize("name", some_fast(["llama", "gemma2"], ["gemma2"]))
def test_approximate_lanes(name: str) -> None:
    with stand_in():
        host, device = pair(name, Full(), reuse=Reflected())
        for spans in WHOLE:
            assert_close(device.score(HEADED, MIXED, spans), host.score(HEADED, MIXED, spans))
            reports = [engine.score(HEADED, MIXED, spans).prefix for engine in (device, host)]
            assert reports[0].errors == pytest.approx(reports[1].errors, rel=0.02)


def test_a_carried_prefix() -> None:
    up, down = Lane(Probe(12), 1, 0.05), Lane(Probe(12), -1, 0.05, "reflected")
    mirrored = Lane(PLUS.probe, -1, PLUS.eps, "reflected")
    with stand_in():
        found = []
        for engine in pair("llama", Full(), reuse=Reflected()):
            engine.score(HEADED, [PLUS, mirrored], Spans("returning", 1, "keep"))
            engine.update([Term(7, 0.02)])
            found.append(engine.score(HEADED, [up, down], Spans("returning", 1, "carried")))
        assert found[0].prefix.age == 1
        assert_close(found[1], found[0])


@pytest.mark.parametrize("trainable", [Layers(0, 2, block=1), Lora(4, 8.0, TARGETS["llama"], first=1)], ids=str)
def test_lower_layers_are_shared(trainable: Trainable) -> None:
    block = 0 if isinstance(trainable, Layers) else None
    lanes = [replace(lane, probe=Probe(7, block)) for lane in TWO]
    with stand_in():
        host, device = pair("llama", trainable)
        for _ in range(2):
            found = device.score(REQUESTS, lanes)
            assert found.work.reused["invariant"] > 0
            assert_close(found, host.score(REQUESTS, lanes))


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_rows": 5},
        *(pytest.param(o, marks=pytest.mark.full) for o in ({"chunk_rows": 30}, {"noise": "gaussian"})),
    ],
    ids=str,
)
def test_other_settings(options: Mapping[str, Any]) -> None:
    with stand_in():
        host, device = pair("llama", Full(), **options)
        assert_close(device.score(REQUESTS, LANES), host.score(REQUESTS, LANES))


def test_weights_in_bfloat16() -> None:
    with stand_in():
        models = build("llama", torch.bfloat16), to_device(build("llama", torch.bfloat16))
        host, device = (TorchEngine(model, Full()) for model in models)
        assert device.packs
        for engine in (device, host):
            assert all(np.isfinite(score).all() for lane in engine.score(REQUESTS, LANES).values for score in lane)
            engine.update(TERMS)
        assert_same_weights(device, host)


def test_arrays_are_sent_together() -> None:
    arrays = [np.arange(6).reshape(2, 3), np.array(7), np.empty(0, np.int64), np.arange(12).reshape(3, 4)[:, ::2]]
    with stand_in():
        device = Device.of(to_device(nn.Linear(2, 2)))
        assert device.fused
        for array, tensor in zip(arrays, device.send(*arrays), strict=True):
            assert isinstance(tensor, DeviceTensor)
            assert np.array_equal(tensor.cpu().numpy(), array)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norms_run_all_lanes_at_once(dtype: torch.dtype) -> None:
    with stand_in():
        engine = TorchEngine(to_device(build("llama", dtype)), Full())
        kinds = [type(module).__name__ for module in engine._runner.tandem._modules]
    assert kinds.count("LaneRmsNorm") == 5
    assert "LaneLeaf" not in kinds


def test_spilled_keys_and_values_serve_either(tmp_path: Path) -> None:
    policy = activated.ActivatedReuse(spill=str(tmp_path))
    with stand_in():
        host = TorchEngine(build("llama", torch.float32), Activated(2, 4.0), reuse=policy)
        scores = host.score(PROMPTS, TWO)
        device = TorchEngine(to_device(build("llama", torch.float32)), Activated(2, 4.0), reuse=policy)
        found = device.score(PROMPTS, TWO)
        assert found.cache.spilled == 0
        assert found.work.computed < scores.work.computed
        for lane, other in zip(found.values, scores.values, strict=True):
            assert deviation(lane, other) < CLOSE
        other_prompts = [replace(request, prompt=request.prompt[::-1]) for request in PROMPTS]
        assert device.score(other_prompts, TWO).cache.spilled > 0


@pytest.mark.parametrize(
    "trainable", [pytest.param(Full(), marks=pytest.mark.full), Activated(2, 4.0)], ids=["full", "activated"]
)
def test_a_run_and_its_reset(trainable: Trainable, tmp_path: Path) -> None:
    options: dict[str, Any] = {"prompt": "Review: {text}", "options": [" bad", " good"], "suffix": " Sentiment:"}
    optimizer, rows = Sgd(lr=1e-4, steps=4, batch_size=4), tiny.rows(8)
    losses: list[Sequence[float]] = []
    with stand_in():
        for where, move in (("host", lambda model: model), ("device", to_device)):
            out = tmp_path / where
            options |= {"out": out, "trainable": trainable, "optimizer": optimizer}
            finetune(move(tiny.model()), tiny.tokenizer(), rows, rows, **options)
            lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
            losses.append([loss for line in lines if line["kind"] == "step" for loss in line["losses"][0]])
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
        engine = TorchEngine(tiny.model(), trainable, invocation=(1,), reload=dict)
        header = next(line for line in lines if line["kind"] == "header")
        assert engine.base_hash in json.dumps(header)
    files = [next((tmp_path / where).glob("*/*.safetensors")) for where in ("host", "device")]
    host, device = (load_file(file) for file in files)
    assert all((host[name] - device[name]).abs().max() < 1e-5 for name in host)


def test_reset_returns_the_bits() -> None:
    with stand_in():
        base = dict(build("llama", torch.float32).named_parameters())
        for trainable in (Full(), Lora(2, 4.0)):
            engine = TorchEngine(to_device(build("llama", torch.float32)), trainable, reload=lambda: base)
            before = {name: tensor.cpu().clone() for name, tensor in engine.parameters.items()}
            engine.update(TERMS)
            engine.reset()
            assert all(torch.equal(tensor.cpu(), before[name]) for name, tensor in engine.parameters.items())


class TestRefusals:
    def test_a_model_in_two_places(self) -> None:
        with stand_in():
            model = to_device(build("llama-untied", torch.float32))
            model.lm_head.weight = nn.Parameter(torch.zeros(97, 32), requires_grad=False)
            with pytest.raises(ModelError, match=r"is on cuda:0 and lm_head\.weight on cpu; .* without device_map"):
                TorchEngine(model, Full())

    def test_neither_cpu_nor_cuda(self) -> None:
        with pytest.raises(ModelError, match=r"is on meta; the torch engine runs on a CPU or one CUDA device"):
            Device.of(nn.Linear(2, 2, device="meta"))

    def test_products_in_bfloat16(self) -> None:
        model = build("llama", torch.float32)
        with (
            stand_in(),
            pytest.raises(ModelError, match=r"runs on the CPU only, and the model is on cuda:0: .*bfloat16"),
        ):
            TorchEngine(to_device(model), Full(), compute_dtype="bfloat16")

    @pytest.mark.parametrize("trainable", [Full(), Lora(2, 4.0)])
    def test_float64(self, trainable: Trainable) -> None:
        with stand_in(), pytest.raises(ModelError, match=r"is torch\.float64: .* CUDA .* device = 'cpu'"):
            TorchEngine(to_device(build("llama")), trainable)


class TestStandIn:
    """It refuses what the tests above rely on."""

    def test_host_and_device_together(self) -> None:
        with stand_in():
            there, here = torch.zeros(3, device=CUDA), torch.zeros(3)
            with pytest.raises(AssertionError, match="mixes device tensors"):
                there + here
            with pytest.raises(AssertionError):
                there[torch.tensor([0])]
            with pytest.raises(AssertionError, match="a host tensor"):
                there[:2] = here[:2]
            with pytest.raises((TypeError, RuntimeError)):
                there.numpy()

    def test_copies_and_single_numbers(self) -> None:
        with stand_in() as seen:
            there = torch.arange(3.0).to(CUDA)
            assert isinstance(there, DeviceTensor)
            assert (there + torch.tensor(1.0)).cpu().tolist() == [1.0, 2.0, 3.0]
            there.copy_(torch.zeros(3))
            assert float(there.sum()) == 0
            assert seen.reads.total() == 2

    def test_views_share_memory(self) -> None:
        with stand_in():
            there = torch.zeros(2, 3, device=CUDA)
            there.view(-1)[1:3] = 5.0
            assert there.cpu().flatten().tolist() == [0, 5, 5, 0, 0, 0]
