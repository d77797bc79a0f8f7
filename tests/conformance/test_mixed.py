"""Products in bfloat16 beside float32 weights: scores near float32's, and a difference of signs that keeps its precision."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, REQUESTS, TARGETS, bits, build, deviation
from gradients import ACTIVE, TERMS, plainly, slopes
from reusing import trainables
from tiers import some_fast
from torch import Tensor, nn
from transformers import PreTrainedModel

from twinpass.core import BASE, Lane, Probe, Term
from twinpass.engine.embedded import builder
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.linear.arithmetic import Arithmetic
from twinpass.engine.embedded.linear.lanes import LaneWeights
from twinpass.engine.embedded.linear.mixed import Pairing
from twinpass.errors import ModelError
from twinpass.model.causal import output_layer
from twinpass.model.patching import forwards_of
from twinpass.model.trainable import Activated, Full, Layers, Lora, Trainable
from twinpass.perturb.noise import Distribution
from twinpass.report.fidelity import Fidelity
from twinpass.reuse.plan import Spans
from twinpass.reuse.reflected import Reflected

KNOWN = [name for name in ARCHITECTURES if name != "gpt2"]
"""Models of ``nn.Linear``."""

TOLERANCE = 0.25
"""Nats. Rounded weights and states of random models, whose scores go down to -15, move scores by up to 0.1."""

EPS = {1e-5: 10.0, 1e-4: 1.0, 1e-3: 0.2}
"""And the least error of g there when lanes are rounded on their own."""

NEAR = 0.05
"""Nats. Sums in another order are rounded otherwise on their way."""

PROBES = [Probe(seed) for seed in range(200, 232)]
PLUS, MINUS = Lane(Probe(7), 1, 0.002), Lane(Probe(7), -1, 0.002)
MANY = [PLUS, MINUS, BASE, Lane(Probe(9), 1, 0.001), Lane(Probe(7), -1, 0.001), Lane(Probe(7), 1, 0.001)]
"""Two pairs of one direction, a lane of another without its opposite, and the base lane."""


@contextmanager
def low_products(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block linear layers but the head multiply as torch.autocast has it: both factors and the product in bfloat16."""
    head = output_layer(model)

    def low(layer: nn.Linear, x: Tensor) -> Tensor:
        y = nn.functional.linear(x.bfloat16(), layer.weight.bfloat16()).float()
        return y if layer.bias is None else y + layer.bias

    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    with forwards_of({layer: partial(low, layer) for layer in layers}):
        yield


def cosine(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    x, y = (torch.cat([own[name].double().flatten() for name in a]) for own in (a, b))
    return float(torch.nn.functional.cosine_similarity(x, y, dim=0))


class Independent(Arithmetic):
    """What is done elsewhere: each lane's weights and rows rounded on their own."""

    everywhere: ClassVar[bool] = True

    def moved(self, weights: LaneWeights, name: str, rows: Tensor) -> Tensor:
        low = weights.whole(name).bfloat16()
        return torch.bmm(rows.bfloat16(), low.transpose(1, 2)).float()

    def fixed(self, lanes: Sequence[Lane], layer: nn.Module, rows: Tensor, bias: Tensor | None) -> Tensor:
        y = nn.functional.linear(rows.bfloat16(), layer.get_parameter("weight").bfloat16()).float()
        return y if bias is None else y + bias


def engines(name: str, trainable: Trainable, **options: Any) -> tuple[TorchEngine, TorchEngine]:
    """One in float32, and one that multiplies in bfloat16."""
    model = build(name, torch.float32)
    return TorchEngine(model, trainable, **options), TorchEngine(model, trainable, compute_dtype="bfloat16", **options)


def gradients(engine: TorchEngine, eps: float) -> list[float]:
    """g of the summed log-probabilities."""
    lanes = [Lane(probe, sign, eps) for probe in PROBES for sign in (1, -1)]
    losses = [float(np.sum([score.sum() for score in values])) for values in engine.score(REQUESTS, lanes).values]
    return [(plus - minus) / (2 * eps) for plus, minus in zip(losses[0::2], losses[1::2], strict=True)]


@pytest.mark.table
@pytest.mark.parametrize("kind", ["full", "lora", "layers", "activated"])
@pytest.mark.parametrize("name", KNOWN)
def test_scores_are_near_those_of_float32(name: str, kind: str) -> None:
    trainable, requests = trainables(name)[kind]
    exact, mixed = engines(name, trainable)
    before = bits(exact.model)
    for lanes in (MANY, [BASE], [MINUS]):
        found, expected = (engine.score(requests, lanes).values for engine in (mixed, exact))
        for own, scores in zip(found, expected, strict=True):
            assert 0 < deviation(own, scores) < TOLERANCE
    assert all(torch.equal(before[key], tensor) for key, tensor in bits(exact.model).items())


@pytest.mark.parametrize("noise", some_fast(["binomial", "gaussian", "rademacher"], ["binomial"]))
@pytest.mark.parametrize("trainable", [Full(), Lora(4, 8.0)], ids=["full", "lora"])
def test_g_keeps_its_precision_at_any_eps(trainable: Trainable, noise: Distribution, monkeypatch: Any) -> None:
    """Rounded on its own, each lane loses what eps moves it by; as sum and difference the error of g does not depend on eps."""
    exact, mixed = engines("llama", trainable, noise=noise)
    monkeypatch.setattr(builder, "arithmetic_of", lambda *args, **options: Independent())
    independent = TorchEngine(exact.model, trainable, noise=noise)
    for eps, least in EPS.items():
        g = gradients(exact, eps)
        kept, lost = (Fidelity.of(gradients(engine, eps), g).relative_error for engine in (mixed, independent))
        assert kept < 0.05
        assert lost > least


@pytest.mark.table
@pytest.mark.parametrize("kind", ["activated", "lora"])
@pytest.mark.parametrize("name", KNOWN)
def test_the_gradient_of_adapters_is_autograds_of_layers_that_multiply_so(name: str, kind: str) -> None:
    """As near to it as roundings of other sums let it be, and so near float32's."""
    kinds: dict[str, Any] = {"activated": Activated, "lora": Lora}
    exact, mixed = engines(name, kinds[kind](rank=2, alpha=4.0, targets=TARGETS[name]))
    before = bits(exact.model)
    for engine in (exact, mixed):
        engine.update(TERMS)
    found = mixed.gradient(ACTIVE, slopes)
    scores = mixed.score(ACTIVE, [BASE]).values[0]
    assert deviation(found.scores.values[0], scores) < NEAR
    with low_products(exact.model):
        rounded = plainly(exact.model, exact, ACTIVE, kind == "activated")
    plain = exact.gradient(ACTIVE, slopes).tensors
    assert cosine(found.tensors, rounded) > 0.999
    assert cosine(found.tensors, plain) > 0.99
    assert all(torch.equal(before[key], tensor) for key, tensor in bits(exact.model).items())


@pytest.mark.parametrize(
    ("lanes", "plus", "minus", "differences"),
    [
        (MANY, [0, 2, 3, 4], [1, -1, -1, 5], [4, 5]),
        ([BASE, BASE], [0, 1], [-1, -1], []),
        ([MINUS, BASE, PLUS], [0, 1], [2, -1], [2]),
        ([], [], [], []),
    ],
)
def test_lanes_are_paired_with_their_opposites(
    lanes: Sequence[Lane], plus: list[int], minus: list[int], differences: list[int]
) -> None:
    pairing = Pairing.of(lanes)
    assert (pairing.plus.tolist(), pairing.minus.tolist()) == (plus, minus)
    assert pairing.difference[pairing.minus >= 0].tolist() == differences


def test_the_other_lanes_of_a_pass_change_nothing() -> None:
    """Not beyond float32, in which the order of sums may differ: a pair is the same beside others, either way round."""
    mixed = engines("llama", Full())[1]
    found = mixed.score(REQUESTS, MANY).values
    alone = mixed.score(REQUESTS, [MINUS, PLUS]).values
    for i, j in ((0, 1), (1, 0)):
        assert deviation(found[i], alone[j]) < 1e-4


def test_a_block_moves_alone() -> None:
    exact, mixed = engines("llama", Layers(0, 2, block=1))
    for block in (0, 1):
        lanes = [Lane(Probe(7, block), sign, 1e-4) for sign in (1, -1)]
        slopes = []
        for engine in (exact, mixed):
            plus, minus = (np.concatenate(values) for values in engine.score(REQUESTS, lanes).values)
            slopes.append((plus - minus) / 2e-4)
        assert Fidelity.of(slopes[1].tolist(), slopes[0].tolist()).relative_error < 0.05


def test_trained_weights_are_read_anew_after_an_update() -> None:
    exact, mixed = engines("llama", Full())
    before = mixed.score(REQUESTS, [BASE]).values[0]
    mixed.update([Term(3, 0.125)])
    found, expected = (engine.score(REQUESTS, [BASE]).values[0] for engine in (mixed, exact))
    assert deviation(found, before) > 2 * TOLERANCE
    assert deviation(found, expected) < TOLERANCE


def test_weights_in_blocks_give_the_same_scores() -> None:
    mixed = engines("qwen2", Lora(4, 8.0, TARGETS["qwen2"]))[1]
    rows = mixed.score(REQUESTS, MANY).values
    mixed.prepack()
    found = mixed.score(REQUESTS, MANY).values
    again = engines("qwen2", Lora(4, 8.0, TARGETS["qwen2"]))[1]
    again.prepack()
    blocked = again.score(REQUESTS, MANY).values
    for own, same, known in zip(found, blocked, rows, strict=True):
        assert deviation(own, known) == deviation(same, known) == 0


def test_float32_is_what_float32_weights_compute_in() -> None:
    model = build("llama", torch.float32)
    named, plain = TorchEngine(model, Full(), compute_dtype="float32"), TorchEngine(model, Full())
    found, expected = (engine.score(REQUESTS, MANY).values for engine in (named, plain))
    assert all(deviation(own, scores) == 0 for own, scores in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("name", "dtype", "options", "message"),
    [
        ("llama", torch.bfloat16, {}, "is for float32 weights, and the model's are torch.bfloat16"),
        (
            "llama",
            torch.float64,
            {"compute_dtype": "float32"},
            "is for float32 weights, and the model's are torch.float64",
        ),
        (
            "llama",
            torch.float32,
            {"perturbation": "inplace"},
            "perturbation = 'tandem' and a reuse.policy that is exact",
        ),
        ("llama", torch.float32, {"reuse": Reflected()}, "perturbation = 'tandem' and a reuse.policy that is exact"),
        ("gpt2", torch.float32, {}, "GPT2LMHeadModel has Conv1D"),
        ("bloom", torch.float32, {}, "BloomForCausalLM cannot be packed"),
    ],
)
def test_what_cannot_be_is_refused(name: str, dtype: torch.dtype, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=f"{message}.*leave engine.compute_dtype out"):
        TorchEngine(build(name, dtype), Full(), **{"compute_dtype": "bfloat16", **options})


def test_prefixes_from_elsewhere_are_refused() -> None:
    mixed = engines("llama", Full())[1]
    with pytest.raises(ModelError, match="each of which computes its own prefix: use an exact policy"):
        mixed.score(REQUESTS, [PLUS, MINUS], Spans("prompt", 1))
