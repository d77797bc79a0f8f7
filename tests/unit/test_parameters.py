"""Trainable tensors by name: what is accepted, what is refused and why, and that updates are the reference's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from twinpass.core import Term
from twinpass.errors import ModelError
from twinpass.perturb import noise
from twinpass.perturb.layout import flat_view
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution
from twinpass.perturb.parameters import Parameters

TERMS = (Term(3, 1e-2), Term(2**63 + 1, -0.3), Term(3, 2.0**-10))
DTYPES = (torch.float32, torch.float64, torch.bfloat16)

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)


def bits(tensor: Tensor) -> NDArray[Any]:
    flat = flat_view(tensor)
    return flat.view(f"u{flat.itemsize}")


def random_tensor(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def added(tensor: Tensor, name: str, terms: Sequence[Term], distribution: Distribution) -> Tensor:
    """The definition of ``Parameters.add``, in float64, float32, or float32 with bfloat16's stochastic rounding."""
    count = tensor.numel()
    values: NDArray[Any] = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy().reshape(-1)
    real = values.dtype.type
    for term in terms:
        values = values + real(term.scale) * noise.reference(term.seed, name, 0, count, distribution).astype(real)
        if tensor.dtype is torch.bfloat16:
            push = noise.uniform_reference(term.seed, name, 0, count).astype(np.float64) * 2**16
            values = ((values.view(np.uint32) + push.astype(np.uint32)) & np.uint32(0xFFFF0000)).view(np.float32)
    return torch.from_numpy(values).to(tensor.dtype).reshape(tensor.shape)


class TestMapping:
    def test_blocks_are_those_that_are_given(self) -> None:
        tensors = {name: random_tensor(3) for name in "abc"}
        parameters = Parameters(tensors, {"a": 4, "b": 1})
        assert parameters.blocks == (1, 4)
        assert [parameters.block_of(name) for name in "abc"] == [4, 1, None]
        assert [parameters.moves("a", block) for block in (None, 4, 1)] == [True, True, False]
        assert Parameters(tensors).blocks == (None,)

    def test_keeps_names_and_order(self) -> None:
        tensors = {name: random_tensor(2, 3) for name in ("z", "a", "m")}
        parameters = Parameters(tensors)
        assert list(parameters) == ["z", "a", "m"]
        assert len(parameters) == 3
        assert parameters.numel == 18
        assert "a" in parameters
        assert "b" not in parameters

    def test_values_share_the_memory_but_not_the_graph(self) -> None:
        weight = nn.Parameter(random_tensor(4, 3))
        parameters = Parameters({"weight": weight})
        assert parameters["weight"].data_ptr() == weight.data_ptr()
        assert parameters["weight"] is not weight
        assert not parameters["weight"].requires_grad

    def test_tied_tensors_are_one_under_the_first_name(self) -> None:
        embedding, head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        head.weight = embedding.weight
        model = nn.ModuleDict({"embedding": embedding, "head": head})
        parameters = Parameters(dict(model.named_parameters(remove_duplicate=False)))
        assert list(parameters) == ["embedding.weight"]
        assert parameters.numel == 40
        assert parameters.name_of(head.weight) == "embedding.weight"

        before = embedding.weight.detach().clone()
        parameters.add(TERMS, "binomial")
        assert torch.equal(head.weight, added(before, "embedding.weight", TERMS, "binomial"))

    def test_name_of_goes_by_identity(self) -> None:
        trained, frozen = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
        parameters = Parameters({"trained": trained})
        assert parameters.name_of(trained) == "trained"
        assert parameters.name_of(frozen) is None

    @each_dtype
    def test_flat_views_are_the_memory(self, dtype: torch.dtype) -> None:
        tensor = random_tensor(3, 5, dtype=dtype)
        flat = Parameters({"weight": tensor}).flat["weight"]
        assert flat.shape == (15,)
        assert flat.dtype == (np.uint16 if dtype is torch.bfloat16 else str(dtype).removeprefix("torch."))
        flat[7] = 0
        assert tensor[1, 2] == 0

    def test_noise_and_rounding_keys_are_those_of_the_name(self) -> None:
        parameters = Parameters({"a.weight": torch.zeros(1), "b.weight": torch.zeros(1)})
        assert parameters.keys_of["a.weight"] == (noise.name_key("a.weight"), noise.name_key("a.weight", "round"))
        assert len({key for keys in parameters.keys_of.values() for key in keys}) == 4


class TestRefusals:
    @pytest.mark.parametrize(
        ("tensor", "message"),
        [
            (torch.zeros(2, dtype=torch.float16), r"layer\.w is torch\.float16: .* float32, bfloat16 or float64"),
            (torch.zeros(2, dtype=torch.int64), r"layer\.w is torch\.int64"),
            (torch.zeros(2, dtype=torch.complex64), r"layer\.w is torch\.complex64"),
            (torch.zeros(2, 3).T, r"layer\.w is not contiguous in memory; .* \.contiguous\(\)"),
            (torch.zeros(6)[::2], r"layer\.w is not contiguous"),
            (torch.zeros(1).expand(4), r"layer\.w is not contiguous"),
            (torch.zeros(2, device="meta"), r"layer\.w is on meta: .* model\.cpu\(\)"),
        ],
        ids=["half", "integer", "complex", "transposed", "strided", "expanded", "elsewhere"],
    )
    def test_names_the_tensor_and_the_remedy(self, tensor: Tensor, message: str) -> None:
        with pytest.raises(ModelError, match=message):
            Parameters({"good": torch.zeros(2), "layer.w": tensor})

    def test_nothing_to_train(self) -> None:
        with pytest.raises(ModelError, match=r"no parameter is selected .*\[trainable\]"):
            Parameters({})


class TestAdd:
    @each_dtype
    @each_distribution
    def test_is_the_reference(self, dtype: torch.dtype, distribution: Distribution) -> None:
        tensors = {
            "matrix": random_tensor(70, 90, dtype=dtype),
            "bias": random_tensor(129, dtype=dtype, seed=1),
            "scalar": random_tensor(dtype=dtype, seed=2),
        }
        expected = {name: added(tensor, name, TERMS, distribution) for name, tensor in tensors.items()}
        Parameters(tensors).add(TERMS, distribution)
        for name, tensor in tensors.items():
            assert np.array_equal(bits(tensor), bits(expected[name])), name

    def test_equal_tensors_of_other_names_move_differently(self) -> None:
        tensors = {"a": torch.zeros(100), "b": torch.zeros(100)}
        Parameters(tensors).add(TERMS, "gaussian")
        assert not torch.isclose(tensors["a"], tensors["b"]).any()

    def test_reaches_the_model(self) -> None:
        layer = nn.Linear(5, 4)
        before = layer.weight.detach().clone()
        Parameters(dict(layer.named_parameters())).add(TERMS, "rademacher")
        assert torch.equal(layer.weight, added(before, "weight", TERMS, "rademacher"))

    @each_dtype
    def test_no_terms_change_nothing(self, dtype: torch.dtype) -> None:
        tensor = random_tensor(50, dtype=dtype)
        before = tensor.clone()
        Parameters({"weight": tensor}).add((), "binomial")
        assert np.array_equal(bits(tensor), bits(before))


class TestCopyFrom:
    @each_dtype
    def test_overwrites_in_place_and_ignores_the_rest(self, dtype: torch.dtype) -> None:
        tensors = {"a": torch.zeros(3, 4, dtype=dtype), "b": torch.zeros(5, dtype=dtype)}
        parameters, memory = Parameters(tensors), tensors["a"].data_ptr()
        source = {"a": random_tensor(3, 4, dtype=dtype), "b": random_tensor(5, dtype=dtype), "c": torch.ones(1)}
        parameters.copy_from(source)
        for name, tensor in tensors.items():
            assert np.array_equal(bits(tensor), bits(source[name]))
        assert tensors["a"].data_ptr() == memory

    def test_works_on_parameters_that_require_gradients(self) -> None:
        weight = nn.Parameter(torch.zeros(3))
        Parameters({"w": weight}).copy_from({"w": nn.Parameter(torch.ones(3))})
        assert torch.equal(weight, torch.ones(3))

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ({}, r"base weights: layer\.w is missing, expected shape \(2, 3\)"),
            ({"other": torch.zeros(2, 3)}, r"layer\.w is missing"),
            ({"layer.w": torch.zeros(3, 2)}, r"layer\.w is of shape \(3, 2\), expected shape \(2, 3\)"),
            ({"layer.w": torch.zeros(6)}, r"layer\.w is of shape \(6,\)"),
            ({"layer.w": torch.zeros(1, 3)}, r"layer\.w is of shape \(1, 3\)"),
        ],
        ids=["nothing", "other name", "transposed", "flat", "would broadcast"],
    )
    def test_refuses_what_does_not_fit(self, source: dict[str, Tensor], message: str) -> None:
        tensor = torch.ones(2, 3)
        with pytest.raises(ModelError, match=message):
            Parameters({"layer.w": tensor}).copy_from(source)
        assert torch.equal(tensor, torch.ones(2, 3))


@pytest.mark.parametrize("together", [True, False])
def test_weights_are_pulled_back_before_a_step(together: bool) -> None:
    """Each term keeps its share of what was there before it, whatever stands beside it in the list."""
    memory = torch.linspace(-1, 1, 10)
    tensors = {"a": memory[:6].view(2, 3), "b": memory[6:]}
    parameters, expected = Parameters(tensors, together=together), memory.clone()
    terms = [Term(3, 0.1), Term(5, 0.2, None, 0.5), Term(7, 0.0, None, 0.75), Term(9, -0.3)]
    one_by_one = {"a": expected[:6].view(2, 3), "b": expected[6:]}
    for term in terms:
        expected.mul_(term.keep)
        Parameters(one_by_one, together=together).add([Term(term.seed, term.scale)], "gaussian")
    parameters.add(terms, "gaussian")
    assert torch.equal(memory, expected)
