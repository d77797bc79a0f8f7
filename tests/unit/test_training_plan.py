"""A plan says where random numbers come from."""

from twinpass.estimate.spsa import Spsa
from twinpass.objective.choice import Choice
from twinpass.objective.goal import At
from twinpass.schedule.epsilon import ConstantEpsilon
from twinpass.train.optimizer import Sgd
from twinpass.train.plan import TrainingPlan


def plan(**more: int) -> TrainingPlan:
    return TrainingPlan(Spsa(), Choice(), ConstantEpsilon(1e-3), Sgd(lr=0.1, steps=9), [], [], **more)  # type: ignore[arg-type]


def test_draws_write_by_numbers_of_their_own_and_all_evaluations_by_the_same() -> None:
    one, other = plan(seed=3), plan(seed=4)
    drawn = [one.writing(2, draw) for draw in range(3)]
    assert [(at.step, at.steps) for at in drawn] == [(2, 9)] * 3
    exams = [one.exam(0), one.exam(9)]
    assert exams == [At(exams[0].seed, 0, 9), At(exams[0].seed, 9, 9)]
    assert len({at.seed for at in (*drawn, exams[0], other.exam(0), other.writing(2, 0))}) == 6
    assert plan().exam() == plan(seed=0).exam()
