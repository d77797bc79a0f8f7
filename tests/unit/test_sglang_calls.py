"""What is asked of SGLang and read from its answers, without SGLang."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpass.core import Request
from twinpass.engine.embedded.scoring.packing import common_length
from twinpass.engine.sglang.calls import SHARED, Call, calls_of, reply_of, score_of, shared_prefixes
from twinpass.engine.sglang.inside.activated import split
from twinpass.engine.sglang.inside.invocation import last
from twinpass.errors import EngineError

CALL = Call((1, 2, 3, 4), 1, None, [9, 8])
META = {
    "input_token_logprobs": [(None, 2, None), (-0.5, 3, None), (-0.25, 4, None)],
    "output_token_ids_logprobs": [[(-2.0, 8, None), (-1.0, 9, None)]],
    "prompt_tokens": 4,
    "cached_tokens": 1,
}


def test_options_of_one_token_share_a_call() -> None:
    requests = [
        Request((1, 2), (5,), 1),
        Request((1, 2), (6,), 1),
        Request((1, 2), (5, 7), 1),
        Request((3, 2), (5,), 1),
    ]
    calls, which = calls_of(requests, activated=True)
    assert calls == [Call((1, 2), 1, 1, [5, 6]), Call((1, 2, 5), 1, 1, [7]), Call((3, 2), 1, 1, [5])]
    assert which == [0, 0, 1, 2]
    assert calls_of(requests, activated=False)[0][0].active_from is None


def test_answers_are_read() -> None:
    answer = reply_of(CALL, META)
    assert (answer.rows, answer.cached) == (3, 1)
    assert np.array_equal(score_of(Request((1, 2), (3, 4, 8)), answer), [-0.5, -0.25, -2.0])
    assert np.array_equal(score_of(Request((1, 2), (3, 4, 9)), answer), [-0.5, -0.25, -1.0])


def test_what_is_no_number_stays_one() -> None:
    """JSON has no NaN: SGLang's server says null, and the trainer has to see that the loss is not finite."""
    entries = [(None, 2, None), (None, 3, None), (-0.25, 4, None)]
    answer = reply_of(
        CALL,
        {**META, "input_token_logprobs": entries, "output_token_ids_logprobs": [[(None, 8, None), (-1.0, 9, None)]]},
    )
    assert np.array_equal(score_of(Request((1, 2), (3, 4, 8)), answer), [np.nan, -0.25, np.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_token_logprobs": META["input_token_logprobs"][:2]}, "returned"),  # type: ignore[index]
        ({"input_token_logprobs": None}, "returned 0"),
        ({"input_token_logprobs": [(None, 2, None), (-0.5, 3, None), (-0.25, 5, None)]}, "other tokens"),
        ({"output_token_ids_logprobs": [[(-2.0, 8, None)]]}, r"2 \+ 1"),
        ({"output_token_ids_logprobs": None}, r"2 \+ 0"),
        ({"prompt_tokens": 3}, "context_length"),
    ],
)
def test_answers_that_lack_something_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        reply_of(CALL, {**META, **change})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_tokens", None),
        ("prompt_tokens", "many"),
        ("cached_tokens", ...),
        ("cached_tokens", [1]),
        ("cached_tokens", float("inf")),
        ("input_token_logprobs", 3),
        ("input_token_logprobs", [[-0.5], [1], [2]]),
        ("input_token_logprobs", [("x", 2, None), ("y", 3, None), ("z", 4, None)]),
        ("output_token_ids_logprobs", {"a": 1}),
        ("output_token_ids_logprobs", [[(-2.0,)]]),
        ("output_token_ids_logprobs", [[("low", 8, None)]]),
    ],
)
def test_a_field_that_makes_no_sense_is_named_with_its_server(field: str, value: object) -> None:
    meta = {**META, field: value}
    if value is ...:
        del meta[field]
    with pytest.raises(EngineError, match=rf"^SGLang at there: meta_info\.{field} is not understood \(\w+Error: "):
        reply_of(CALL, meta, "SGLang at there")


def test_prefixes_are_sent_in_rounds() -> None:
    shots, context = tuple(range(20)), tuple(range(20)) + tuple(range(50, 60))
    sequences = [(*context, 1), (*context, 2), (*shots, 99, 98)]
    assert shared_prefixes(sequences) == [[shots], [context]]
    assert shared_prefixes(sequences[:1] * 2) == []
    assert shared_prefixes([(1, 2, 3), (1, 2, 4)]) == [], "a call costs more than two tokens"


ends = st.lists(st.integers(0, 1), min_size=1, max_size=12)
starts = st.sampled_from([[0] * 9, [0] * 9 + [1] * 9, [0] * 9 + [1] * 20, [1] * 3])
tries = st.lists(st.builds(lambda start, end: tuple(start + end), starts, ends), min_size=2, max_size=8)


@given(tries)
def test_every_prefix_sent_is_shared_and_rounds_build_on_one_another(sequences: list[tuple[int, ...]]) -> None:
    rounds = shared_prefixes(sequences)
    sent = [prefix for part in rounds for prefix in part]
    for prefix in sent:
        assert len(prefix) >= SHARED
        assert sum(one[: len(prefix)] == prefix for one in set(sequences)) > 1
    if len(rounds) == 2:
        assert all(prefix[: len(rounds[0][0])] == rounds[0][0] for prefix in rounds[1])
    unique = sorted(set(sequences))
    whole = common_length(unique[0], unique[-1])
    for one, other in combinations(unique, 2):
        both = common_length(one, other)
        if both >= whole + SHARED:
            assert any(prefix[:both] == one[:both] for prefix in sent)


@pytest.mark.parametrize(
    ("starts", "prefixes", "expected"),
    [
        ([0, 0], [0, 3], ([5, 4], [2, 1])),  # not activated
        ([3, 3], [3, 3], ([5, 4], [2, 1])),  # all of the prefix was there
        ([3, 5], [1, 3], ([2, 3, 2, 2], [0, 2, 0, 1])),  # some of it
        ([9, 9], [2, 1], ([5, 4], [0, 0])),  # a chunk that ends before the activation point
    ],
)
def test_rows_before_the_activation_point_get_a_slot_without_adapter(
    starts: list[int], prefixes: list[int], expected: tuple[list[int], list[int]]
) -> None:
    assert split(starts, prefixes, [5, 4], [2, 1], [0, 8, 8]) == expected


def test_without_a_slot_to_spare_nothing_is_scored() -> None:
    with pytest.raises(RuntimeError, match="max_loras_per_batch"):
        split([3], [0], [5], [0], [8, 8])
    assert split([3], [3], [5], [0], [8, 8]) == ([5], [0])


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_invocation_tokens_are_found_where_they_begin_last(prompt: list[int], tokens: list[int]) -> None:
    starts = [i for i in range(len(prompt)) if prompt[i : i + len(tokens)] == tokens]
    assert last(tokens, prompt) == (starts[-1] if starts else None)
