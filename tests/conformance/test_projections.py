"""Residual feedback of the output projections' own weights: what it is, how they are moved along it, and in which memory."""

from typing import Any

import pytest
import torch
from architectures import FALLBACK, WRITERS, bits, build, engine_of
from gradients import ACTIVE, slopes
from reusing import packed
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from twinpass.core import BASE
from twinpass.engine.base import AdamStep, RelativeStep
from twinpass.engine.embedded.descent.feedback import Outer
from twinpass.engine.embedded.descent.relative import decorrelated
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import ModelError
from twinpass.model.projections import Projections
from twinpass.model.trainable import Full, Lora, Pattern

TOP = {"gpt2": "mlp.c_proj", "opt": "fc2", "gpt_neox": "mlp.dense_4h_to_h"}
"""What writes last into the residual stream, where it is not ``mlp.down_proj``."""
PARALLEL = {"gpt_neox"}
"""Models whose attention and MLP read and write beside each other, so that nothing lies above the uppermost attention either."""
LENGTH, DAMPING = 0.01, 0.5


def upright(engine: TorchEngine, name: str, tensor: Tensor) -> Tensor:
    """A weight, or its change, as [out, in]."""
    return tensor.t() if isinstance(engine.model.get_submodule(name.removesuffix(".weight")), Conv1D) else tensor


def whole(gradient: Outer) -> Tensor:
    return gradient.errors.t() @ gradient.inputs


def divided(matrix: Tensor, inputs: Tensor) -> Tensor:
    """A gradient [out, in] divided by its inputs' damped second moments [in, in], as a whole."""
    moments = inputs.t() @ inputs
    inverse: Tensor = torch.linalg.inv(
        moments + DAMPING * moments.trace() / len(inputs) * torch.eye(len(moments), dtype=moments.dtype)
    )
    return matrix @ inverse


@packed
def test_it_is_what_an_adapter_on_the_same_layer_is_fed_back(name: str) -> None:
    """An adapter s B A whose B is 0 changes nothing; its B gets s G A^T, with G the weight's."""
    engine = engine_of(name, build(name), Projections(layers=1))
    beside = engine_of(
        name, build(name), Lora(rank=3, alpha=6.0, targets=WRITERS.get(name, ("o_proj", "down_proj")), first=1)
    )
    found, adapters = engine.feedback(ACTIVE, slopes), beside.feedback(ACTIVE, slopes)
    assert len(found.tensors) * 2 == len(adapters.tensors) == 4
    for weight, outer in found.tensors.items():
        a, b = (f"{weight.removesuffix('.weight')}.lora_{each}.weight" for each in "AB")
        torch.testing.assert_close(
            2.0 * whole(outer) @ beside.parameters[a].t(), adapters.tensors[b], rtol=1e-9, atol=1e-9
        )
    square = sum(float(whole(outer).square().sum()) for outer in found.tensors.values())
    assert found.norm == pytest.approx(square**0.5, rel=1e-9)


@packed
def test_the_last_module_moves_along_the_exact_gradient_divided_by_its_inputs_moments(name: str) -> None:
    """By ``length`` times its own norm. Below, feedback is another direction, or the test would say nothing."""
    engine = engine_of(name, build(name), Projections(layers=1))
    before = bits(engine.model)
    exact, found = engine.gradient(ACTIVE, slopes).tensors, engine.feedback(ACTIVE, slopes)
    engine.descend(found, RelativeStep(LENGTH, DAMPING))
    (top,) = [each for each in exact if each.endswith(f"{TOP.get(name, 'mlp.down_proj')}.weight")]
    near = {}
    for weight in exact:
        moved = engine.parameters[weight] - before[weight]
        assert float(moved.norm()) == pytest.approx(LENGTH * float(before[weight].norm()), rel=1e-9)
        expected = -divided(upright(engine, weight, exact[weight]), found.tensors[weight].inputs)
        near[weight] = float((upright(engine, weight, moved) * expected).sum() / moved.norm() / expected.norm())
    assert near.pop(top) == pytest.approx(1.0, abs=1e-6)
    (below,) = near.values()
    assert (below > 0.99) == (name in PARALLEL)
    others = {each: tensor for each, tensor in bits(engine.model).items() if each not in exact}
    assert all(torch.equal(tensor, before[each]) for each, tensor in others.items())


def test_a_gradient_is_divided_by_its_inputs_moments() -> None:
    torch.manual_seed(0)
    for tokens in (3, 40):
        gradient = Outer(torch.randn(tokens, 12).double(), torch.randn(tokens, 17).double() + 2)
        found = whole(decorrelated(gradient, DAMPING))
        torch.testing.assert_close(found, divided(whole(gradient), gradient.inputs), rtol=1e-9, atol=1e-12)
        plain = whole(gradient)
        assert float((found * plain).sum() / found.norm() / plain.norm()) < 0.9
    for nothing in (Outer(torch.zeros(3, 12), torch.randn(3, 17)), Outer(torch.randn(3, 12), torch.zeros(3, 17))):
        assert not whole(decorrelated(nothing, DAMPING)).any()


class Largest(TorchDispatchMode):
    """The most numbers of any new tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {each.data_ptr() for each in args if isinstance(each, Tensor)}
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor) and each.data_ptr() not in given:
                self.most = max(self.most, each.numel())
        return result


def test_a_step_forms_nothing_of_a_weights_size() -> None:
    engine = engine_of("llama", build("llama"), Projections(layers=2))
    few = engine.feedback(ACTIVE[:2], slopes)
    smallest = min(tensor.numel() for tensor in engine.parameters.values())
    with Largest() as seen:
        engine.descend(few, RelativeStep(LENGTH, DAMPING))
    assert 0 < seen.most < smallest
    with Largest() as dense:
        whole(next(iter(few.tensors.values())))
    assert dense.most >= smallest


def test_layers_below_are_read_once() -> None:
    """A step moves the uppermost layer; the other's keys, values and states stay, and so does what its bits are."""
    engine, again = (engine_of("llama", build("llama"), Projections(layers=1)) for _ in range(2))
    first = engine.feedback(ACTIVE, slopes)
    engine.descend(first, RelativeStep(LENGTH, DAMPING))
    second = engine.feedback(ACTIVE, slopes)
    assert second.scores.work.computed < first.scores.work.computed
    again.descend(again.feedback(ACTIVE, slopes), RelativeStep(LENGTH, DAMPING))
    again.forget()
    for own, other in zip(again.score(ACTIVE, [BASE]).values[0], second.scores.values[0], strict=True):
        assert abs(own - other).max() < 1e-9


def test_what_is_trained_of_a_model() -> None:
    llama = engine_of("llama", build("llama"), Projections(layers=1))
    assert sorted(llama.parameters) == ["model.layers.1.mlp.down_proj.weight", "model.layers.1.self_attn.o_proj.weight"]
    assert len(engine_of("llama", build("llama"), Projections()).parameters) == 4
    assert list(engine_of("llama", build("llama"), Projections(layers=1, targets=("o_proj",))).parameters) == [
        "model.layers.1.self_attn.o_proj.weight"
    ]
    with pytest.raises(ModelError, match="has no linear layer q_norm as wide as its residual stream"):
        engine_of("llama", build("llama"), Projections(targets=("q_norm",)))


def test_what_feedback_does_not_tell_is_refused() -> None:
    name = next(iter(FALLBACK))
    with pytest.raises(ModelError, match="is seen in packed passes"):
        engine_of(name, build(name), Projections()).feedback(ACTIVE, slopes)
    with pytest.raises(ModelError, match="embed_tokens does not write into the residual stream"):
        engine_of("llama", build("llama"), Full()).feedback(ACTIVE, slopes)
    with pytest.raises(ModelError, match="q_proj does not write into the residual stream"):
        engine_of("llama", build("llama"), Pattern(pattern="q_proj")).feedback(ACTIVE, slopes)
    tied = build("llama")
    layers: Any = tied.get_submodule("model.layers")
    layers[0].self_attn.o_proj.weight = nn.Parameter(layers[1].self_attn.o_proj.weight.detach())
    layers[0].self_attn.o_proj.weight = layers[1].self_attn.o_proj.weight
    with pytest.raises(ModelError, match="shares its weight with another module"):
        engine_of("llama", tied, Projections(layers=1)).feedback(ACTIVE, slopes)


def test_steps_are_along_gradients_of_their_kind() -> None:
    engine = engine_of("llama", build("llama"), Projections(layers=1))
    before = bits(engine.model)
    with pytest.raises(ModelError, match="relative steps are along feedback to weights"):
        engine.descend(engine.gradient(ACTIVE, slopes), RelativeStep(LENGTH, DAMPING))
    with pytest.raises(ModelError, match="AdamW takes a gradient that is formed"):
        engine.descend(engine.feedback(ACTIVE, slopes), AdamStep(1, LENGTH))
    assert all(torch.equal(tensor, before[each]) for each, tensor in bits(engine.model).items())


def test_without_an_error_and_without_a_length_nothing_moves() -> None:
    engine = engine_of("llama", build("llama"), Projections(layers=1))
    before = bits(engine.model)
    engine.descend(engine.feedback(ACTIVE, lambda scores: [0 * own for own in scores]), RelativeStep(LENGTH, DAMPING))
    engine.descend(engine.feedback(ACTIVE, slopes), RelativeStep(0.0, DAMPING))
    assert all(torch.equal(tensor, before[each]) for each, tensor in bits(engine.model).items())
