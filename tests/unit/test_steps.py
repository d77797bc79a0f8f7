"""What schedules and policies make of the steps in force is the same as anew, and costs no more as a run grows."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from planning import pairs, report

from twinpass.core import Estimate, Observation, PrefixReport, Probe, StepReport
from twinpass.reuse.base import Policy
from twinpass.reuse.frozen import Frozen
from twinpass.reuse.plan import Situation
from twinpass.reuse.reflected import NONE, Reflected, _measured
from twinpass.reuse.transported import Transported
from twinpass.schedule.adaptive import AdaptiveEpsilon
from twinpass.schedule.epsilon import ConstantEpsilon, Epsilon, JoinedEpsilon, Known
from twinpass.steps import Steps, folded, since

Look = Callable[[Sequence[StepReport]], object]


class Counted(Steps):
    """Counts how many steps are looked at."""

    looks = 0

    def __getitem__(self, at: int | slice) -> Any:
        found: Any = super().__getitem__(at)
        Counted.looks += len(found) if isinstance(at, slice) else 1
        return found


def scheduled(epsilon: Epsilon) -> Look:
    def look(steps: Sequence[StepReport]) -> object:
        known = Known(steps, accepted=lambda eps: 0.5)
        eps = epsilon.at(len(steps), known)
        return eps, epsilon.trials(len(steps), eps, known)

    return look


def planned(policy: Policy) -> Look:
    planner = policy.planner()

    def look(steps: Sequence[StepReport]) -> object:
        situation = Situation(3, steps, 0.99)
        return planner.plan(pairs(eps=1e-3), situation), planner.accepted(1e-3, situation)

    return look


LOOKS = {
    "adaptive": scheduled(AdaptiveEpsilon(every=50)),
    "joined": scheduled(JoinedEpsilon((ConstantEpsilon(1e-3), AdaptiveEpsilon(every=50)), (40,))),
    "reflected": planned(Reflected()),
    "transported": planned(Transported(refresh=8)),
    "frozen": planned(Frozen(check=0.0)),
}


def step(number: int, chance: random.Random, measures: bool) -> StepReport:
    """A step that now and then tried eps, measured errors and refreshed what it carried."""
    eps = chance.choice((1e-3, 1e-3, 3e-3))
    ladder = tuple((eps * s, 1 + chance.random() * eps * s, 1 - eps * s) for s in (0.25, 1, 4)) if measures else ()
    carried, age = (chance.choice((0.01, 0.1, 0.3)), 0) if measures else (None, number % 5)
    prefix = PrefixReport(errors=(0.1, 0.15, 0.3) if measures else (), accepted=1, age=age, carried=carried)
    observed = Observation(prefix, (0.1,) if measures else (), (0.2,) if measures else (), ladder, 1.0)
    return StepReport(number, Estimate((Probe(1),), eps, ((1.0, 1.0),), (0.0,)), (0.0,), 0.0, observed=observed)


@pytest.mark.parametrize("name", LOOKS)
def test_what_is_remembered_is_what_would_be_found_anew_also_after_rollbacks(name: str) -> None:
    look, chance, steps = LOOKS[name], random.Random(5), Steps()
    for turn in range(120):
        assert look(steps) == look(tuple(steps)), turn
        steps.append(step(len(steps), chance, chance.random() < 0.2))
        if turn % 30 == 29:
            steps.cut(chance.randrange(len(steps)))


@pytest.mark.parametrize("measures", [0.0, 0.05])
@pytest.mark.parametrize("name", LOOKS)
def test_a_step_costs_no_more_as_the_run_grows(name: str, measures: float) -> None:
    """Steps looked at: in all, a few times as many as there are."""
    look, chance, steps, count = LOOKS[name], random.Random(6), Counted(), 400
    Counted.looks = 0
    for number in range(count):
        look(steps)
        steps.append(step(number, chance, chance.random() < measures))
    assert count // 2 < Counted.looks < 8 * count


def test_few_measurements_are_remembered_and_they_say_what_all_would() -> None:
    """Of rounding and reflection, at whatever eps is asked for next; eps that never come twice, as an adaptive one's do not."""
    chance, steps = random.Random(7), list[StepReport]()
    for number in range(400):
        eps = 1e-3 * 2 ** (chance.random() * chance.choice((0.1, 1, 6)))
        errors = (chance.random(), chance.random())
        steps.append(report(errors if number % 3 else (), eps=eps))
        kept = folded(Steps(steps), NONE, _measured)
        assert len(kept) <= 12
        measured = [step for step in steps if step.observed.prefix.errors]
        for asked in (eps, 2 * eps, eps * 2**0.5, 1e-3, 64e-3):
            apart = [one for one in measured if not 0.5 < one.estimate.eps / asked < 2]
            assert [one for one in kept if not 0.5 < one.estimate.eps / asked < 2][-1:] == apart[-1:]


def test_folding_begins_again_after_a_cut() -> None:
    steps = Steps(report(eps=eps) for eps in (1.0, 2.0, 4.0))
    assert folded(steps, 0.0, total) == 7.0
    steps.append(report(eps=8.0))
    assert (folded(steps, 0.0, total), folded(tuple(steps), 0.0, total)) == (15.0, 15.0)
    assert folded(since(steps, 2), 0.0, total) == 12.0
    steps.cut(3)
    assert folded(steps, 0.0, total) == 7.0
    assert folded(since(steps, 2), 0.0, total) == 4.0
    assert list(since(steps, 5)) == []


def total(before: float, step: StepReport) -> float:
    return before + step.estimate.eps
