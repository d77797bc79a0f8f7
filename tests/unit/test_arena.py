"""Parameters that lie back to back are perturbed and moved in one call, to the same bits as one by one."""

import pytest
import torch
from torch import Tensor

from twinpass.core import BASE, Lane, Probe, Term
from twinpass.engine.embedded.linear.lanes import LaneWeights
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution
from twinpass.perturb.parameters import Parameters

SHAPES = {"a": (8, 576), "b": (1,), "c": (192, 8), "d": (3, 43), "e": (2, 4096)}
"""Sizes of one unit of noise, less, more, and more than a chunk."""

each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def tensors(dtype: torch.dtype) -> dict[str, Tensor]:
    sizes = [torch.Size(shape).numel() for shape in SHAPES.values()]
    whole = torch.randn(7 + sum(sizes), generator=torch.Generator().manual_seed(1), dtype=dtype)
    parts, start = {}, 7
    for (name, shape), size in zip(SHAPES.items(), sizes, strict=True):
        parts[name] = whole[start : start + size].view(shape)
        start += size
    return parts


def both(dtype: torch.dtype) -> tuple[Parameters, Parameters]:
    together = Parameters(tensors(dtype), together=True)
    apart = Parameters({name: tensor.clone() for name, tensor in tensors(dtype).items()})
    return together, apart


@each_distribution
@each_dtype
def test_lanes_are_the_same_bits(dtype: torch.dtype, distribution: Distribution) -> None:
    lanes = [Lane(Probe(5), 1, 1e-2), Lane(Probe(5), -1, 1e-2), BASE, Lane(Probe(2**63 + 1), 1, 0.5)]
    together, apart = (LaneWeights(parameters, distribution, lanes) for parameters in both(dtype))
    for name, shape in SHAPES.items():
        assert together.whole(name).shape == (len(lanes), *shape)
        assert torch.equal(together.whole(name), apart.whole(name))
    assert together.visited == apart.visited == set(SHAPES)


@each_distribution
@each_dtype
def test_updates_are_the_same_bits(dtype: torch.dtype, distribution: Distribution) -> None:
    together, apart = both(dtype)
    for parameters in (together, apart):
        parameters.add([Term(3, 1e-2), Term(2**40, -2.5)], distribution)
    assert all(torch.equal(together[name], apart[name]) for name in SHAPES)
    assert not any(torch.equal(together[name], tensor) for name, tensor in tensors(dtype).items())


def test_tensors_that_lie_elsewhere_are_refused() -> None:
    parts = tensors(torch.float32)
    with pytest.raises(ValueError, match="back to back"):
        Parameters({"b": parts["b"], "a": parts["a"]}, together=True)
    with pytest.raises(ValueError, match="back to back"):
        Parameters({**parts, "e": parts["e"].clone()}, together=True)
