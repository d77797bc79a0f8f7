"""Informed directions: lanes are what really moved adapters give, what an engine observes is what the model computes, work is what ran."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import ADDING, LANES, VOCABULARY, WRITERS, Float64Softmax, build, deviation, direction, share_of
from reusing import PROMPTS, TERMS, TWO, naive_activated, packed, rows_by_layer
from torch import Tensor, nn

from twinpass.core import BASE, Lane, Probe, Request, Score
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import JournalError, ModelError
from twinpass.estimate.directions import UNIT, fit
from twinpass.model.causal import CausalModel
from twinpass.model.informed import InformedAdapter
from twinpass.model.space import Space
from twinpass.model.trainable import Activated, Full, Informed
from twinpass.reuse.activated import ActivatedReuse
from twinpass.reuse.auto import Auto
from twinpass.reuse.exact import Exact

SIZE = 32


def informed(name: str, **settings: Any) -> Informed:
    return Informed(layers=1, targets=WRITERS.get(name, ("o_proj", "down_proj")), **settings)


def adapter_of(engine: TorchEngine) -> InformedAdapter:
    adapter = engine._trained.adapter
    assert isinstance(adapter, InformedAdapter)
    return adapter


def spaces(engine: TorchEngine, count: int, rank: int = 3) -> list[Space]:
    """Random directions with outputs in common."""
    generator = torch.Generator().manual_seed(5)
    outputs = torch.randn(rank, SIZE, generator=generator, dtype=torch.float64)
    model = engine.model
    return [
        Space(
            outputs,
            {
                path: torch.randn(rank, _inputs(model.get_submodule(path)), generator=generator, dtype=torch.float64)
                for path in adapter_of(engine).modules
            },
        )
        for _ in range(count)
    ]


def _inputs(module: nn.Module) -> int:
    weight = module.get_parameter("weight")
    return int(weight.shape[1] if isinstance(module, nn.Linear) else weight.shape[0])


def moved(engine: TorchEngine, lane: Lane) -> dict[str, Tensor]:
    """A and B of every module as ``lane`` sees them; B halved, as the reference doubles products."""
    gains = dict(engine.parameters)
    if lane.probe is not None:
        gains = {name: t + lane.scale * direction(name, t, lane.probe.seed, "binomial") for name, t in gains.items()}
    found = adapter_of(engine).peft_tensors(gains)
    return {name: tensor / 2 if "lora_B" in name else tensor for name, tensor in found.items()}


@packed
def test_lanes_are_what_moved_gains_give(name: str) -> None:
    model = build(name)
    engine = TorchEngine(model, informed(name))
    assert {CausalModel(model).layer_of(path) for path in adapter_of(engine).modules} == {1}
    base = engine.score(PROMPTS, [BASE]).values[0]
    for space in spaces(engine, 2):
        engine.use(space)
        engine.update(TERMS)
    for lane, scores in zip(LANES, engine.score(PROMPTS, LANES).values, strict=True):
        assert deviation(scores, [naive_activated(model, moved(engine, lane), request) for request in PROMPTS]) < 1e-9
    engine.reset()
    assert deviation(engine.score(PROMPTS, [BASE]).values[0], base) == 0.0


def test_what_was_gained_stays_when_directions_change() -> None:
    engine = TorchEngine(build("llama"), informed("llama"))
    first, second = spaces(engine, 2)
    engine.use(first)
    engine.update(TERMS)
    before = engine.score(PROMPTS, [BASE]).values[0]
    engine.use(second)
    assert deviation(engine.score(PROMPTS, [BASE]).values[0], before) < 1e-12
    assert all(not bool(gain.any()) for gain in engine.parameters.values())


@pytest.mark.parametrize("relative", [False, True])
@packed
def test_what_is_observed_is_what_the_model_computes(name: str, relative: bool) -> None:
    model = build(name)
    engine = TorchEngine(model, informed(name), chunk_rows=7)
    engine.use(spaces(engine, 1)[0])
    engine.update(TERMS)
    requests = [replace(request, relative=relative) for request in PROMPTS]

    def slopes(scores: Sequence[Score]) -> list[Score]:
        return [np.cos(np.arange(len(score)) + 10 * i) for i, score in enumerate(scores)]

    seen = engine.observe(requests, slopes)
    inputs, errors = observed_plainly(
        engine, requests, slopes([np.zeros(len(r.completion)) for r in requests]), relative
    )
    assert seen.errors.shape == (len(errors), SIZE)
    names, expected = list(errors), np.array(list(errors.values()))
    distances = np.abs(seen.errors.numpy()[:, None] - expected).max(-1)
    order = distances.argmin(1)
    assert sorted(order) == list(range(len(names)))
    assert distances.min(1).max() < 1e-5, "norms take their means in float32"
    for path, x in seen.inputs.items():
        known = np.array([inputs[path][names[i]] for i in order])
        assert np.abs(x.numpy() - known).max() < 1e-9


def observed_plainly(
    engine: TorchEngine, requests: Sequence[Request], slopes: Sequence[Score], relative: bool
) -> tuple[dict[str, dict[Any, Any]], dict[Any, Any]]:
    """The same by hooks and autograd on the model's own forward, a request at a time, by the tokens before each answer.

    An answer's prompt tells where adapters begin to act, so that it is part of the name.
    """
    model, adapters = engine.model, moved(engine, BASE)
    last = model.get_submodule(CausalModel(model).layers_path)[-1]  # type: ignore[index]
    inputs: dict[str, dict[Any, Any]] = {path: {} for path in adapter_of(engine).modules}
    errors: dict[Any, Any] = {}
    for request, slope in zip(requests, slopes, strict=True):
        states: list[Tensor] = []
        handles = []
        for path, rows_of in inputs.items():
            change = 2 * adapters[f"{path}.lora_B.weight"] @ adapters[f"{path}.lora_A.weight"]

            def hook(
                module: nn.Module,
                args: Any,
                y: Tensor,
                seen: dict[Any, Any] = rows_of,
                change: Tensor = change,
                request: Request = request,
            ) -> Tensor:
                rows = args[0].reshape(len(request.inputs), -1)
                for at in range(len(request.prompt) - 1, len(request.inputs)):
                    seen[request.inputs[: at + 1], request.active_from] = rows[at].detach().numpy()
                added = rows @ change.t()
                added[: request.active_from] = 0
                return torch.add(y, added.view(y.shape))

            handles.append(model.get_submodule(path).register_forward_hook(hook))

        def leave(module: nn.Module, args: Any, output: Any, states: list[Tensor] = states) -> Any:
            state = (output[0] if isinstance(output, tuple) else output).detach().requires_grad_(True)
            states.append(state)
            return (state, *output[1:]) if isinstance(output, tuple) else state

        handles.append(last.register_forward_hook(leave))
        with Float64Softmax():
            logits = model(input_ids=torch.tensor([request.inputs]), use_cache=False).logits[0]
        for handle in handles:
            handle.remove()
        rows = logits[len(request.prompt) - 1 :]
        values = rows if relative else torch.log_softmax(rows, -1)
        score = values[range(len(request.completion)), list(request.completion)]
        (error,) = torch.autograd.grad((score * torch.from_numpy(slope)).sum(), states[0])
        for at in range(len(request.prompt) - 1, len(request.inputs)):
            key = request.inputs[: at + 1], request.active_from
            errors[key] = errors.get(key, 0) + error[0, at].numpy()
    return inputs, errors


@pytest.mark.parametrize("chunk_rows", [5, 4096])
@packed
def test_work_is_what_the_layers_ran(name: str, chunk_rows: int) -> None:
    model = build(name)
    engine = TorchEngine(model, informed(name), chunk_rows=chunk_rows)
    engine.use(spaces(engine, 1)[0])
    for lanes in (TWO, TWO, [BASE], LANES):
        with rows_by_layer(model) as counts:
            work = engine.score(PROMPTS, lanes).work
        assert sum(counts) == work.computed
        assert work.demand == work.computed + sum(work.reused.values())
        assert all(count >= 0 for count in work.reused.values())


def test_lower_layers_run_once_and_answers_alone_run_above() -> None:
    """A prompt of 6 shared by two options of 2 and 3 tokens, two lanes, two layers of which the upper one is trained."""
    requests = [Request((1, 2, 3, 4, 5, 6), (7, 8), 4), Request((1, 2, 3, 4, 5, 6), (9, 8, 7), 4)]
    engine = TorchEngine(build("llama"), Activated(2, 4.0, first=1))
    works = [engine.score(requests, TWO).work for _ in range(2)]
    distinct, before = 9, 4
    assert [work.computed for work in works] == [distinct + before + 2 * (distinct - before), 2 * (distinct - before)]


@pytest.mark.parametrize("options", [{"page_size": 4}, {"budget": 25_000}, {"budget": 2**20}])
def test_any_cache_gives_the_same_scores(options: dict[str, Any]) -> None:
    found = []
    for policy in (Exact(), Auto(**options), ActivatedReuse(**options)):
        engine = TorchEngine(build("llama"), informed("llama"), reuse=policy, chunk_rows=9)
        engine.use(spaces(engine, 1)[0])
        engine.update(TERMS)
        alone = [score for request in PROMPTS for score in engine.score([request], TWO).values[0]]
        found.append([*engine.score(PROMPTS, TWO).values[0], *engine.score(PROMPTS[::-1], TWO).values[1], *alone])
    for other in found[1:]:
        assert deviation(found[0], other) < 1e-12


def test_an_adapter_is_saved_as_the_lora_that_it_is(tmp_path: Any) -> None:
    from peft import PeftModel

    model = build("llama")
    engine = TorchEngine(model, informed("llama"), invocation=(5, 6))
    for space in spaces(engine, 2):
        engine.use(space)
        engine.update(TERMS)
    request = Request((1, 2, 5, 6), (7, 8), 2)
    expected = engine.score([request], [BASE]).values[0][0]
    folder = engine.save(tmp_path)
    peft: Any = PeftModel.from_pretrained(build("llama"), folder).double()
    with torch.no_grad(), Float64Softmax():
        logits = peft(input_ids=torch.tensor([request.inputs]), use_cache=False).logits[0]
    own = torch.log_softmax(logits[3:], -1)[[0, 1], [7, 8]].numpy()
    assert np.abs(own - expected).max() < 1e-6


def test_what_cannot_be_used_is_refused(tmp_path: Any) -> None:
    model = build("llama")
    with pytest.raises(ModelError, match="48 outputs, the residual stream 32"):
        TorchEngine(model, Informed(layers=1, targets=("up_proj",)))
    with pytest.raises(ModelError, match=r"\['c_proj'\] match no linear layer"):
        TorchEngine(model, Informed(layers=1, targets=("o_proj", "c_proj")))
    engine = TorchEngine(model, informed("llama"))
    space, other = spaces(engine, 1)[0], spaces(engine, 1, rank=2)[0]
    with pytest.raises(ModelError, match="takes no directions"):
        TorchEngine(model, Full()).use(space)
    engine.use(space)
    with pytest.raises(ModelError, match="share their outputs"):
        engine.use(other)
    with pytest.raises(ModelError, match="other modules"):
        engine.use(Space(space.outputs, {}))
    file = tmp_path / "a.safetensors"
    space.save(file)
    assert Space.load(file, space.digest).digest == space.digest
    with pytest.raises(JournalError, match="other directions than the journal names"):
        Space.load(file, other.digest)
    damaged = bytearray(file.read_bytes())
    damaged[-3] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(JournalError, match="other directions"):
        Space.load(file, space.digest)
    file.write_bytes(damaged[:40])
    with pytest.raises(JournalError, match="cannot be read"):
        Space.load(file, space.digest)
    with pytest.raises(JournalError, match="cannot be read"):
        Space.load(file.with_name("b.safetensors"), space.digest)


def test_an_observed_token_outside_the_vocabulary_is_refused() -> None:
    engine = TorchEngine(build("llama"), informed("llama"))
    with pytest.raises(ModelError, match="vocabulary"):
        engine.observe([Request((1, VOCABULARY), (2,), 0)], lambda scores: scores)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", *ADDING])
def test_a_gain_has_the_slope_that_its_direction_was_fitted_for(name: str) -> None:
    """Nothing but a norm, where there is one, lies between the uppermost module and the stream: the loss moves as was seen."""
    engine = TorchEngine(build(name), Informed(layers=1, targets=("down_proj",)))
    weights = [np.cos(np.arange(len(request.completion)) + 10 * i) for i, request in enumerate(PROMPTS)]
    seen = engine.observe(PROMPTS, lambda scores: weights)
    space = fit(seen, None, rank=4, ridge=0.1)
    engine.use(space)
    ((path, inputs),) = space.inputs.items()
    share = share_of(engine.model, path)
    moved = share * seen.inputs[path] @ inputs.t() @ space.outputs
    assert float(moved.square().sum(1).mean().sqrt()) == pytest.approx(UNIT * seen.scale), "of the stream"
    expected = float((seen.normed.get(path, seen.errors) * moved).sum())
    ((gain, tensor),) = engine.parameters.items()
    eps = 1e-3 / float(direction(gain, tensor, 3, "binomial"))
    both = engine.score(PROMPTS, [Lane(Probe(3), sign, eps) for sign in (1, -1)]).values
    plus, minus = (sum(float(w @ own) for w, own in zip(weights, scores, strict=True)) for scores in both)
    assert (plus - minus) / 2e-3 == pytest.approx(expected, rel=1e-3), "norms take their means in float32"
    assert expected < 0, "down the loss"
