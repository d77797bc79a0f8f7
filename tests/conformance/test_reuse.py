"""What is reused gives the scores of computing everything anew: every policy, page size, chunk and cache, on every model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from architectures import (
    ARCHITECTURES,
    FALLBACK,
    LANES,
    REQUESTS,
    TARGETS,
    Float64Softmax,
    build,
    deviation,
    direction,
    engine_of,
    naive,
    shifted,
)
from architectures import in_lane as moved
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from twinpass.core import BASE, Lane, Probe, Request, Score, Scores, Term
from twinpass.engine.embedded.causal import CausalModel
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.passes import Batch, Passes
from twinpass.engine.embedded.trainable import Activated, Full, Layers, Lora, Trainable
from twinpass.errors import CacheError, CacheFullError, ModelError, StaleKVError
from twinpass.reuse import activated, auto, exact, invariant
from twinpass.reuse.base import Policy, Sharing, Trains

NAMES = [*ARCHITECTURES, *FALLBACK]
architectures = pytest.mark.parametrize("name", NAMES)
packed = pytest.mark.parametrize("name", ARCHITECTURES)

PROMPTS = tuple(
    replace(request, active_from=max(0, len(request.prompt) - 1 - i % 3)) for i, request in enumerate(REQUESTS)
)
"""The requests with activation points: early, late, and at the very beginning, different ones on the same prompt."""

TERMS = [Term(3, 0.125), Term(2**62 + 1, -0.07)]
TWO = LANES[:2]


def activated_engine(name: str, model: PreTrainedModel, **options: Any) -> TorchEngine:
    engine = engine_of(name, model, Activated(rank=4, alpha=8.0, targets=TARGETS[name]), **options)
    engine.update(TERMS)
    return engine


def naive_activated(model: PreTrainedModel, adapters: Mapping[str, Tensor], request: Request) -> Score:
    """The model's own forward on one sequence, with the adapters added to the rows from the activation point on."""
    handles = []
    for name in [name for name in adapters if name.endswith(".lora_A.weight")]:
        path = name.removesuffix(".lora_A.weight")
        change = 2.0 * adapters[f"{path}.lora_B.weight"] @ adapters[name]

        def hook(module: nn.Module, args: Any, y: Tensor, change: Tensor = change) -> Tensor:
            rows = args[0].reshape(len(request.inputs), -1) @ change.t()
            rows[: request.active_from] = 0
            return torch.add(y, rows.view(y.shape))

        handles.append(model.get_submodule(path).register_forward_hook(hook))
    try:
        with torch.no_grad(), nullcontext() if model.config.model_type in FALLBACK else Float64Softmax():
            logits = model(input_ids=torch.tensor([request.inputs]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    logprobs = torch.log_softmax(logits[len(request.prompt) - 1 :].double(), -1).numpy()
    return np.asarray(logprobs[range(len(request.completion)), request.completion])


def in_lane(adapters: Mapping[str, Tensor], lane: Lane) -> dict[str, Tensor]:
    if lane.probe is None:
        return dict(adapters)
    seed = lane.probe.seed
    return {name: t + lane.scale * direction(name, t, seed, "binomial") for name, t in adapters.items()}


def assert_same(scores: Scores, expected: Scores, tolerance: float = 1e-9) -> None:
    for lane, other in zip(scores.values, expected.values, strict=True):
        assert deviation(lane, other) < tolerance


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


def trainables(name: str) -> dict[str, tuple[Trainable, Sequence[Request]]]:
    return {
        "full": (Full(), REQUESTS),
        "lora": (Lora(4, 8.0, TARGETS[name]), REQUESTS),
        "layers": (Layers(1, 2), REQUESTS),
        "activated": (Activated(4, 8.0, TARGETS[name]), PROMPTS),
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "page 16": {"page_size": 16},
    "page longer than any request": {"page_size": 64},
    "page 3": {"page_size": 3},
    "small cache": {"slots": 60},
    "chunks of 1": {"chunk_rows": 1},
    "chunks of 7, page 2": {"chunk_rows": 7, "page_size": 2},
    "chunks of 50, small cache": {"chunk_rows": 50, "slots": 150},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", ["full", "lora", "layers", "activated"])
@packed
def test_any_cache_agrees_with_none(name: str, kind: str, setting: str) -> None:
    """Scores, and the losses of two signs, through the cache equal those of the model's own forward without any."""
    trainable, requests = trainables(name)[kind]
    options = dict(SETTINGS[setting])
    reference = TorchEngine(build(name), trainable)
    slot_bytes = reference.cache_slot_bytes
    policy = auto.Auto(budget=options.pop("slots", 4000) * slot_bytes, page_size=options.pop("page_size", 1))
    cached = TorchEngine(build(name), trainable, reuse=policy, **options)
    plain = without_cache(build(name), trainable)
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


class Plain(TorchEngine):
    """An engine that runs every sequence by the model's own forward."""

    def score(self, requests: Sequence[Request], lanes: Sequence[Lane]) -> Scores:
        with Float64Softmax():
            return super().score(requests, lanes)


def without_cache(model: PreTrainedModel, trainable: Trainable) -> TorchEngine:
    model._supports_attention_backend = False
    with pytest.warns(UserWarning, match="does not give the same scores when its batch is packed"):
        return Plain(model, trainable)


@contextmanager
def rows_by_layer(model: PreTrainedModel) -> Iterator[list[int]]:
    """Counts the rows that each layer's attention module really reads."""
    counts = [0] * CausalModel(model).depth
    attentions = [module for module in model.modules() if type(module).__name__.endswith("Attention")]

    def count(module: nn.Module, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        counts[int(cast(Any, module).layer_idx)] += hidden.numel() // hidden.shape[-1]

    handles = [module.register_forward_pre_hook(count, with_kwargs=True) for module in attentions]
    yield counts
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("chunk_rows", [5, 4096])
@pytest.mark.parametrize("kind", ["lora", "layers", "activated"])
@packed
def test_work_is_what_the_layers_ran(name: str, kind: str, chunk_rows: int) -> None:
    model = build(name)
    trainable, requests = trainables(name)[kind]
    engine = TorchEngine(model, trainable, chunk_rows=chunk_rows)
    depth = CausalModel(model).depth
    for lanes in (TWO, TWO, [BASE], LANES):
        with rows_by_layer(model) as counts:
            work = engine.score(requests, lanes).work
        assert sum(counts) == work.computed
        assert work.demand == depth * len(lanes) * sum(len(request.inputs) for request in requests)
        assert work.demand == work.computed + sum(work.reused.values())
        assert all(count >= 0 for count in work.reused.values())


def test_sources() -> None:
    """A prompt of 6 shared by two options of 2 and 3 tokens, two lanes, two layers."""
    requests = [Request((1, 2, 3, 4, 5, 6), (7, 8), 4), Request((1, 2, 3, 4, 5, 6), (9, 8, 7), 4)]
    works = {}
    for kind, trainable in (("full", Full()), ("layers", Layers(1, 2)), ("activated", Activated(2, 4.0))):
        engine = TorchEngine(build("llama"), trainable)
        works[kind] = [engine.score(requests, TWO).work for _ in range(2)]
    demand, distinct, before = 2 * 2 * 15, 9, 4
    assert [work.demand for work in works["full"]] == [demand, demand]
    assert [work.computed for work in works["full"]] == [2 * 2 * distinct] * 2
    assert [work.reused for work in works["full"]] == [{"shared_prefix": demand - 2 * 2 * distinct}] * 2
    assert [work.computed for work in works["layers"]] == [3 * distinct, 2 * distinct]
    assert [work.reused["invariant"] for work in works["layers"]] == [distinct, 2 * distinct]
    after = 2 * 2 * (distinct - before)
    assert [work.computed for work in works["activated"]] == [after + 2 * before, after]
    assert [work.reused["activated"] for work in works["activated"]] == [2 * before, 4 * before]


def test_exact_shares_the_activated_prompt_within_a_step_only() -> None:
    engine = TorchEngine(build("llama"), Activated(2, 4.0), reuse=exact.Exact())
    works = [engine.score(PROMPTS, TWO).work for _ in range(3)]
    assert works[0] == works[1] == works[2]
    assert works[0].reused["activated"] > 0
    assert engine.score(PROMPTS, TWO).cache.held == 0


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


def test_what_the_base_lane_keeps_never_stands_in_its_way() -> None:
    size = TorchEngine(build("llama"), Full()).cache_slot_bytes
    engine = TorchEngine(build("llama"), Full(), reuse=exact.Exact(budget=40 * size), chunk_rows=1)
    parts = [[Request((*range(10 * i, 10 * i + 10), j), (5,)) for j in range(3)] for i in range(4)]
    for part in parts:
        engine.score(part, [BASE])
    together = [request for part in parts for request in part]
    assert_same(engine.score(together, [BASE]), without_cache(build("llama"), Full()).score(together, [BASE]))


def test_base_lane_keeps_what_prompts_share_until_an_update() -> None:
    head = tuple(range(1, 21))
    blocks = [[Request((*head, i, j), (5,)) for j in range(3)] for i in range(30, 33)]
    engine = TorchEngine(build("llama"), Full())
    computed = [engine.score(block, [BASE]).work.computed for block in blocks]
    assert computed[1] == computed[2] == computed[0] - 2 * 20
    engine.update(TERMS)
    assert engine.score(blocks[0], [BASE]).work.computed == computed[0]


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
        return original(self, replace(batch, shared=batch.versions[0]), *rest)

    monkeypatch.setattr(Passes, "run", confused)
    with pytest.raises(StaleKVError, match="belong to other weights"):
        engine.score(PROMPTS, TWO)


@pytest.mark.parametrize(
    ("policy", "trainable", "message"),
    [
        (invariant.Invariant(), Full(), "nothing lies below the first trained layer"),
        (invariant.Invariant(), Activated(2, 4.0), "use policy = 'activated'"),
        (activated.Activated(), Lora(2, 4.0), "use trainable.kind = 'activated'"),
    ],
)
def test_policies_that_do_not_fit(policy: Policy, trainable: Trainable, message: str) -> None:
    with pytest.raises(ModelError, match=rf"\[reuse\] does not fit \[trainable\]: .*{message}"):
        TorchEngine(build("llama"), trainable, reuse=policy)


@packed
def test_adapters_on_upper_layers_share_the_lower_ones(name: str) -> None:
    trainable = Lora(4, 8.0, tuple(t for t in TARGETS[name] if t != "lm_head"), first=1)
    engine, plain = TorchEngine(build(name), trainable), without_cache(build(name), trainable)
    assert {CausalModel(build(name)).layer_of(path) for path in engine.parameters} == {1}
    for one in (engine, plain):
        one.update(TERMS)
    works = [engine.score(REQUESTS, TWO) for _ in range(2)]
    assert_same(works[1], plain.score(REQUESTS, TWO))
    assert works[1].work.reused["invariant"] * 2 == works[1].work.demand - works[1].work.reused["shared_prefix"]


@pytest.mark.parametrize("perturbation", ["tandem", "inplace"])
@architectures
def test_blocks_move_their_own_layers_only(name: str, perturbation: str) -> None:
    model = build(name)
    engine = engine_of(name, model, Layers(0, 2, block=1), perturbation=perturbation)
    causal = CausalModel(model)
    for block in (0, 1, 0):
        names = [path for path in engine.parameters if causal.layer_of(path) == 1 - block]
        assert 0 < len(names) < len(engine.parameters)
        lanes = [replace(lane, probe=Probe(7, block), eps=2**-4) for lane in TWO]
        scores = engine.score(REQUESTS, [*lanes, BASE])
        engine.settle()
        for lane, values in zip([*lanes, BASE], scores.values, strict=True):
            assert deviation(values, naive(moved(model, names, lane, "binomial"), REQUESTS)) < 1e-8
        expected = shifted(model, names, [Term(3, 0.125)], "binomial")
        engine.update([Term(3, 0.125, block)])
        engine.settle()
        for path, parameter in expected.named_parameters():
            torch.testing.assert_close(model.get_parameter(path), parameter, rtol=0, atol=1e-12)


def test_layers_that_cannot_run_apart_share_prefixes_only() -> None:
    """Layer 1 also reads what layer 0 returned, past the hidden states that are handed on."""
    model, seen = build("llama"), list[Tensor]()
    lower, upper = model.get_submodule("model.layers").children()
    lower.register_forward_hook(lambda module, args, y: seen.append(y))
    upper.get_submodule("mlp").register_forward_hook(lambda module, args, y: y + torch.tanh(seen.pop()))
    with pytest.warns(UserWarning, match=r"layers of LlamaForCausalLM cannot run apart .*reuse.policy is 'exact'"):
        engine = TorchEngine(model, Layers(1, 2))
    works = [engine.score(REQUESTS, [*TWO, BASE]) for _ in range(2)]
    assert works[1].work.reused.keys() == {"shared_prefix"}
    assert deviation(works[1].values[2], naive(model, REQUESTS)) < 1e-9


def test_an_update_invalidates_what_it_touches_and_nothing_else() -> None:
    """Four layers, of which the upper two take turns: block 0 is layer 3, block 1 is layer 2."""
    config = ARCHITECTURES["llama"]()
    config.num_hidden_layers, config.layer_types = 4, None
    model = cast(Any, AutoModelForCausalLM).from_config(config, dtype=torch.float64)
    engine = TorchEngine(model, Layers(2, 4, block=1))
    lanes = [[replace(lane, probe=Probe(7, block)) for lane in TWO] for block in (0, 1)]
    rows = len({request.inputs[:n] for request in REQUESTS for n in range(1, len(request.inputs) + 1)})

    def layers_run(block: int) -> float:
        return engine.score(REQUESTS, lanes[block]).work.computed / rows

    assert [layers_run(0), layers_run(0)] == [3 + 2, 2]  # below layer 3 once, layer 3 under both signs
    assert [layers_run(1), layers_run(1)] == [2 + 2 * 2, 2 * 2]
    engine.update([Term(3, 0.1, 0)])
    assert [layers_run(0), layers_run(1)] == [2, 4]
    engine.update([Term(4, 0.1, 1)])
    assert [layers_run(1), layers_run(0), layers_run(0)] == [4, 3 + 2, 2]
    top = [path for path in engine.parameters if ".3." in path]
    plain = [naive(moved(model, top, lane, "binomial"), REQUESTS) for lane in TWO]
    for lane, expected in zip(engine.score(REQUESTS, lanes[0]).values, plain, strict=True):
        assert deviation(lane, expected) < 1e-9


@pytest.mark.parametrize(("kind", "slots"), [("activated", 10), ("layers", 20)])
def test_a_budget_too_small_for_one_sequence(kind: str, slots: int) -> None:
    trainable, requests = trainables("llama")[kind]
    size = TorchEngine(build("llama"), trainable).cache_slot_bytes
    engine = TorchEngine(build("llama"), trainable, reuse=auto.Auto(budget=slots * size))
    with pytest.raises(
        CacheFullError, match=rf"reuse\.budget is {slots * size} bytes .* need about \d+: raise reuse\.budget"
    ):
        engine.score(requests, TWO)
    assert engine.score(requests[:1], TWO).values


@pytest.mark.parametrize("active_from", [-1, 4, 5])
def test_an_activation_point_outside_the_prompt(active_from: int) -> None:
    engine = TorchEngine(build("llama"), Activated(2, 4.0))
    with pytest.raises(ModelError, match=r"request 0 activates its adapter at token .* give the task a suffix"):
        engine.score([Request((5, 6, 7, 8), (9, 3), active_from)], TWO)


def test_spilled_prompts_are_found_by_the_next_engine(tmp_path: Path) -> None:
    policy = activated.Activated(spill=str(tmp_path))
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
    policy = activated.Activated(spill=str(tmp_path / "file"))
    with pytest.raises(CacheError, match=r"reuse\.spill: .* cannot be a folder"):
        TorchEngine(build("llama"), Activated(2, 4.0), reuse=policy)


def test_a_damaged_spill_is_computed_again(tmp_path: Path) -> None:
    policy = activated.Activated(spill=str(tmp_path))
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
    policy = activated.Activated(budget=23 * size, spill=str(tmp_path), page_size=2)
    engine, plain = TorchEngine(model, trainable, reuse=policy), without_cache(build(name), trainable)
    for _ in range(3):
        for part in (PROMPTS[:4], PROMPTS[4:6], PROMPTS[6:]):
            assert_same(engine.score(part, TWO), plain.score(part, TWO))
    assert engine.score(PROMPTS, TWO).cache.evicted > 0
