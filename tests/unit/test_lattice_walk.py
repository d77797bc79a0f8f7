"""Weights that walk on a lattice from lane to lane and through updates come back exactly."""

from random import Random

import numeric
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lattices import DTYPES, EPS, GRIDDED, Ledger, bits, each_dtype, journal, property_test, random_tensor, small_model

from twinpass.core import Lane, Probe, Term
from twinpass.errors import LatticeError
from twinpass.perturb.inplace import InPlaceWeights
from twinpass.perturb.lattice import Lattice
from twinpass.perturb.noise import Distribution
from twinpass.perturb.parameters import Parameters

one_thread, threads = numeric.one_thread, numeric.threads


class TestWalk:
    @pytest.mark.parametrize(
        ("distribution", "dtype", "q", "steps"),
        [
            ("binomial", torch.float32, 1, 1000),
            pytest.param("rademacher", torch.float32, 1, 1000, marks=pytest.mark.full),
            pytest.param("binomial", torch.float64, 1, 1000, marks=pytest.mark.full),
            ("rademacher", torch.float64, 2, 200),
            ("binomial", torch.float32, 3, 200),
        ],
    )
    def test_a_thousand_steps_are_the_base_plus_the_journal(
        self, distribution: Distribution, dtype: torch.dtype, q: int, steps: int
    ) -> None:
        tensors = small_model(dtype)
        ledger = Ledger(tensors, distribution)
        weights = InPlaceWeights(Lattice(Parameters(tensors), distribution))
        base = {name: bits(tensor).copy() for name, tensor in tensors.items()}
        updates = [journal(step, q) for step in range(steps)]
        for step, terms in enumerate(updates):
            before = weights.passes
            for term in terms:
                for sign in (1, -1):
                    lane = Lane(Probe(term.seed), sign, EPS)
                    weights.move_to(lane)
                    if step % 50 == 0:
                        ledger.assert_equals(tensors, lane)
            assert weights.passes - before == 2 * q
            weights.update(terms)
            ledger.add(terms)
        weights.settle()
        assert weights.passes == 2 * q * steps + 1
        ledger.assert_equals(tensors)
        assert not any(np.array_equal(bits(tensor), base[name]) for name, tensor in tensors.items())

        random = Random(0)
        for terms in random.sample(updates, steps):
            weights.undo(random.sample(terms, q))
            if random.random() < 0.2:
                weights.move_to(Lane(Probe(terms[0].seed), random.choice((1, -1)), EPS))
        weights.settle()
        for name, tensor in tensors.items():
            assert np.array_equal(bits(tensor), base[name]), name

    def test_settling_every_step_gives_the_same_bits(self) -> None:
        lazy, eager = small_model(), small_model()
        for tensors, settles in ((lazy, False), (eager, True)):
            weights = InPlaceWeights(Lattice(Parameters(tensors), "binomial"))
            for step in range(50):
                terms = journal(step, 1)
                for sign in (1, -1):
                    weights.move_to(Lane(Probe(terms[0].seed), sign, EPS))
                    if settles:
                        weights.settle()
                weights.update(terms)
                if settles:
                    weights.settle()
            weights.settle()
        for name in lazy:
            assert np.array_equal(bits(lazy[name]), bits(eager[name]))

    @property_test
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(("plus", "minus", "settle", "update", "undo")),
                st.sampled_from((1, 2, 2**63)),
                st.sampled_from((1e-3, -3e-8, 0.0, 2e-5)),
            ),
            max_size=25,
        ),
        st.sampled_from(GRIDDED),
        st.sampled_from(DTYPES),
    )
    def test_any_walk_ends_at_the_ledger(
        self, moves: list[tuple[str, int, float]], distribution: Distribution, dtype: torch.dtype
    ) -> None:
        tensors = {"w": random_tensor(300, dtype=dtype), "v": random_tensor(5, spread=9.0, dtype=dtype)}
        ledger = Ledger(tensors, distribution)
        weights = InPlaceWeights(Lattice(Parameters(tensors), distribution))
        for move, seed, scale in moves:
            lane = Lane(Probe(seed), 1 if move == "plus" else -1, EPS)
            if move == "update":
                weights.update([Term(seed, scale)])
                ledger.add([Term(seed, scale)])
            elif move == "undo":
                weights.undo([Term(seed, scale)])
                ledger.add([Term(seed, scale)], -1)
            elif move == "settle":
                weights.settle()
                ledger.assert_equals(tensors)
            else:
                weights.move_to(lane)
                ledger.assert_equals(tensors, lane)
        weights.settle()
        ledger.assert_equals(tensors)

    @each_dtype
    def test_a_refused_move_leaves_the_walk_where_it_was(self, dtype: torch.dtype) -> None:
        calm, wild = random_tensor(5000, spread=3.0, dtype=dtype), torch.full((5000,), 2.0, dtype=dtype)
        tensors = {"calm": calm, "wild": wild}
        ledger = Ledger(tensors, "binomial")
        weights = InPlaceWeights(Lattice(Parameters(tensors), "binomial"))
        here, next_lane = Lane(Probe(1), 1, EPS), Lane(Probe(1), -1, EPS)
        weights.move_to(here)

        weights.update([Term(2, 1e-4)])
        with pytest.raises(LatticeError, match="weights of wild"):
            weights.move_to(Lane(Probe(3), 1, 2.0))
        ledger.assert_equals(tensors, here)
        weights.move_to(next_lane)
        ledger.add([Term(2, 1e-4)])
        ledger.assert_equals(tensors, next_lane)

        weights.update([Term(4, 3.0)])
        with pytest.raises(LatticeError, match="weights of wild"):
            weights.settle()
        ledger.assert_equals(tensors, next_lane)
        weights.undo([Term(4, 3.0)])
        weights.settle()
        ledger.assert_equals(tensors)

    def test_standing_still_costs_no_pass(self) -> None:
        weights = InPlaceWeights(Lattice(Parameters(small_model()), "binomial"))
        weights.settle()
        assert weights.passes == 0
        for _ in range(2):
            weights.move_to(Lane(Probe(1), 1, EPS))
            assert weights.passes == 1
        weights.update([])
        for _ in range(2):
            weights.settle()
            assert weights.passes == 2

    def test_tiny_negative_weights_come_back_to_the_bit(self) -> None:
        """They snap to zero, whose sign must survive a round trip too."""
        tensors = {"w": torch.tensor([-1e-9, -0.0, 0.0, 1e-9])}
        weights = InPlaceWeights(Lattice(Parameters(tensors), "rademacher"))
        base = bits(tensors["w"]).copy()
        weights.move_to(Lane(Probe(1), 1, EPS))
        weights.settle()
        assert np.array_equal(bits(tensors["w"]), base)
