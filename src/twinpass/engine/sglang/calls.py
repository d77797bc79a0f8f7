"""Turn requests under lanes into calls to SGLang, and what it answers into scores. No SGLang in here."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from twinpass.core import Continuation, Decode, Prompt, Request, Sampling, Score, Tokens
from twinpass.engine.embedded.scoring.packing import common_length
from twinpass.engine.embedded.scoring.writing import Growing
from twinpass.errors import EngineError

SHARED = 8
"""Tokens from which on a new prefix is worth a call of its own, so that a batch finds it in the cache."""


@dataclass(slots=True)
class Call:
    """Distinct ``tokens`` to run once a lane: those from ``start`` + 1 on are scored, and so are the ``last`` after them all.

    ``active_from`` is the activation point of an activated adapter, None for weights that act everywhere.
    """

    tokens: Tokens
    start: int
    active_from: int | None
    last: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reply:
    """What SGLang says to a call: log-probabilities of the ``tokens`` after ``start``, those of ``last``, and the rows it ran."""

    scored: tuple[float, ...]
    last: Mapping[int, float]
    rows: int
    cached: int


def calls_of(requests: Sequence[Request], *, activated: bool) -> tuple[list[Call], list[int]]:
    """Calls without repetition, and which one answers each request: options of one token share their prompt's."""
    places: dict[tuple[Tokens, int, int | None], int] = {}
    calls: list[Call] = []
    which = []
    for request in requests:
        key = (request.inputs, len(request.prompt) - 1, request.active_from if activated else None)
        at = places.setdefault(key, len(calls))
        if at == len(calls):
            calls.append(Call(*key))
        if request.completion[-1] not in calls[at].last:
            calls[at].last.append(request.completion[-1])
        which.append(at)
    return calls, which


def reply_of(call: Call, meta: Mapping[str, Any], server: str = "SGLang") -> Reply:
    """Read the ``meta_info`` of a ``server``.

    Raises:
        EngineError: it does not say what was asked for, or not in SGLang's words.
    """
    expected = list(call.tokens[call.start + 1 :])
    with reading("meta_info.input_token_logprobs", server):
        entries = list(meta.get("input_token_logprobs") or ())[-len(expected) :] if expected else []
        given = [(number(value), token) for value, token, *_ in entries]
    with reading("meta_info.output_token_ids_logprobs", server):
        asked = (meta.get("output_token_ids_logprobs") or [[]])[0] or ()
        last = {token: number(value) for value, token, *_ in asked}
    if [token for _, token in given] != expected or any(token not in last for token in call.last):
        raise EngineError(
            f"SGLang was asked for {len(expected)} + {len(call.last)} log-probabilities of a request of {len(call.tokens)} "
            f"tokens and returned {len(given)} + {len(last)}, or those of other tokens; its model or version differs from what is expected"
        )
    cached, total = count_of(meta, "cached_tokens", server), count_of(meta, "prompt_tokens", server)
    if total != len(call.tokens):
        raise EngineError(
            f"SGLang ran {total} tokens of a request of {len(call.tokens)}: it was cut, raise its context_length"
        )
    return Reply(tuple(value for value, _ in given), last, total - cached, cached)


@contextmanager
def reading(what: str, server: str) -> Iterator[None]:
    """Turn what cannot be read of an answer into an error that names server and field.

    Raises:
        EngineError: something in it is missing, or of another kind.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise EngineError(
            f"{server}: {what} is not understood ({type(error).__name__}: {str(error)[:200]}); check that it is version "
            "0.5.23, and that nothing between changes what it says"
        ) from error


def count_of(meta: Mapping[str, Any], name: str, server: str) -> int:
    """A number of tokens in a server's ``meta_info``.

    Raises:
        EngineError: it is not there, or is no number.
    """
    with reading(f"meta_info.{name}", server):
        return int(meta[name])


@dataclass(frozen=True, slots=True)
class Written:
    """A text that SGLang wrote, and the rows that it ran for it."""

    text: Continuation
    rows: int


def written_of(meta: Mapping[str, Any], sampling: Sampling, decode: Decode) -> Written:
    """Read the ``meta_info`` of a request that was to be continued; what SGLang wrote beyond the text's end is left out.

    Raises:
        EngineError: it does not say what was written.
    """
    entries = meta.get("output_token_logprobs") or ()
    if not entries:
        raise EngineError(
            "SGLang was asked for a text and returned no tokens; its model or version differs from what is expected"
        )
    grown = Growing(Prompt(()))
    for value, token, *_ in entries:
        if not grown.add(int(token), number(value), sampling, decode):
            break
    ran = int(meta["prompt_tokens"]) - int(meta["cached_tokens"]) + len(entries) - 1
    return Written(grown.finished(decode), ran)


def number(value: float | None) -> float:
    """A log-probability; JSON has no word for one that is not a number, and says nothing."""
    return math.nan if value is None else float(value)


def score_of(request: Request, answer: Reply) -> Score:
    """The log-probabilities of a request's completion."""
    return np.array([*answer.scored, answer.last[request.completion[-1]]], np.float64)


def shared_prefixes(sequences: Iterable[Tokens]) -> list[list[Tokens]]:
    """Prefixes to send ahead, in rounds that build on one another: what all sequences share, then what some of them do.

    SGLang does not share a prefix within a batch, only what is in its cache when the batch begins.
    """
    unique = sorted(set(sequences))
    if len(unique) < 2:
        return []
    whole = unique[0][: common_length(unique[0], unique[-1])]
    some = {one[: common_length(one, other)] for one, other in pairwise(unique)}
    some = {prefix for prefix in some if len(prefix) >= len(whole) + SHARED}
    longest = sorted(one for one in some if not any(other != one and other[: len(one)] == one for other in some))
    return [part for part in ([whole] if len(whole) >= SHARED else [], longest) if part]
