"""A cache that is too small, and one that goes to disk."""

from pathlib import Path

import pytest
from architectures import (
    TARGETS,
    build,
    deviation,
)
from reusing import PROMPTS, TWO, Apart, assert_same, packed, trainables

from twinpass.core import BASE, Request
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import CacheError, CacheFullError
from twinpass.model.trainable import Activated, Full
from twinpass.reuse import activated, auto, exact


@pytest.mark.parametrize(("kind", "slots"), [("activated", 10), ("layers", 20)])
def test_a_budget_too_small_for_one_sequence(kind: str, slots: int) -> None:
    trainable, requests = trainables("llama")[kind]
    size = TorchEngine(build("llama"), trainable).cache_slot_bytes
    engine = TorchEngine(build("llama"), trainable, reuse=auto.Auto(budget=slots * size))
    with pytest.raises(
        CacheFullError, match=rf"reuse\.budget is {slots * size} bytes .* need about \d+: raise reuse\.budget"
    ):
        engine.score(requests, TWO)
    assert_same(engine.score(requests[:1], TWO), Apart(build("llama"), trainable).score(requests[:1], TWO))


def test_what_the_base_lane_keeps_never_stands_in_its_way() -> None:
    size = TorchEngine(build("llama"), Full()).cache_slot_bytes
    engine = TorchEngine(build("llama"), Full(), reuse=exact.Exact(budget=40 * size), chunk_rows=1)
    parts = [[Request((*range(10 * i, 10 * i + 10), j), (5,)) for j in range(3)] for i in range(4)]
    for part in parts:
        engine.score(part, [BASE])
    together = [request for part in parts for request in part]
    assert_same(engine.score(together, [BASE]), Apart(build("llama"), Full()).score(together, [BASE]))


def test_spilled_prompts_are_found_by_the_next_engine(tmp_path: Path) -> None:
    policy = activated.ActivatedReuse(spill=str(tmp_path))
    first = TorchEngine(build("llama"), Activated(2, 4.0), reuse=policy)
    scores = first.score(PROMPTS, TWO)
    assert scores.cache.spilled > 0
    second = TorchEngine(build("llama"), Activated(2, 4.0), reuse=policy)
    again = second.score(PROMPTS, TWO)
    suffixes = first.score(PROMPTS, TWO).work
    assert (again.work, again.cache.spilled) == (suffixes, 0)
    for lane, other in zip(again.values, scores.values, strict=True):
        assert deviation(lane, other) == 0
    other_model = build("llama")
    other_model.get_parameter("model.norm.weight").detach().mul_(2)
    stranger = TorchEngine(other_model, Activated(2, 4.0), reuse=policy)
    assert stranger.score(PROMPTS, TWO).work == scores.work


def test_a_spill_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    policy = activated.ActivatedReuse(spill=str(tmp_path / "file"))
    with pytest.raises(CacheError, match=r"reuse\.spill: .* cannot be a folder"):
        TorchEngine(build("llama"), Activated(2, 4.0), reuse=policy)


def test_a_damaged_spill_is_computed_again(tmp_path: Path) -> None:
    policy = activated.ActivatedReuse(spill=str(tmp_path))
    scores = TorchEngine(build("llama"), Activated(2, 4.0), reuse=policy).score(PROMPTS, TWO)
    (shard,) = tmp_path.iterdir()
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    engine = TorchEngine(build("llama"), Activated(2, 4.0), reuse=policy)
    with pytest.warns(UserWarning, match="its checksum does not match"):
        again = engine.score(PROMPTS, TWO)
    assert again.work == scores.work
    assert_same(again, scores, 1e-12)


@packed
def test_spill_and_eviction_together(name: str, tmp_path: Path) -> None:
    model = build(name)
    trainable = Activated(4, 8.0, TARGETS[name])
    size = TorchEngine(model, trainable).cache_slot_bytes
    policy = activated.ActivatedReuse(budget=23 * size, spill=str(tmp_path), page_size=2)
    engine, plain = TorchEngine(model, trainable, reuse=policy), Apart(build(name), trainable)
    for _ in range(3):
        for part in (PROMPTS[:4], PROMPTS[4:6], PROMPTS[6:]):
            assert_same(engine.score(part, TWO), plain.score(part, TWO))
    assert engine.score(PROMPTS, TWO).cache.evicted > 0
