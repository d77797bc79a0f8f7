"""Many options of several tokens behind a prompt attend as one piece; scores and gradients are those of a plain loop all the same."""

from collections.abc import Iterator

import numpy as np
import pytest
from architectures import LANES, build, deviation, engine_of, in_lane, naive
from gradients import assert_same, plainly, slopes
from reusing import activated_engine, naive_activated

from twinpass.core import BASE, Request
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.scoring import pieces
from twinpass.model.trainable import Full

DRAW = np.random.default_rng(0)
ANSWERS = tuple((first, second, *DRAW.integers(1, 90, 2).tolist()) for first in (3, 4, 5) for second in (7, 8, 9))
PROMPTS = [tuple(DRAW.integers(1, 90, length).tolist()) for length in (40, 33, 5)]
REQUESTS = [
    Request(prompt, answer, active_from=len(prompt) - 2, relative=False)
    for prompt in PROMPTS
    for answer in (*ANSWERS, (3,), (6, 7))
]
names = pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gemma3"])


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many segments each piece of a pass is made of."""
    sizes: list[int] = []
    together = pieces.Trie.together

    def seen(self: pieces.Trie, queries: list[int], whole: list[bool]) -> Iterator[pieces.Branches]:
        for each in together(self, queries, whole):
            sizes.append(each.last - each.first)
            yield each

    monkeypatch.setattr(pieces.Trie, "together", seen)
    return sizes


@names
def test_scores_are_those_of_a_plain_loop(name: str, joined: list[int]) -> None:
    model = build(name)
    engine = engine_of(name, model, Full())
    found = engine.score(REQUESTS, LANES).values
    assert max(joined) > 5
    for lane, own in zip(LANES, found, strict=True):
        assert deviation(own, naive(in_lane(model, engine.parameters, lane, "binomial"), REQUESTS)) < 1e-9


@names
def test_scores_and_gradients_of_adapters_are_those_of_a_plain_loop(name: str, joined: list[int]) -> None:
    model = build(name)
    engine = activated_engine(name, model)
    for own, request in zip(engine.score(REQUESTS, [BASE]).values[0], REQUESTS, strict=True):
        assert deviation([own], [naive_activated(model, engine.parameters, request)]) < 1e-9
    expected = plainly(model, engine, REQUESTS, activated=True)
    joined.clear()
    assert_same(engine.gradient(REQUESTS, slopes), expected, 3e-6)
    assert max(joined) > 5


@pytest.mark.parametrize("rows", [4, 9, 40])
def test_chunks_cut_through_branches(rows: int) -> None:
    model = build("llama")
    whole = TorchEngine(model, Full()).score(REQUESTS, LANES[:2]).values
    cut = TorchEngine(model, Full(), chunk_rows=2 * rows).score(REQUESTS, LANES[:2]).values
    for own, expected in zip(cut, whole, strict=True):
        assert deviation(own, expected) < 1e-9
