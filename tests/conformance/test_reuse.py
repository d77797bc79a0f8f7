"""What is reused gives the scores of computing everything anew: every policy, page size, chunk and cache, on every model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from architectures import (
    LANES,
    TARGETS,
    build,
    deviation,
)
from reusing import (
    PROMPTS,
    TERMS,
    TWO,
    Apart,
    activated_engine,
    architectures,
    assert_same,
    in_lane,
    naive_activated,
    packed,
    trainables,
)

from twinpass.core import BASE, Request, Scores
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.scoring import passes
from twinpass.engine.embedded.scoring.attention import AttentionPass
from twinpass.engine.embedded.scoring.packing import groups
from twinpass.engine.embedded.scoring.passes import Batch, Passes
from twinpass.errors import ModelError, StaleKVError
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Activated, Full, Layers, Lora, Trainable
from twinpass.reuse import activated, auto, exact, invariant
from twinpass.reuse.base import Policy, Sharing, Trains


@pytest.mark.table
@pytest.mark.parametrize("perturbation", ["tandem", "inplace"])
@architectures
def test_activated_lanes(name: str, perturbation: str) -> None:
    model = build(name)
    engine = activated_engine(name, model, perturbation=perturbation)
    lanes = LANES if perturbation == "tandem" else [BASE, replace(LANES[0], eps=2**-4), replace(LANES[3], eps=2**-5)]
    for _ in range(2):  # the second time from the cache
        scores = engine.score(PROMPTS, lanes)
    engine.settle()
    for lane, values in zip(lanes, scores.values, strict=True):
        adapters = in_lane(engine.parameters, lane)
        assert deviation(values, [naive_activated(model, adapters, request) for request in PROMPTS]) < 1e-8


SETTINGS: dict[str, dict[str, Any]] = {
    "page 16": {"page_size": 16},
    "page longer than any request": {"page_size": 64},
    "page 3": {"page_size": 3},
    "small cache": {"slots": 60},
    "small cache, page 4": {"slots": 90, "page_size": 4},
    "chunks of 1": {"chunk_rows": 1},
    "chunks of 7, page 2": {"chunk_rows": 7, "page_size": 2},
    "chunks of 50, small cache": {"chunk_rows": 50, "slots": 150},
}


@pytest.mark.table
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", ["full", "lora", "layers", "layers, keys kept", "activated", "upper activated"])
@packed
def test_any_cache_agrees_with_none(name: str, kind: str, setting: str) -> None:
    """Scores, and the losses of two signs, through the cache equal those of plain PyTorch without any."""
    trainable, requests = trainables(name)[kind.removeprefix("upper ").split(",", maxsplit=1)[0]]
    if kind == "upper activated":
        assert isinstance(trainable, Activated)
        trainable = replace(trainable, targets=tuple(each for each in TARGETS[name] if each != "lm_head"), first=1)
    options = dict(SETTINGS[setting])
    keys = invariant.Invariant(keep="keys")
    kept: Policy = keys if "keys" in kind else auto.Auto()
    slot_bytes = TorchEngine(build(name), trainable, reuse=kept).cache_slot_bytes
    policy = replace(kept, budget=options.pop("slots", 4000) * slot_bytes, page_size=options.pop("page_size", 1))
    cached = TorchEngine(build(name), trainable, reuse=policy, **options)
    plain = Apart(build(name), trainable)
    for lanes in (TWO, [BASE], LANES, [BASE]):
        expected = plain.score(requests, lanes)
        assert_same(cached.score(requests, lanes), expected)
        assert_same(
            cached.score(requests[::-1], lanes), Scores([lane[::-1] for lane in expected.values], expected.work)
        )
        if name == "llama":
            for request, values in zip(requests, expected.values[0], strict=True):
                assert deviation(cached.score([request], lanes).values[0], [values]) < 1e-9
        for engine in (cached, plain):
            engine.update(TERMS)


@pytest.mark.table
@packed
def test_of_the_last_layer_prompts_have_keys_and_values_and_no_more(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads what it makes of them; scores are the same, to the bit, as where it is made."""
    trainable = Activated(4, 8.0, TARGETS[name])
    engine = TorchEngine(build(name), trainable)
    layers = engine.model.get_submodule(CausalModel(engine.model).layers_path)
    assert isinstance(layers, torch.nn.ModuleList)
    begun, ended = list[int](), list[int]()
    layers[-1].register_forward_pre_hook(lambda layer, args: begun.append(0))
    layers[-1].register_forward_hook(lambda layer, args, output: ended.append(0))
    scores = engine.score(PROMPTS, LANES).values
    assert 0 < len(ended) < len(begun)
    monkeypatch.setattr(passes, "AttentionPass", lambda *args: AttentionPass(*args[:-1]))
    whole = TorchEngine(build(name), trainable)
    for own, same in zip(scores, whole.score(PROMPTS, LANES).values, strict=True):
        assert deviation(own, same) == 0


def test_below_what_is_trained_states_alone_are_kept() -> None:
    """Keys and values there are kept if asked for, and read again by a prompt that begins like another; scores are the same."""
    head = tuple(range(1, 13))
    known, new = [Request((*head, 20, 21), (5,))], [Request((*head, 30), (6, 7))]
    engines = {
        keep: TorchEngine(build("llama"), Layers(1, 2), reuse=invariant.Invariant(keep=keep))
        for keep in ("states", "keys")
    }
    plain = Apart(build("llama"), Layers(1, 2))
    for requests in (known, new, known):
        for engine in engines.values():
            assert_same(engine.score(requests, TWO), plain.score(requests, TWO))
    kept = {keep: engine._scorer.passes.pool for keep, engine in engines.items()}  # type: ignore[union-attr]
    assert not kept["states"]._keys
    assert kept["keys"]._keys
    again = {keep: engine.score([Request((*head, 40), (5,))], TWO).work for keep, engine in engines.items()}
    assert again["states"].computed - again["keys"].computed == len(head)
    assert engines["states"].score(known, TWO).work == engines["keys"].score(known, TWO).work


LONG = PROMPTS[5:8]
"""Of more tokens before the activation point than two lanes have behind it."""


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
def test_shared_prompts_may_take_what_the_lanes_leave(spare: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is split where its prompts and the tokens of all lanes behind them do not fit into the cache together, and not before."""
    prompts = [request.inputs[: request.active_from] for request in LONG]
    shared = next(size for size in range(1, 10**6) if len(list(groups(prompts, size))) == 1)
    slots = shared + len(TWO) * sum(len(request.inputs) - request.active_from for request in LONG)
    model = build("llama")
    reference = activated_engine("llama", model)
    expected = reference.score(LONG, TWO)
    policy = auto.Auto(budget=(slots + spare) * reference.cache_slot_bytes)
    engine = activated_engine("llama", build("llama"), reuse=policy)
    ran: list[int] = []
    own = Passes.run

    def counted(self: Passes, batch: Batch, *args: Any) -> Any:
        ran.append(len(batch.versions))
        return own(self, batch, *args)

    monkeypatch.setattr(Passes, "run", counted)
    for _ in range(2):
        ran.clear()
        assert_same(engine.score(LONG, TWO), expected)
        assert (ran.count(len(TWO)) == 1) == fits


class Nothing(exact.Exact):
    """A policy that shares nothing at all."""

    def sharing(self, trains: Trains) -> Sharing | None:
        return None


class Everything(exact.Exact):
    """A policy that takes all weights for activated adapters."""

    def sharing(self, trains: Trains) -> Sharing | None:
        return Sharing("activated", "before_activation", trains.layers, kept=True)


def test_no_policy_changes_what_an_activated_adapter_is() -> None:
    expected = activated_engine("llama", build("llama")).score(PROMPTS, TWO)
    assert_same(activated_engine("llama", build("llama"), reuse=Nothing()).score(PROMPTS, TWO), expected)
    with pytest.raises(ModelError, match="Everything shares what only activated adapters leave alone"):
        TorchEngine(build("llama"), Lora(2, 4.0), reuse=Everything())


@pytest.mark.parametrize("kind", ["full", "layers", "activated"])
def test_updates_never_leave_stale_state(kind: str) -> None:
    """After each update the scores are those of an engine that has cached nothing."""
    trainable, requests = trainables("llama")[kind]
    engine = TorchEngine(build("llama"), trainable)
    for count in range(1, 4):
        engine.score(requests, [BASE])
        engine.update(TERMS)
        fresh = TorchEngine(build("llama"), trainable)
        for _ in range(count):
            fresh.update(TERMS)
        assert_same(engine.score(requests, [*TWO, BASE]), fresh.score(requests, [*TWO, BASE]), 1e-12)
    if kind == "activated":
        engine.reset()
        assert_same(engine.score(requests, TWO), TorchEngine(build("llama"), trainable).score(requests, TWO), 1e-12)


def test_a_slot_of_other_weights_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand the lanes slots of the base weights, as a cache keyed by tokens alone would: refused."""
    engine = TorchEngine(build("llama"), Activated(2, 4.0))
    engine.score(PROMPTS, TWO)
    original = Passes.run

    def confused(self: Passes, batch: Batch, *rest: Any) -> Any:
        return original(self, replace(batch, marked=batch.versions if batch.marked else ()), *rest)

    monkeypatch.setattr(Passes, "run", confused)
    with pytest.raises(StaleKVError, match="belong to other weights"):
        engine.score(PROMPTS, TWO)


@pytest.mark.parametrize(
    ("policy", "trainable", "message"),
    [
        (invariant.Invariant(), Full(), "nothing lies below the first trained layer"),
        (invariant.Invariant(), Activated(2, 4.0), "use policy = 'activated'"),
        (activated.ActivatedReuse(), Lora(2, 4.0), "use trainable.kind = 'activated'"),
    ],
)
def test_policies_that_do_not_fit(policy: Policy, trainable: Trainable, message: str) -> None:
    with pytest.raises(ModelError, match=rf"\[reuse\] does not fit \[trainable\]: .*{message}"):
        TorchEngine(build("llama"), trainable, reuse=policy)


@pytest.mark.parametrize("active_from", [-1, 4, 5])
def test_an_activation_point_outside_the_prompt(active_from: int) -> None:
    engine = TorchEngine(build("llama"), Activated(2, 4.0))
    with pytest.raises(ModelError, match=r"request 0 activates its adapter at token .* give the task a suffix"):
        engine.score([Request((5, 6, 7, 8), (9, 3), active_from)], TWO)
