"""What a journal's records add up to."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journals import Record, evaluation, report, rollback

from twinpass.compact import Compact
from twinpass.core import Observation, PrefixReport, StepReport
from twinpass.errors import JournalError
from twinpass.steps import Steps
from twinpass.train.history import History
from twinpass.train.records import step_record


def test_history_of_nothing_is_the_start() -> None:
    assert History.of([]) == History(Steps(), {}, 0, Compact(), 0, 1.0)


def test_a_rollback_takes_back_steps_and_evaluations_but_no_draws() -> None:
    steps = [report(step, seed=step) for step in range(4)]
    history = History.of([evaluation(0, 0.5), *map(step_record, steps[:2]), evaluation(2, 0.9)])
    for record in (*map(step_record, steps[2:]), evaluation(4, 0.1)):
        history.fold(record)
    assert (len(history.steps), history.draws, history.rollbacks, history.lr_scale) == (4, 4, 0, 1.0)

    history.fold(rollback(2, 0.5))
    assert history.steps == steps[:2]
    assert history.evaluations == {0: 0.5, 2: 0.9}
    assert (history.draws, history.rollbacks, history.lr_scale) == (4, 1, 0.5)

    again = report(2, seed=77)
    history.fold(step_record(again))
    assert history.steps == [*steps[:2], again]
    assert history.draws == 5

    history.fold(rollback(0, 0.25, discarded=1))
    assert history == History(Steps(), {0: 0.5}, 6, history.events, 2, 0.25)
    assert [(event.kind, event.step, event.draw) for event in history.events] == [
        ("evaluation", 0, 0), ("draw", 0, 0), ("draw", 1, 1), ("evaluation", 2, 0), ("draw", 2, 2), ("draw", 3, 3),
        ("evaluation", 4, 0), ("rollback", 2, 0), ("draw", 2, 4), ("draw", 3, 5), ("rollback", 0, 0),
    ]  # fmt: skip


def test_an_evaluation_made_again_replaces_the_old() -> None:
    assert History.of([evaluation(2, 0.5), evaluation(2, 0.75)]).evaluations == {2: 0.75}


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_history_is_that_of_a_plain_list(data: st.DataObject) -> None:
    history, draws = History(), 0
    kept: list[StepReport] = []
    records: list[Record] = []
    for count in range(data.draw(st.integers(0, 15))):
        if data.draw(st.integers(0, 3)):
            step = report(len(kept), seed=count)
            kept.append(step)
            draws += 1
            records.append(step_record(step))
        else:
            to, discarded = data.draw(st.integers(0, len(kept))), data.draw(st.integers(0, 1))
            kept, draws = kept[:to], draws + discarded
            records.append(rollback(to, 0.5, discarded))
        history.fold(records[-1])
    assert (list(history.steps), history.draws) == (kept, draws)
    assert history == History.of(records)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.sampled_from([None, 1.0, 2.0, 3.0])), min_size=1))
def test_extremes_kept_up_are_those_found_anew(found: list[tuple[int, int, float | None]]) -> None:
    """Through evaluations made again, and rollbacks (a metric of 0 stands for one)."""
    history = History()
    for step, metric, loss in found:
        if not metric:
            history.fold(rollback(step, 0.5))
            continue
        more = {} if loss is None else {"loss": loss, "rows": 2}
        history.fold({**evaluation(step, metric / 3), **more})
        kept = history.extremes
        history._extremes = None
        assert history.extremes == kept


def test_terms_are_those_of_the_steps_in_order() -> None:
    steps = [report(step, seed=step, lr=0.5) for step in range(3)]
    history = History.of([step_record(step) for step in steps])
    terms = [(term.seed, term.scale) for term in history.terms()]
    expected = [
        (probe.seed, -0.5 * gradient / 2)
        for step in steps
        for probe, gradient in zip(step.estimate.probes, step.clipped, strict=True)
    ]
    assert terms == expected
    assert [(term.seed, term.scale) for term in history.terms(1, 2)] == expected[2:4]
    assert history.terms(3) == []


def carrying(step: int, age: int | None) -> Record:
    return step_record(replace(report(step), observed=Observation(PrefixReport(age=age))))


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], 0),
        ([step_record(report(0)), step_record(report(1))], 2),
        ([carrying(0, 0)], 0),
        ([carrying(0, 0), carrying(1, 1), carrying(2, 2)], 0),
        ([carrying(0, 0), carrying(1, 0), carrying(2, 1), evaluation(3, 0.5)], 1),
        ([carrying(0, 0), carrying(1, None)], 2),
        ([carrying(0, 0), carrying(1, 1), carrying(2, 2), rollback(2, 0.5)], 2),
        ([carrying(0, 0), carrying(1, 1), carrying(2, 2), rollback(2, 0.5), evaluation(2, 0.5)], 2),
        ([carrying(0, 0), carrying(1, 1), carrying(2, 2), rollback(2, 0.5), carrying(2, 0)], 2),
        ([carrying(0, 0), carrying(1, 1), rollback(0, 0.5)], 0),
    ],
)
def test_what_is_carried_comes_from_the_last_step_that_computed_it(records: list[Record], expected: int) -> None:
    """Nothing is carried over a rollback, whatever the steps before it say."""
    assert History.of(records).carried_from == expected


def test_a_step_in_force_knows_its_batch() -> None:
    steps = [step_record(report(i)) for i in range(3)]
    again = [rollback(1, 0.5, discarded=1), step_record(report(1)), evaluation(2, 0.5), step_record(report(2))]
    history = History.of([*steps, *again])
    assert [history.draw_of(step) for step in range(3)] == [0, 4, 5]
    assert [History.of(steps).draw_of(step) for step in range(3)] == [0, 1, 2]


def test_fields_that_a_later_version_adds_are_passed_over() -> None:
    plain = History.of([step_record(report(0)), evaluation(1, 0.5)])
    richer = History.of([{**step_record(report(0)), "flavour": "ab12"}, {**evaluation(1, 0.5), "colour": "red"}])
    assert richer == plain


def test_accepted_changes_are_what_the_run_stands_on_from_then_on() -> None:
    changed = [
        {"kind": "changes", "step": 0, "ground": {"train": "a"}},
        {"kind": "changes", "step": 1, "ground": {"train": "b"}},
    ]
    history = History.of([changed[0], step_record(report(0)), changed[1]])
    assert history.changed == {"train": "b"}
    assert [event.kind for event in history.events] == ["draw"]


@pytest.mark.parametrize(("keep", "kept"), [("best", 2), ("last", 3)])
def test_the_later_of_equally_good_evaluations_is_kept(keep: Any, kept: int) -> None:
    steps = [step_record(report(step)) for step in range(3)]
    history = History.of([*steps, evaluation(0, 0.5), evaluation(1, 0.75), evaluation(2, 0.75), evaluation(3, 0.7)])
    assert history.kept(keep) == kept
    assert History.of(steps).kept(keep) == 3


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (step_record(report(3)), "step 3 after 2 steps"),
        ({"kind": "step", "step": 2}, "KeyError"),
        ({**step_record(report(2)), "clipped": 3}, "TypeError"),
        ({"kind": "song", "step": 2}, "no record of kind 'song'"),
        ({"step": 2}, "KeyError"),
        (rollback(-1, 0.5), "a rollback to step -1"),
        (rollback(1, 0.5, discarded=7), "with 7 draws"),
    ],
)
def test_a_sound_line_that_makes_no_sense_is_named(record: Record, message: str) -> None:
    with pytest.raises(JournalError, match=f"line 4 is sound, but says nothing that can follow.*{message}"):
        History.of([step_record(report(0)), step_record(report(1)), record])
