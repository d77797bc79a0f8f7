"""Every kind of weights that stand at one lane at a time: at each lane they are what its formula says, and back at the base they are theta."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from twinpass.core import BASE, Lane, Probe, Term
from twinpass.perturb.copied import CopiedWeights
from twinpass.perturb.inplace import InPlaceWeights
from twinpass.perturb.lattice import Lattice
from twinpass.perturb.layout import flat_view
from twinpass.perturb.moving import MovingWeights
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution, reference
from twinpass.perturb.parameters import Parameters

EPS = 2.0**-9
BLOCKS = {"a": 0, "b": 1}
Make = Callable[[dict[str, Tensor], Distribution], MovingWeights]


def model(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {name: (torch.randn(37, 11, generator=generator) * 0.1).to(dtype) for name in ("a", "b")}


def copied(live: dict[str, Tensor], distribution: Distribution) -> MovingWeights:
    theta = Parameters({name: tensor.clone() for name, tensor in live.items()}, BLOCKS)
    return CopiedWeights(theta, live, distribution)


def inplace(live: dict[str, Tensor], distribution: Distribution) -> MovingWeights:
    return InPlaceWeights(Lattice(Parameters(live, BLOCKS), distribution))


KINDS: Mapping[str, Make] = {"copied": copied, "inplace": inplace}
CASES = [(make, distribution) for make in KINDS.values() for distribution in ("binomial", "rademacher")]


def snapshot(live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in live.items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return all(np.array_equal(flat_view(a[name]), flat_view(b[name])) for name in b)


def z(seed: int, name: str, distribution: Distribution) -> Tensor:
    return torch.from_numpy(reference(seed, name, 0, 37 * 11, distribution)).view(37, 11)


def test_every_kind_is_in_the_table() -> None:
    assert len(KINDS) == len(MovingWeights.__subclasses__())


@pytest.mark.parametrize(("make", "distribution"), CASES)
def test_lanes_and_the_way_back(make: Make, distribution: Distribution) -> None:
    live = model()
    weights = make(live, distribution)
    weights.move_to(BASE)
    theta = snapshot(live)
    for lane in (Lane(Probe(3), 1, EPS), Lane(Probe(3), -1, EPS), Lane(Probe(4), 1, EPS), Lane(Probe(5, 1), 1, EPS)):
        weights.move_to(lane)
        assert lane.probe is not None
        for name, tensor in live.items():
            moved = lane.probe.block in (None, BLOCKS[name])
            expected = theta[name] + (lane.scale * z(lane.probe.seed, name, distribution) if moved else 0)
            assert torch.allclose(tensor, expected, atol=1e-6, rtol=0)
            assert torch.equal(tensor, theta[name]) is not moved
    weights.move_to(BASE)
    assert same(live, theta)


@pytest.mark.parametrize(("make", "distribution"), CASES)
def test_updates_do_not_depend_on_when_they_arrive(make: Make, distribution: Distribution) -> None:
    terms = [Term(8, 1e-4), Term(9, -3e-5, 0), Term(10, 2e-4, 1)]
    at_once, one_by_one = model(), model()
    weights = make(at_once, distribution)
    weights.update(terms)
    weights.move_to(BASE)
    other = make(one_by_one, distribution)
    for term in terms:
        other.move_to(Lane(Probe(2), -1, EPS))
        other.update([term])
    other.move_to(BASE)
    assert not same(at_once, model())
    assert same(at_once, one_by_one)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_copies_take_any_dtype_and_update_as_the_parameters_do(dtype: torch.dtype, distribution: Distribution) -> None:
    live, terms = model(dtype), [Term(8, 1e-3), Term(9, -3e-4, 1)]
    weights = copied(live, distribution)
    weights.move_to(Lane(Probe(3), 1, EPS))
    weights.update(terms)
    weights.move_to(BASE)
    expected = model(dtype)
    Parameters(expected, BLOCKS).add(terms, distribution)
    assert same(live, expected)


def test_copies_reach_tensors_that_are_not_in_one_piece() -> None:
    """As they are on another device: written elsewhere and copied."""
    whole = {name: torch.zeros(37, 22) for name in ("a", "b")}
    live = {name: tensor[:, ::2] for name, tensor in whole.items()}
    for name, tensor in model().items():
        live[name].copy_(tensor)
    ordinary = model()
    for target in (live, ordinary):
        theta = Parameters({name: tensor.contiguous().clone() for name, tensor in target.items()})
        CopiedWeights(theta, target, "gaussian").move_to(Lane(Probe(3), 1, EPS))
    assert all(torch.equal(live[name], ordinary[name]) for name in live)
    assert all(bool((tensor[:, 1::2] == 0).all()) for tensor in whole.values())
