"""Directions are ridge regressions of minus the error on modules' inputs, and rows that judge them are set apart."""

from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from twinpass.core import Work
from twinpass.estimate import directions
from twinpass.estimate.directions import RIDGES, UNIT, _best_ridge, _level, fit
from twinpass.model.space import Observed
from twinpass.model.trainable import Fitting
from twinpass.task.example import Example
from twinpass.train.fitting import answer_tokens, split

N, WIDE, SIZE = 60, 9, 7


def observed(noise: float = 0.0, rank: int = 2) -> tuple[Observed, Tensor]:
    """Errors that are a linear function of the inputs' distance from their mean, in ``rank`` directions; and that function."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(N, WIDE, generator=generator, dtype=torch.float64)
    x = x - x.mean(0) + torch.full((WIDE,), 5.0)
    truth = torch.randn(rank, WIDE, generator=generator, dtype=torch.float64)
    outputs = torch.linalg.qr(torch.randn(SIZE, rank, generator=generator, dtype=torch.float64))[0].t()
    wanted = (x - x.mean(0)) @ truth.t() + noise * torch.randn(N, rank, generator=generator, dtype=torch.float64)
    return Observed({"a": x}, -(wanted - wanted.mean(0)) @ outputs, 10.0, Work()), truth


def test_a_linear_error_is_found() -> None:
    seen, _ = observed()
    space = fit(seen, None, rank=5, ridge=1e-9)
    assert space.outputs.shape == (2, SIZE)
    assert torch.allclose(space.outputs @ space.outputs.t(), torch.eye(2, dtype=torch.float64), atol=1e-12)
    moved = seen.inputs["a"] @ space.inputs["a"].t() @ space.outputs
    cosine = torch.nn.functional.cosine_similarity(moved.flatten(), -seen.errors.flatten(), 0)
    assert float(cosine) > 0.95
    assert float(moved.square().sum(1).mean().sqrt()) == pytest.approx(UNIT * seen.scale)


def test_the_mean_input_moves_by_the_mean_target() -> None:
    seen, _ = observed()
    shifted = Observed(seen.inputs, seen.errors + seen.errors[:1], seen.scale, Work())
    space = fit(shifted, None, rank=5, ridge=0.1)
    mean = seen.inputs["a"].mean(0) @ space.inputs["a"].t() @ space.outputs
    target = -shifted.errors.mean(0)
    assert float(torch.nn.functional.cosine_similarity(mean, target, 0)) > 0.99


def test_what_a_norm_makes_of_an_error_is_regressed_on_where_one_lies_between() -> None:
    seen, _ = observed()
    other = seen.errors.flip(0)
    both = Observed({"a": seen.inputs["a"], "b": seen.inputs["a"]}, seen.errors, seen.scale, Work(), {"b": other})
    space, alone = fit(both, None, rank=5, ridge=0.1), fit(replace(seen, errors=other), None, rank=5, ridge=0.1)
    assert torch.equal(space.inputs["a"], fit(seen, None, rank=5, ridge=0.1).inputs["a"])
    torch.testing.assert_close(space.outputs.t() @ space.inputs["b"], alone.outputs.t() @ alone.inputs["a"])
    assert not torch.allclose(space.inputs["a"], space.inputs["b"])


def test_outputs_given_are_kept_and_rank_is_bounded() -> None:
    seen, _ = observed(rank=4)
    first = fit(seen, None, rank=3, ridge=0.1)
    assert len(first.outputs) == 3
    again = fit(Observed(seen.inputs, seen.errors * 2, 1.0, Work()), first.outputs, rank=3, ridge=0.1)
    assert torch.equal(again.outputs, first.outputs)


@pytest.mark.parametrize(("noise", "least", "most"), [(0.0, 0.0, 0.1), (30.0, 1.0, 9.0)])
def test_noisy_errors_are_fitted_more_cautiously(noise: float, least: float, most: float) -> None:
    seen, _ = observed(noise)
    chosen = fit(seen, None, rank=5)
    same = [ridge for ridge in RIDGES if fit(seen, None, rank=5, ridge=ridge).digest == chosen.digest]
    assert len(same) == 1
    assert least <= same[0] <= most


@pytest.mark.parametrize("noise", [0.0, 30.0])
def test_a_penalty_is_chosen_whatever_the_inputs_unit(noise: float) -> None:
    seen, _ = observed(noise)
    wanted = seen.errors[:, :3]
    chosen = [_best_ridge([(seen.inputs["a"] * unit, wanted)]) for unit in (1e-5, 1.0, 1e5)]
    assert len(set(chosen)) == 1
    assert (chosen[0] == RIDGES[0]) == (noise == 0.0)


def test_no_error_gives_no_direction_and_no_fault() -> None:
    seen, _ = observed()
    space = fit(Observed(seen.inputs, torch.zeros_like(seen.errors), seen.scale, Work()), None, rank=4)
    assert bool(torch.isfinite(space.inputs["a"]).all())
    assert not bool(space.inputs["a"].any())


def test_of_many_tokens_some_are_regressed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, _ = observed()
    monkeypatch.setattr(directions, "MOST", 20)
    some = fit(seen, None, rank=5, ridge=0.1)
    monkeypatch.undo()
    every_third = torch.linspace(0, N - 1, 20, dtype=torch.float64).round().long()
    part = Observed({"a": seen.inputs["a"][every_third]}, seen.errors[every_third], seen.scale, Work())
    assert fit(part, None, rank=5, ridge=0.1).digest == some.digest
    assert fit(seen, None, rank=5, ridge=0.1).digest != some.digest


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows_give_finite_directions(rows: int) -> None:
    seen, _ = observed()
    few = Observed({"a": seen.inputs["a"][:rows]}, seen.errors[:rows], seen.scale, Work())
    space = fit(few, None, rank=4)
    assert bool(torch.isfinite(space.inputs["a"]).all())
    assert bool(space.inputs["a"].any())
    alike = Observed({"a": seen.inputs["a"][:1].expand(5, -1)}, seen.errors[:5], seen.scale, Work())
    assert bool(torch.isfinite(fit(alike, None, rank=4).inputs["a"]).all())


@pytest.mark.parametrize(("count", "rows"), [(400, 100), (60, 512), (7, 3), (2, 5), (1, 5)])
def test_rows_of_batches_are_never_fitted_to(count: int, rows: int) -> None:
    seen: tuple[set[int], set[int]] = (set(), set())
    fitting = Fitting(rows, 4, None)
    for draw in range(30):
        fit_rows, batch_rows = split(range(count), fitting, 16, 5, draw)
        assert (fit_rows, batch_rows) == split(range(count), fitting, 16, 5, draw)
        assert 1 <= len(fit_rows) <= rows
        assert 1 <= len(batch_rows) <= 16
        assert max(Counter(fit_rows + (batch_rows if count > 1 else [])).values()) == 1
        seen[0].update(fit_rows)
        seen[1].update(batch_rows)
    assert count == 1 or not seen[0] & seen[1]
    assert len(seen[1]) == max(1, min(count // 5, 32))
    assert split(range(count), fitting, 16, 6, 0) != split(range(count), fitting, 16, 5, 0) or count < 8
    assert np.isin(list(seen[0] | seen[1]), range(count)).all()


def test_a_short_run_reads_few_rows_and_a_long_one_all() -> None:
    fits = [split(range(2000), Fitting(512, 4, None), 64, 5, draw)[0] for draw in range(9)]
    assert [len(fit) for fit in fits] == [128, 256, *[512] * 7]
    assert fits[2][:256] == fits[1], "what was read is read again before anything else"
    assert fits[1][:128] == fits[0]
    assert not set(fits[2]) & set(fits[3])
    assert len(set().union(*map(set, fits))) == 2000 - 128
    few = [split(range(100), Fitting(512, 4, None), 64, 5, draw)[0] for draw in range(3)]
    assert [set(fit) for fit in few] == [set(few[0])] * 3
    assert len(few[0]) == 80


def test_rows_take_turns_in_their_order_unless_all_fit() -> None:
    order, _ = split(range(500), Fitting(400, 4, None), 64, 5, 9)
    assert len(order) == 400
    for draw in (2, 10, 11):
        assert split(range(500), Fitting(400, 4, None), 64, 5, draw)[0] == order, "all fit"
    turns = [split(range(500), Fitting(128, 4, None), 64, 5, draw)[0] for draw in range(5)]
    assert turns == [order[:128], order[128:256], order[256:384], order[384:] + order[:112], order[112:240]]


def long(length: int, example: int) -> int:
    """So many tokens, whatever the example."""
    return length


def test_texts_are_fewer_than_options() -> None:
    for length, fitted, scored in ((1, 128, 64), (4, 128, 64), (32, 32, 8), (2000, 1, 1)):
        fit_rows, batch_rows = split(range(2000), Fitting(512, 4, None), 64, 5, 0, partial(long, length))
        assert (len(fit_rows), len(batch_rows)) == (fitted, scored)
    turns = [split(range(2000), Fitting(512, 4, None), 64, 5, draw, partial(long, 32))[0] for draw in range(5)]
    assert len(set().union(*map(set, turns))) == 5 * 32, "every step is fitted to texts of its own"
    assert answer_tokens(Example((1,), ((2,), (3,)), 0, 0)) == 1
    assert answer_tokens(Example((1,), ((2, 3), (4, 5, 6)), 0, 0)) == 4
    assert answer_tokens(Example((1,), ((2, 3, 4),), 0, 0)) == 3


def test_a_ridges_level_is_the_inputs_spread_but_no_less_than_rounding() -> None:
    spread = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    for mean, expected in ((0.0, 2.5), (30.0, 2.5), (1e5, 1e-6 * (2e10 + 2.5))):
        centred = spread.double()
        level = _level((spread + mean).double(), centred @ centred.t())
        assert float(level) == pytest.approx(expected, rel=1e-6)
