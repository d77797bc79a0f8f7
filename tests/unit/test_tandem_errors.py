"""What the engine refuses: models that cannot run lane by lane, weights and requests that it cannot use."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from architectures import LANES, REQUESTS, bits, build, in_lane, naive
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from twinpass.core import BASE, Lane, Probe, Request, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import LatticeError, MissedParameterError, ModelError, UnsupportedModuleError
from twinpass.model.trainable import Full, Layers, Lora, Pattern, Trainable

BORROWED = "model.layers.1.self_attn.o_proj.weight"
STEP = Lane(Probe(1), 1, 0.0625)


class Scaled(nn.Module):
    """Owns a parameter and a child."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((32,), 1.5, dtype=torch.float64))
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.gain * self.inner(x))


class Borrower(nn.Module):
    """Uses a parameter of another module."""

    def __init__(self, inner: nn.Module, weight: nn.Parameter, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.use = inner, use
        self.__dict__["weight"] = weight

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.inner(x) + self.use(x, self.__dict__["weight"]))


class Turned(nn.Module):
    """Its linear layer runs along the model's width, with the rows behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.turned = nn.Linear(1, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.turned(x.permute(2, 0, 1)[..., None])[..., 0].permute(1, 2, 0))


class Headed(nn.Module):
    """Its norm runs on [batch, heads, tokens, width], as in Gemma 3."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(x.view(*x.shape[:2], 4, 8).transpose(1, 2)).transpose(1, 2).flatten(2))


class Pair(nn.Module):
    """A leaf that returns more than a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(32, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.gain, x


class First(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.pair(x)[0])


def llama(mlp: Callable[[nn.Module], nn.Module] | None = None) -> PreTrainedModel:
    """The tiny Llama, with another MLP in its first layer."""
    model = build("llama")
    if mlp is not None:
        layer = model.get_submodule("model.layers.0")
        layer.mlp = mlp(layer.get_submodule("mlp"))
    return model


def borrowing(use: Callable[[Tensor, Tensor], Tensor]) -> PreTrainedModel:
    model = build("llama")
    layer = model.get_submodule("model.layers.0")
    layer.mlp = Borrower(layer.get_submodule("mlp"), model.get_parameter(BORROWED), use)
    return model


def test_parameter_beside_children_is_named_with_a_way_out() -> None:
    model = llama(Scaled)
    with pytest.raises(UnsupportedModuleError, match=r"model\.layers\.0\.mlp \(Scaled\).*'inplace'.*\[trainable\]"):
        TorchEngine(model, Full())


@pytest.mark.parametrize(
    ("trainable", "perturbation"), [(Full(), "inplace"), (Pattern("proj"), "tandem"), (Layers(1, 2), "tandem")]
)
def test_ways_out_of_an_unsupported_module(trainable: Trainable, perturbation: Any) -> None:
    model = llama(Scaled)
    engine = TorchEngine(model, trainable, perturbation=perturbation)
    plain = in_lane(model, engine.parameters, STEP, "binomial")
    for score, expected in zip(engine.score(REQUESTS, [STEP]).values[0], naive(plain, REQUESTS), strict=True):
        assert score == pytest.approx(expected, abs=1e-9)


USES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": functional.linear,
    "t": lambda x, w: x @ w.t(),
    "index": lambda x, w: x @ w[:],
    "einsum": lambda x, w: torch.einsum("bni,oi->bno", x, w),
    "times": lambda x, w: 0.5 * w[0] * x,
    "property T": lambda x, w: x @ w.T,
    "property data": lambda x, w: x @ w.data,
    "cat": lambda x, w: x @ torch.cat([w, w])[:32],
}


@pytest.mark.parametrize("use", USES)
def test_use_outside_the_owner_is_noticed(use: str) -> None:
    engine = TorchEngine(borrowing(USES[use]), Full())
    with pytest.raises(UnsupportedModuleError, match=f"{BORROWED}.*outside the module that owns it.*'inplace'"):
        engine.score(REQUESTS, LANES)


def test_use_outside_the_owner_is_fine_where_it_is_not_trained() -> None:
    model = borrowing(functional.linear)
    engine = TorchEngine(model, Layers(0, 1))
    expected = naive(model, REQUESTS)
    for score, own in zip(engine.score(REQUESTS, [STEP, BASE]).values[1], expected, strict=True):
        assert score == pytest.approx(own, abs=1e-9)


@pytest.mark.parametrize(
    "look", [lambda w: w.shape, lambda w: w.dtype, lambda w: w.device, lambda w: w.requires_grad, lambda w: w.size(0)]
)
def test_looking_at_a_weight_is_no_use(look: Callable[[Tensor], object]) -> None:
    def use(x: Tensor, weight: Tensor) -> Tensor:
        look(weight)
        return x

    assert len(TorchEngine(borrowing(use), Full()).score(REQUESTS, [STEP]).values[0]) == len(REQUESTS)


def test_lanes_behind_other_axes_are_refused_by_name_with_a_way_out() -> None:
    model = llama(lambda _: Turned())
    engine = TorchEngine(model, Full())
    with pytest.raises(UnsupportedModuleError, match=r"mlp\.turned got a tensor.*cannot be told apart.*'inplace'"):
        engine.score(REQUESTS, LANES)
    engine = TorchEngine(model, Full(), perturbation="inplace")
    plain = in_lane(model, engine.parameters, STEP, "binomial")
    for score, expected in zip(engine.score(REQUESTS, [STEP]).values[0], naive(plain, REQUESTS), strict=True):
        assert score == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("lanes", [LANES[:1], LANES[:2], LANES[:4]])
def test_heads_are_never_taken_for_rows(lanes: tuple[Lane, ...], count: int) -> None:
    requests = [Request((5, 6), (7,)), *REQUESTS][:count]
    model = llama(lambda _: Headed())
    engine = TorchEngine(model, Full())
    for lane, values in zip(lanes, engine.score(requests, lanes).values, strict=True):
        plain = in_lane(model, engine.parameters, lane, "binomial")
        for score, expected in zip(values, naive(plain, requests), strict=True):
            assert score == pytest.approx(expected, abs=1e-9)


def test_a_leaf_must_return_rows() -> None:
    engine = TorchEngine(llama(lambda _: First()), Full())
    with pytest.raises(
        UnsupportedModuleError, match=r"model\.layers\.0\.mlp\.pair returns tuple, not a tensor of rows"
    ):
        engine.score(REQUESTS, LANES)


def test_unused_parameter_is_missed() -> None:
    model = llama()
    model.get_submodule("model").spare = nn.Linear(3, 5, dtype=torch.float64)
    engine = TorchEngine(model, Full())
    with pytest.raises(
        MissedParameterError, match=r"2 selected parameters .*model\.spare\.weight, model\.spare\.bias;"
    ):
        engine.score(REQUESTS, [STEP])
    with pytest.raises(MissedParameterError, match=r"trainable\.kind = 'pattern'"):
        engine.score(REQUESTS, [STEP])
    assert len(TorchEngine(model, Pattern("layers")).score(REQUESTS, [STEP]).values) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(value: float) -> None:
    model = llama()
    model.get_parameter("model.layers.1.mlp.up_proj.weight").detach()[3, 4] = value
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinite.*damaged"):
        TorchEngine(model, Full())


def test_scores_that_are_no_numbers_are_passed_on() -> None:
    values = TorchEngine(llama(), Full()).score(REQUESTS, [Lane(Probe(1), 1, 1e200)]).values[0]
    assert all(np.isnan(score).all() for score in values)


@pytest.mark.parametrize("perturbation", ["tandem", "inplace"])
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((), (1,)), "request 1 has an empty prompt or completion"),
        (Request((1,), ()), "request 1 has an empty prompt or completion"),
        (Request((5,) * 60, (6,) * 6), "request 1 has 65 tokens; the model's window holds 64"),
        (Request((5, 97), (6, 7)), "request 1.*token.*97"),
        (Request((5, -1), (6, 7)), "request 1.*token.*-1"),
        (Request((5, 6), (6, 97)), "request 1.*token.*97"),
    ],
)
def test_unusable_request(request_: Request, message: str, perturbation: Any) -> None:
    model = llama()
    engine = TorchEngine(model, Full(), perturbation=perturbation)
    before = bits(model)
    with pytest.raises(ModelError, match=message):
        engine.score([REQUESTS[0], request_], [STEP])
    engine.settle()
    assert all(torch.equal(before[name], tensor) for name, tensor in bits(model).items())


def test_longest_request_fits() -> None:
    score = TorchEngine(llama(), Full()).score([Request((5,) * 60, (6,) * 5)], [STEP]).values[0][0]
    assert score.shape == (5,)


@pytest.mark.parametrize("perturbation", ["tandem", "inplace"])
def test_nothing_to_score(perturbation: Any) -> None:
    engine = TorchEngine(llama(), Full(), perturbation=perturbation)
    assert list(engine.score([], [STEP, BASE]).values) == [[], []]
    assert list(engine.score(REQUESTS, []).values) == []


@pytest.mark.parametrize(
    ("trainable", "message"),
    [
        (
            Lora(4, 8.0, ("q_proj", "c_attn")),
            r"\['c_attn'\] match no linear layer of LlamaForCausalLM; the model has .*'q_proj'",
        ),
        (Lora(4, 8.0, ("embed_tokens",)), r"\['embed_tokens'\] match no linear layer"),
        (Lora(4, 8.0, ("lm_head",), first=1), r"\['lm_head'\] match no linear layer .* in layers 1 and above"),
        (Lora(4, 8.0, first=2), r"trainable\.first is 2; LlamaForCausalLM has layers 0 to 1"),
        (Pattern("decoder"), r"trainable\.pattern 'decoder' matches none .*model\.embed_tokens\.weight"),
        (Layers(1, 3), "layers 1 to 3 are not in the model's range 0 to 2"),
    ],
)
def test_trainable_that_matches_nothing(trainable: Trainable, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        TorchEngine(llama(), trainable)


def test_inplace_needs_a_grid() -> None:
    with pytest.raises(LatticeError, match="'binomial' or 'rademacher'"):
        TorchEngine(llama(), Full(), perturbation="inplace", noise="gaussian")
    with pytest.raises(LatticeError, match="bfloat16: in-place mode restores exactly only in float32"):
        TorchEngine(build("llama", torch.bfloat16), Full(), perturbation="inplace")


@pytest.mark.parametrize("eps", [0.1, 2.0**-20])
def test_inplace_refuses_eps_off_the_grid_and_leaves_no_trace(eps: float) -> None:
    model = build("llama", torch.float32)
    model.get_parameter("model.norm.weight").detach().mul_(40)
    engine = TorchEngine(model, Full(), perturbation="inplace")
    before = bits(model)
    with pytest.raises(LatticeError, match="eps must be a power of two"):
        engine.score(REQUESTS, [Lane(Probe(1), 1, eps)])
    engine.settle()
    assert all(torch.equal(before[name], tensor) for name, tensor in bits(model).items())


def test_reset_needs_the_base_weights() -> None:
    engine = TorchEngine(llama(), Full())
    engine.update([Term(1, 0.5)])
    with pytest.raises(ModelError, match="'reload' function"):
        engine.reset()
