"""The gradient over cached prompts is that of plain autograd on an unmodified model, whose products have B A added to the weight."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, FALLBACK, FEW, TARGETS, bits, build, deviation, engine_of
from gradients import ACTIVE, TERMS, assert_same, plainly, scores_of, slopes
from reusing import PROMPTS, naive_activated
from tiers import some_fast
from torch import Tensor
from transformers import PreTrainedModel

from twinpass.core import BASE, Request
from twinpass.engine.base import AdamStep, RelativeStep
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import JournalError, MissedParameterError, ModelError
from twinpass.model.projections import Projections
from twinpass.model.trainable import Activated, Layers, Lora, Trainable
from twinpass.reuse.activated import ActivatedReuse

NAMES = [*ARCHITECTURES, *FALLBACK]
TOLERANCE = 3e-6
"""Relative; norms take their means in float32, also in a float64 model."""

KINDS: dict[str, Any] = {
    "activated": Activated,
    "activated, upper": lambda **settings: Activated(first=1, **settings),
    "upper": lambda **settings: Lora(first=1, **settings),
    "lora": Lora,
}


def trained(name: str, kind: str, **options: Any) -> tuple[PreTrainedModel, TorchEngine]:
    """An engine whose adapters, A and B, are both other than zero."""
    model = build(name, options.pop("dtype", torch.float64))
    targets = tuple(target for target in TARGETS[name] if "upper" not in kind or target != "lm_head")
    engine = engine_of(name, model, KINDS[kind](rank=2, alpha=4.0, targets=targets), **options)
    engine.update(TERMS)
    return model, engine


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", some_fast(NAMES, FEW))
def test_the_gradient_is_that_of_plain_autograd(name: str, kind: str) -> None:
    model, engine = trained(name, kind)
    before = bits(model)
    asked = [parameter.requires_grad for parameter in model.parameters()]
    expected = plainly(model, engine, ACTIVE, "activated" in kind)
    first = engine.gradient(ACTIVE, slopes)
    assert_same(first, expected, TOLERANCE)
    again = engine.gradient(ACTIVE, slopes)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())
    scores = engine.score(ACTIVE, [BASE]).values[0]
    assert max(float(np.abs(a - b).max()) for a, b in zip(first.scores.values[0], scores, strict=True)) < 1e-9
    assert all(torch.equal(tensor, before[name]) for name, tensor in bits(model).items())
    assert [parameter.requires_grad for parameter in model.parameters()] == asked


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_a_gradient_in_parts_is_the_same(name: str) -> None:
    model, engine = trained(name, "activated", chunk_rows=5)
    assert len(engine._descent._cut(ACTIVE)) > 2
    assert_same(engine.gradient(ACTIVE, slopes), plainly(model, engine, ACTIVE, True), TOLERANCE)


CACHES: dict[str, dict[str, Any]] = {
    "too small for all prompts": {"slots": 60},
    "pages of 3": {"slots": 90, "page_size": 3},
    "a token at a time": {"chunk_rows": 1},
    "parts and pages": {"slots": 70, "chunk_rows": 7, "page_size": 2},
    "on disk": {"slots": 200},
}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("kind", ["activated", "activated, upper"])
def test_any_cache_gives_the_same_gradient(kind: str, cache: str, tmp_path: Path) -> None:
    """Prompts that are pushed out and come back, whose options are in different parts, or that another run has left on disk."""
    options = dict(CACHES[cache])
    budget = options.pop("slots", 4000) * trained("mistral", kind)[1].cache_slot_bytes
    spill = str(tmp_path) if cache == "on disk" else None
    policy = ActivatedReuse(budget=budget, page_size=options.pop("page_size", 1), spill=spill)
    for _ in range(2 if spill else 1):
        model, engine = trained("mistral", kind, reuse=policy, **options)
        for requests in (PROMPTS, PROMPTS[::-1]):
            assert_same(engine.gradient(requests, slopes), plainly(model, engine, requests, True), TOLERANCE)
            engine.score(requests, [BASE])


@pytest.mark.parametrize("kind", ["activated, upper", "lora"])
def test_prepacked_weights_have_the_same_gradient(kind: str) -> None:
    _, engine = trained("llama-untied", kind, dtype=torch.float32)
    expected = engine.gradient(ACTIVE, slopes)
    engine.prepack()
    assert any(weight.layout is not torch.strided for weight in engine.model.parameters())
    assert_same(engine.gradient(ACTIVE, slopes), dict(expected.tensors), 1e-4)
    engine.unpack()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_weights_of_upper_layers_have_gradients_too(name: str) -> None:
    """Those of a layer, over hidden states from the cache; the same as autograd's on the model itself."""
    model = build(name)
    engine = engine_of(name, model, Layers(1, 2))
    leaves = {path: model.get_parameter(path) for path in engine.parameters}
    scores = [scores_of(model, {}, request, False) for request in ACTIVE]
    given = [torch.from_numpy(own) for own in slopes([score.detach().double().numpy() for score in scores])]
    found = torch.autograd.grad(scores, list(leaves.values()), given)
    result = engine.gradient(ACTIVE, slopes)
    assert_same(result, dict(zip(leaves, found, strict=True)), TOLERANCE)


def test_only_rows_after_the_activation_point_have_a_graph() -> None:
    _, engine = trained("llama", "activated")
    assert engine._scorer is not None
    first, later = (engine.gradient(ACTIVE, slopes).scores.work for _ in range(2))
    own = {request.prompt[: request.active_from]: set[Any]() for request in ACTIVE}
    for request in ACTIVE:
        for end in range(request.active_from, len(request.inputs)):
            own[request.prompt[: request.active_from]].add(request.inputs[: end + 1])
    rows = sum(map(len, own.values()))
    assert later.computed == rows * engine.layers
    assert first.computed > later.computed
    assert sum(later.reused.values()) == later.demand - later.computed


def _asked(rows: int, options: int, words: int) -> list[Request]:
    """Prompts of 30 tokens that share nothing, each with as many answers of so many words, a few of which begin alike."""
    draw = np.random.default_rng(0)
    answers = [
        (int(first), *draw.integers(1, 90, words - 1).tolist())
        for first in draw.integers(1, 1 + options // 2 + 1, options)
    ]
    prompts = [tuple(draw.integers(1, 90, 30).tolist()) for _ in range(rows)]
    return [Request(prompt, answer, active_from=27) for prompt in prompts for answer in dict.fromkeys(answers)]


@pytest.mark.parametrize(("rows", "options", "words"), [(8, 2, 1), (6, 20, 3), (4, 1, 24)])
def test_the_graph_is_announced_before_it_is_made(rows: int, options: int, words: int) -> None:
    model, engine = trained("llama", "activated", dtype=torch.float32)
    asked = _asked(rows, options, words)
    announced = engine.graph_bytes(asked)
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        engine.gradient(asked, slopes)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *engine.parameters.values())}
    taken = sum(size for place, size in saved.items() if place not in weights) + 3 * 4 * engine.trained
    assert 0.8 * taken < announced < 1.3 * taken


@pytest.mark.parametrize("kind", ["activated", "lora"])
def test_to_announce_a_graph_reads_no_prompt(kind: str) -> None:
    """What it leaves in the cache is of other tokens, so that prompts are read later as if it had not been asked."""
    (_, asked), (_, other) = (trained("llama", kind, dtype=torch.float32) for _ in range(2))
    for request in ACTIVE:
        asked.graph_bytes([request])
    assert asked.gradient(ACTIVE, slopes).scores.work == other.gradient(ACTIVE, slopes).scores.work


def test_what_takes_no_part_in_the_scores_has_no_gradient() -> None:
    model = build("llama")
    model.get_submodule("model.layers.1").spare = torch.nn.Linear(3, 5, dtype=torch.float64)
    engine = TorchEngine(model, Layers(1, 2))
    with pytest.raises(
        MissedParameterError, match=r"2 trained tensors take no part .* model\.layers\.1\.spare\.weight"
    ):
        engine.gradient(ACTIVE, slopes)


STEPS = [
    AdamStep(1, 1e-2, decay=0.1),
    AdamStep(2, 5e-3, decay=0.1),
    AdamStep(3, 1e-3, 0.8, 0.9, clip=0.5),
    AdamStep(4, 1e-3, clip=1e3),
]


def test_steps_are_those_of_pytorch(tmp_path: Path) -> None:
    _, engine = trained("llama", "activated")
    own = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in engine.parameters.items()}
    theirs = torch.optim.AdamW(own.values(), lr=1.0)
    for step in STEPS:
        gradient = engine.gradient(ACTIVE, slopes)
        for name, parameter in own.items():
            parameter.grad = gradient.tensors[name].clone()
        if step.clip:
            torch.nn.utils.clip_grad_norm_(own.values(), step.clip)
        for group in theirs.param_groups:
            group.update(lr=step.lr, betas=(step.beta1, step.beta2), weight_decay=step.decay, eps=step.eps)
        theirs.step()
        engine.descend(gradient, step)
        for name, parameter in own.items():
            torch.testing.assert_close(engine.parameters[name], parameter.detach(), rtol=1e-6, atol=1e-9)


def test_what_is_stored_comes_back_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    _, engine = trained("llama", "activated", dtype=torch.float32)

    def take(step: AdamStep) -> None:
        engine.descend(engine.gradient(ACTIVE, slopes), step)

    take(STEPS[0])
    known = engine.store(tmp_path / "one.safetensors")
    take(STEPS[1])
    after = {name: tensor.clone() for name, tensor in engine.parameters.items()}
    assert engine.restore(tmp_path / "one.safetensors") == known
    assert engine.store(tmp_path / "two.safetensors") == known
    take(STEPS[1])
    assert all(torch.equal(tensor, after[name]) for name, tensor in engine.parameters.items())
    assert engine.store(tmp_path / "three.safetensors") != known
    engine.reset()
    with pytest.raises(JournalError, match="not a snapshot of what this run trains"):
        trained("llama", "upper")[1].restore(tmp_path / "one.safetensors")


STALE: dict[str, tuple[Trainable, AdamStep | RelativeStep]] = {
    "adapters everywhere": (Lora(2, 4.0), STEPS[0]),
    "adapters above": (Lora(2, 4.0, first=1), STEPS[0]),
    "activated": (Activated(2, 4.0, ("o_proj", "down_proj"), first=1), STEPS[0]),
    "weights above": (Layers(1, 2), STEPS[0]),
    "projections, the lower ones too": (Projections(layers=2), RelativeStep(0.1, 1.0)),
}


@pytest.mark.parametrize("kind", STALE)
def test_no_step_leaves_keys_or_states_of_other_weights(kind: str, tmp_path: Path) -> None:
    """Whatever moved them last, a step, a snapshot that came back, or a new beginning: scores are those of the weights as they are."""
    trainable, step = STALE[kind]
    model = build("mistral", torch.float32)
    base = {name: tensor.clone() for name, tensor in model.named_parameters()}
    engine = TorchEngine(model, trainable, reload=lambda: base)

    def move() -> None:
        taken = engine.feedback if isinstance(step, RelativeStep) else engine.gradient
        engine.descend(taken(PROMPTS, slopes), step)

    def stored() -> None:
        engine.store(tmp_path / "before")
        move()
        engine.score(PROMPTS, [BASE])
        engine.restore(tmp_path / "before")

    seen = [engine.score(PROMPTS, [BASE]).values[0]]
    for change in (move, move, stored, move, engine.reset):
        change()
        found = engine.score(PROMPTS, [BASE]).values[0]
        adapters = dict(engine.parameters) if trainable.adapter else {}
        starts = [request.active_from if trainable.activated else 0 for request in PROMPTS]
        plain = [
            naive_activated(model, adapters, replace(one, active_from=at))
            for one, at in zip(PROMPTS, starts, strict=True)
        ]
        assert deviation(found, plain) < 1e-4
        seen.append(found)
    assert deviation(seen[-1], seen[0]) < 1e-5
    assert all(deviation(a, b) > 1e-3 for a, b in pairwise(seen[:3]))
    assert deviation(seen[3], seen[2]) < 1e-5, "the snapshot"


def test_gradients_are_refused_where_weights_move() -> None:
    engine = engine_of("llama", build("llama"), Lora(rank=2), perturbation="inplace")
    with pytest.raises(ModelError, match="leave perturbation = 'inplace'"):
        engine.gradient(ACTIVE, slopes)
