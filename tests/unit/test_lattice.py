"""Sums on a lattice are those of integers in plain NumPy, in any order and split; what has no room there is refused."""

import math
from random import Random

import numeric
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lattices import (
    BITS,
    DTYPES,
    EPS,
    GRIDDED,
    Ledger,
    bits,
    each_distribution,
    each_dtype,
    journal,
    property_test,
    random_tensor,
    small_model,
)

from twinpass.core import Lane, Probe, Term
from twinpass.errors import LatticeError
from twinpass.perturb import noise
from twinpass.perturb.inplace import InPlaceWeights
from twinpass.perturb.lattice import Lattice, LatticeTerm, power_of_two
from twinpass.perturb.noise import Distribution
from twinpass.perturb.parameters import Parameters

one_thread, threads = numeric.one_thread, numeric.threads


class TestGrid:
    @each_dtype
    @pytest.mark.parametrize(
        ("largest", "reach"),
        [(0, 4), (1e-3, 4), (1.999, 4), (2, 4), (2.001, 8), (3.9, 8), (4, 8), (4.1, 16), (100, 256), (1e4, 2**15)],
    )
    def test_has_room_for_weights_to_double(self, largest: float, reach: float, dtype: torch.dtype) -> None:
        weights = torch.tensor([0.0, -largest, largest / 3], dtype=dtype)
        lattice = Lattice(Parameters({"w": weights}), "binomial")
        assert lattice.quantum == {"w": reach * 2.0 ** -BITS[dtype]}

    @each_dtype
    @pytest.mark.parametrize("spread", [1e-7, 1e-3, 1.0, 37.0, 1e5])
    def test_snapping_moves_at_most_half_a_quantum_and_only_once(self, spread: float, dtype: torch.dtype) -> None:
        weights = random_tensor(3000, spread=spread, dtype=dtype)
        before = weights.double().clone()
        lattice = Lattice(Parameters({"w": weights}), "binomial")
        quantum = lattice.quantum["w"]
        snapped = weights.clone()
        assert (snapped.double() - before).abs().max() <= quantum / 2
        assert torch.equal(snapped.double() / quantum, (snapped.double() / quantum).round())

        lattice.snap()
        assert np.array_equal(bits(weights), bits(snapped))
        assert Lattice(Parameters({"w": weights}), "binomial").quantum["w"] == quantum
        assert np.array_equal(bits(weights), bits(snapped))

    @pytest.mark.parametrize(
        ("eps", "used"),
        [(1e-3, 2**-10), (2**-10, 2**-10), (3e-3, 2**-8), (1e-4, 2**-13), (1.0, 1.0), (1.4, 1.0), (1.5, 2.0)],
    )
    def test_power_of_two(self, eps: float, used: float) -> None:
        assert power_of_two(eps) == used

    @property_test
    @given(st.floats(1e-12, 1e6))
    def test_power_of_two_is_the_nearest(self, eps: float) -> None:
        used = power_of_two(eps)
        assert math.frexp(used)[0] == 0.5
        assert 0.7071 < used / eps < 1.4143


class TestAddition:
    @each_dtype
    @each_distribution
    def test_is_the_ledgers(self, dtype: torch.dtype, distribution: Distribution) -> None:
        tensors = small_model(dtype)
        ledger = Ledger(tensors, distribution)
        terms = [Term(3, 1e-3), Term(2**63 + 1, -2e-8), Term(2**64 - 1, 0.01)]
        lattice = Lattice(Parameters(tensors), distribution)
        ledger.assert_equals(tensors)
        lattice.add([LatticeTerm(term.probe, update=term.scale) for term in terms])
        ledger.add(terms)
        ledger.assert_equals(tensors)
        lattice.add([LatticeTerm(Probe(5), perturbation=-EPS)])
        ledger.assert_equals(tensors, Lane(Probe(5), -1, EPS))

    @each_dtype
    @each_distribution
    def test_a_perturbation_is_exact(self, dtype: torch.dtype, distribution: Distribution) -> None:
        tensors = small_model(dtype)
        lattice = Lattice(Parameters(tensors), distribution)
        before = {name: tensor.double().clone() for name, tensor in tensors.items()}
        lattice.add([LatticeTerm(Probe(5), perturbation=EPS)])
        for name, tensor in tensors.items():
            z = torch.from_numpy(noise.reference(5, name, 0, tensor.numel(), distribution)).reshape(tensor.shape)
            assert torch.equal(tensor.double() - before[name], EPS * z.double())

    @property_test
    @given(
        st.lists(
            st.builds(
                LatticeTerm,
                probe=st.builds(Probe, st.sampled_from((1, 2, 2**63, 2**64 - 1))),
                perturbation=st.integers(-3, 3).map(lambda n: n * EPS),
                update=st.floats(-1e-3, 1e-3),
                times=st.sampled_from((1, -1, 2)),
            ),
            min_size=1,
            max_size=8,
        ),
        st.sampled_from(GRIDDED),
        st.sampled_from(DTYPES),
        st.randoms(use_true_random=False),
    )
    def test_any_order_and_split_gives_the_same_bits(
        self, terms: list[LatticeTerm], distribution: Distribution, dtype: torch.dtype, random: Random
    ) -> None:
        together, apart = small_model(dtype), small_model(dtype)
        Lattice(Parameters(together), distribution).add(terms)
        shuffled = random.sample(terms, len(terms))
        cut = random.randint(0, len(terms))
        lattice = Lattice(Parameters(apart), distribution)
        for part in (shuffled[:cut], shuffled[cut:]):
            lattice.add(part)
        for name in together:
            assert np.array_equal(bits(together[name]), bits(apart[name]))

    def test_any_number_of_threads(self, threads: int) -> None:
        tensors = {"w": random_tensor(30_000)}
        ledger = Ledger(tensors, "binomial")
        terms = journal(0, 3)
        Lattice(Parameters(tensors), "binomial").add([LatticeTerm(t.probe, update=t.scale) for t in terms])
        ledger.add(terms)
        ledger.assert_equals(tensors)

    @each_dtype
    @each_distribution
    @pytest.mark.parametrize("quanta", [0.3, -0.01, 0.5, -2.7])
    def test_rounding_is_unbiased(self, quanta: float, dtype: torch.dtype, distribution: Distribution) -> None:
        """Two two-sided z-tests at alpha 1e-6 each (|score| < 4.9): the residual's mean, and its correlation with
        the sign of the update. The seeds are fixed, so the outcome is too.
        """
        count = 100_000
        weights = torch.zeros(count, dtype=dtype)
        lattice = Lattice(Parameters({"w": weights}), distribution)
        quantum = lattice.quantum["w"]
        lattice.add([LatticeTerm(Probe(23), update=quanta * quantum)])
        wanted = quanta * noise.reference(23, "w", 0, count, distribution).astype(np.float64)
        chance = wanted - np.floor(wanted)
        moved = weights.double().numpy() / quantum
        assert np.isin(moved - np.floor(wanted), (0, 1)).all()
        deviation = math.sqrt(float((chance * (1 - chance)).sum()))
        assert abs(float((moved - wanted).sum())) <= 4.9 * deviation
        assert abs(float(((moved - wanted) * np.sign(wanted)).sum())) <= 4.9 * deviation

    def test_updates_below_half_a_quantum_are_not_lost(self) -> None:
        """The control of the test above: rounding to nearest would leave every one of these weights at zero."""
        weights = torch.zeros(100_000)
        lattice = Lattice(Parameters({"w": weights}), "rademacher")
        lattice.add([LatticeTerm(Probe(23), update=0.3 * lattice.quantum["w"])])
        assert 0.29 < float((weights != 0).double().mean()) < 0.31


class TestRefusals:
    def test_gaussian_noise(self) -> None:
        with pytest.raises(LatticeError, match=r"in-place mode needs noise on a grid: .*'binomial' or 'rademacher'"):
            Lattice(Parameters({"w": torch.zeros(2)}), "gaussian")

    def test_bfloat16_weights(self) -> None:
        tensors = {"good": torch.zeros(2), "layer.w": torch.zeros(2, dtype=torch.bfloat16)}
        with pytest.raises(LatticeError, match=r"layer\.w is torch\.bfloat16: .* model\.dtype = 'float32'"):
            Lattice(Parameters(tensors), "binomial")

    @each_distribution
    @pytest.mark.parametrize("eps", [1e-3, 0.1, 3e-3, 2.0**-30, math.pi])
    def test_an_eps_between_the_quanta(self, eps: float, distribution: Distribution) -> None:
        weights = random_tensor(100)
        lattice = Lattice(Parameters({"layer.w": weights}), distribution)
        before = weights.clone()
        with pytest.raises(
            LatticeError, match=r"perturbation of layer\.w is .* not a whole number; eps must be a power"
        ):
            InPlaceWeights(lattice).move_to(Lane(Probe(1), 1, eps))
        assert torch.equal(weights, before)

    def test_an_eps_too_small_for_one_tensor_only(self) -> None:
        tensors = {"small.w": torch.ones(4), "large.w": torch.full((4,), 1000.0)}
        lattice = Lattice(Parameters(tensors), "binomial")
        with pytest.raises(LatticeError, match=r"perturbation of large\.w is 0\.0078125 times its grid"):
            lattice.add([LatticeTerm(Probe(1), perturbation=2.0**-18)])

    @each_dtype
    @pytest.mark.parametrize(
        "term",
        [
            LatticeTerm(Probe(1), perturbation=4.0),
            LatticeTerm(Probe(1), update=3.5),
            LatticeTerm(Probe(1), update=-3.9, times=-1),
        ],
        ids=["perturbation", "update", "undo"],
    )
    @pytest.mark.parametrize("side", [1, -1])
    def test_leaving_the_range(self, side: int, term: LatticeTerm, dtype: torch.dtype) -> None:
        """From 2, with the range ending at 4, exactly the weights that move outwards leave it; likewise from -2."""
        tensors = {"calm": torch.zeros(3, dtype=dtype), "wild.w": torch.full((500,), 2.0 * side, dtype=dtype)}
        lattice = Lattice(Parameters(tensors), "rademacher")
        outside = int((noise.reference(1, "wild.w", 0, 500, "rademacher") == side).sum())
        with pytest.raises(
            LatticeError, match=rf"^{outside} weights of wild\.w would grow beyond 4, .* lower optimizer\.lr"
        ):
            lattice.add([term])

    @each_dtype
    @each_distribution
    def test_a_refused_addition_moves_nothing(self, distribution: Distribution, dtype: torch.dtype) -> None:
        """The second tensor has chunks that would fit and chunks that would not; the third is never reached."""
        wild = torch.zeros(20_000, dtype=dtype)
        wild[5000:12_000] = 2.0
        calm, late = random_tensor(5000, spread=3.0, dtype=dtype), random_tensor(30, dtype=dtype)
        tensors = {"calm": calm, "wild": wild, "late": late}
        step = 0.75 if distribution == "binomial" else 2.5
        lattice = Lattice(Parameters(tensors), distribution)
        before = {name: bits(tensor).copy() for name, tensor in tensors.items()}
        with pytest.raises(LatticeError, match=r"weights of wild would grow beyond 4"):
            lattice.add(
                [LatticeTerm(Probe(1), update=1e-4, times=-1), LatticeTerm(Probe(2), perturbation=EPS, update=step)]
            )
        for name, tensor in tensors.items():
            assert np.array_equal(bits(tensor), before[name]), name

    @each_dtype
    def test_the_edge_of_the_range_is_inside(self, dtype: torch.dtype) -> None:
        weights = torch.full((500,), 2.0, dtype=dtype)
        lattice = Lattice(Parameters({"w": weights}), "rademacher")
        lattice.add([LatticeTerm(Probe(1), perturbation=2.0)])
        assert set(weights.tolist()) == {0.0, 4.0}
        lattice.add([LatticeTerm(Probe(1), perturbation=-2.0)])
        assert set(weights.tolist()) == {2.0}
