"""Every architecture writes, under every kind of training, what plain loops over plain models write."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import FALLBACK, FEW, LANES, TARGETS, VOCABULARY, build, engine_of
from architectures import in_lane as moved
from reusing import NAMES, PROMPTS, TERMS, TWO, acting, in_lane, naive_logprobs, rows_by_layer, trainables
from tiers import some_fast
from transformers import PreTrainedModel

from twinpass.core import BASE, Continuations, Lane, Probe, Prompt, Sampling, Tokens
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.scoring import choosing, paged
from twinpass.engine.embedded.scoring.choosing import truncated
from twinpass.errors import CacheFullError, ModelError
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Activated, Full, Layers, Lora, Trainable
from twinpass.perturb.race import reference
from twinpass.reuse.auto import Auto
from twinpass.reuse.exact import Exact

PROMPT = tuple(Prompt(request.prompt, request.active_from, row) for row, request in enumerate(PROMPTS))
GREEDY = Sampling(max_tokens=6)
SAMPLED = Sampling(max_tokens=6, temperature=1.5, seed=2**63 + 5)
GRID = [Lane(Probe(7), 1, 2**-4), Lane(Probe(7), -1, 2**-4), BASE]
"""Lanes that an exact lattice has, too."""


def kinds(name: str) -> dict[str, Trainable]:
    found = {kind: trainable for kind, (trainable, _) in trainables(name).items()}
    return {
        **found,
        "upper": Activated(4, 8.0, tuple(target for target in TARGETS[name] if target != "lm_head"), first=1),
    }


def words(tokens: Tokens) -> str:
    return "".join(f"<{token}>" for token in tokens)


def plain_models(
    engine: TorchEngine, model: PreTrainedModel, lane: Lane
) -> Callable[[Prompt], AbstractContextManager[PreTrainedModel]]:
    """For each prompt, the model with a lane's weights, really moved or added to."""
    if isinstance(engine._trained.adapter, type(None)):
        copy = moved(model, engine.parameters, lane, engine.noise)
        return lambda prompt: nullcontext(copy)
    adapters = in_lane(dict(engine.parameters), lane)
    activated = engine._trained.activated

    def open_(prompt: Prompt) -> AbstractContextManager[PreTrainedModel]:
        return acting(model, adapters, prompt.active_from if activated else 0)  # type: ignore[return-value]

    return open_


def best(prompt: Prompt, position: int, logprobs: np.ndarray, sampling: Sampling) -> int:
    """The next token by the definition."""
    if sampling.temperature == 0:
        return int(logprobs.argmax())
    noise = reference(sampling.seed, f"{prompt.row}/{prompt.sample}/{position}", VOCABULARY)
    return int((logprobs / sampling.temperature + noise).argmax())


def assert_plain(
    engine: TorchEngine, model: PreTrainedModel, prompts: Sequence[Prompt], lanes: Sequence[Lane], sampling: Sampling
) -> Continuations:
    """What the engine writes is what a loop of full forwards under really moved weights writes, with its log-probabilities."""
    texts = engine.generate(prompts, lanes, sampling, words)
    for lane, own in zip(lanes, texts.values, strict=True):
        opened = plain_models(engine, model, lane)
        for prompt, text in zip(prompts, own, strict=True):
            with opened(prompt) as copy:
                rows = naive_logprobs(copy or model, prompt.tokens + text.tokens[:-1])[len(prompt.tokens) - 1 :]
            assert text.tokens == tuple(best(prompt, i, row, sampling) for i, row in enumerate(rows))
            tolerance = 1e-6 if model.config.model_type in FALLBACK else 1e-9  # their own softmax is in float32
            assert np.abs(text.logprobs - rows[range(len(text.tokens)), text.tokens]).max() < tolerance
            assert (text.text, text.stopped, len(text.tokens)) == (words(text.tokens), False, sampling.max_tokens)
    return texts


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.table
@pytest.mark.parametrize("kind", ["full", "lora", "layers", "activated", "upper"])
@pytest.mark.parametrize("name", some_fast(NAMES, FEW))
def test_texts_are_those_of_plain_models(name: str, kind: str, sampling: Sampling) -> None:
    model = build(name)
    engine = engine_of(name, model, kinds(name)[kind])
    if kind != "full":
        engine.update(TERMS)
    texts = assert_plain(engine, model, PROMPT, LANES, sampling)
    assert len({text.tokens for own in texts.values for text in own}) > 4


def tokens_of(texts: Continuations) -> list[list[Tokens]]:
    return [[text.tokens for text in own] for own in texts.values]


def samples(count: int) -> list[Prompt]:
    return [replace(prompt, sample=sample) for prompt in PROMPT[1:6] for sample in range(count)]


QUICK = ("llama", "gpt2", "gemma3")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.full) for n in NAMES])
def test_hugging_face_generates_the_same(name: str) -> None:
    model = build(name)
    engine = engine_of(name, model)
    for lane, own in zip(LANES, engine.generate(PROMPT, LANES, GREEDY, words).values, strict=True):
        copy: Any = moved(model, engine.parameters, lane, engine.noise)
        for prompt, text in zip(PROMPT, own, strict=True):
            ids = torch.tensor([prompt.tokens])
            options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
            found = copy.generate(
                ids, attention_mask=torch.ones_like(ids), eos_token_id=None, pad_token_id=0, **options
            )
            assert text.tokens == tuple(found.sequences[0, len(prompt.tokens) :].tolist())
            logprobs = torch.log_softmax(torch.cat(found.logits).double(), -1).numpy()
            assert np.abs(text.logprobs - logprobs[range(6), text.tokens]).max() < 1e-5


@pytest.mark.table
@pytest.mark.parametrize("kind", ["full", "lora", "layers", "activated", "upper"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_warm_cache_writes_the_same(name: str, kind: str) -> None:
    """Also after prompts were scored, after an update, and with every chunk, page and group size."""
    prompts = samples(2)
    cold = [engine_of(name, build(name), kinds(name)[kind]) for _ in range(2)]
    for engine in cold:
        engine.update(TERMS)
    for lanes in (TWO, [BASE]):
        texts = [engine.generate(prompts, lanes, SAMPLED, words) for engine in cold]
        again = cold[1].generate(prompts, lanes, SAMPLED, words)
        assert tokens_of(texts[0]) == tokens_of(texts[1]) == tokens_of(again)
        assert again.work.computed <= texts[0].work.computed
    small = TorchEngine(build(name), kinds(name)[kind], chunk_rows=5, reuse=Auto(budget=2**17, page_size=4))
    small.score(PROMPTS, TWO)
    small.update(TERMS)
    assert tokens_of(small.generate(prompts, [BASE], SAMPLED, words)) == tokens_of(texts[0])


@pytest.mark.parametrize("kind", ["full", "activated", "upper"])
def test_any_split_writes_the_same(kind: str) -> None:
    prompts = samples(3)
    engine = TorchEngine(build("qwen2"), kinds("qwen2")[kind])
    engine.update(TERMS)
    whole = tokens_of(engine.generate(prompts, LANES, SAMPLED, words))
    for size in (1, 4):
        parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        found = [tokens_of(engine.generate(part, LANES, SAMPLED, words)) for part in parts]
        assert [[text for part in found for text in part[lane]] for lane in range(len(LANES))] == whole
    for lane, own in zip(LANES, whole, strict=True):
        assert tokens_of(engine.generate(prompts[::-1], [lane], SAMPLED, words)) == [own[::-1]]


@pytest.mark.parametrize("kind", ["full", "activated", "upper"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_attention_in_buckets_writes_the_same(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device, and in bfloat16: lines that have most in common look at it together, others one by one."""
    long = Prompt(tuple(range(1, 41)), 38)
    prompts = [*samples(2), *(replace(long, sample=sample) for sample in range(2))]
    engine = engine_of(name, build(name), kinds(name)[kind])
    engine.update(TERMS)
    for lanes in (TWO, [BASE]):
        texts = engine.generate(prompts, lanes, SAMPLED, words)
        with monkeypatch.context() as patch:
            patch.setattr(paged, "suits", lambda causal: False)
            found = engine.generate(prompts, lanes, SAMPLED, words)
        assert tokens_of(found) == tokens_of(texts)
        for own, others in zip(found.values, texts.values, strict=True):
            for text, other in zip(own, others, strict=True):
                np.testing.assert_allclose(text.logprobs, other.logprobs, atol=1e-9)


def test_lanes_share_random_numbers_and_samples_do_not() -> None:
    near = [Lane(Probe(7), sign, 1e-9) for sign in (1, -1)]
    prompts = [replace(PROMPT[0], row=row, sample=sample) for row in range(4) for sample in range(4)]
    engine = TorchEngine(build("llama"), Full())
    sampling = replace(SAMPLED, temperature=4.0)
    plus, minus = tokens_of(engine.generate(prompts, near, sampling, words))
    assert plus == minus
    assert len(set(plus)) == 16
    assert tokens_of(engine.generate(prompts, near, replace(sampling, seed=1), words))[0] != plus


@pytest.mark.parametrize("trainable", [Full(), Lora(4, 8.0), Activated(4, 8.0)])
def test_in_place(trainable: Trainable) -> None:
    model = build("llama")
    engine = TorchEngine(model, trainable, perturbation="inplace")
    tandem = TorchEngine(build("llama"), trainable)
    tandem.parameters.copy_from({name: tensor.clone() for name, tensor in engine.parameters.items()})
    assert tokens_of(engine.generate(PROMPT, GRID, SAMPLED, words)) == tokens_of(
        tandem.generate(PROMPT, GRID, SAMPLED, words)
    )


@pytest.mark.parametrize("name", ["llama", *FALLBACK])
def test_texts_end(name: str) -> None:
    """With a stop token, which counts as a token and is no text; where a stop string begins, also across tokens."""
    engine = engine_of(name, build(name))
    prompts = [replace(PROMPT[0], row=row) for row in range(6)]
    sampling = replace(SAMPLED, temperature=3.0, max_tokens=8)
    free = engine.generate(prompts, TWO, sampling, words).values
    token = free[0][0].tokens[2]
    (a, b), other = free[1][1].tokens[3:5], free[0][2].tokens[0]
    stop = (f"{a}><{b}", f"<{other}>")
    texts = engine.generate(prompts, TWO, replace(sampling, stop=stop, stop_tokens=(token,)), words)
    for own, plain in zip(texts.values, free, strict=True):
        for text, whole in zip(own, plain, strict=True):
            cuts = [
                (
                    n,
                    words(whole.tokens[: n - 1])
                    if whole.tokens[n - 1] == token
                    else said[: min(map(said.find, found))],
                )
                for n in range(1, 9)
                for said in [words(whole.tokens[:n])]
                for found in [[string for string in stop if string in said]]
                if found or whole.tokens[n - 1] == token
            ]
            length, said = cuts[0] if cuts else (8, words(whole.tokens))
            assert (text.tokens, text.text, text.stopped) == (whole.tokens[:length], said, bool(cuts))
            assert np.abs(text.logprobs - whole.logprobs[:length]).max() < 1e-9
    assert {text.stopped for own in texts.values for text in own} == {True, False}
    assert len({len(text.tokens) for own in texts.values for text in own}) > 2


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_few_rows_at_a_time_are_chosen_alike(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order of texts, and however many rows are looked at together."""
    logits = torch.from_numpy(np.random.default_rng(5).normal(0, 2, (24, VOCABULARY)))
    prompts = [Prompt((1,), 0, row, sample) for _ in range(4) for row in range(3) for sample in range(2)]
    positions, sampling = [12 + text % 6 for text in range(24)], replace(SAMPLED, temperature=temperature)
    logprobs = torch.log_softmax(logits, -1).numpy()
    for block in (1, 5 * VOCABULARY, choosing.BLOCK):
        monkeypatch.setattr(choosing, "BLOCK", block)
        tokens, found = choosing.choose(logits, prompts, positions, sampling)
        for text, token in enumerate(tokens.tolist()):
            assert token == best(prompts[text], positions[text], logprobs[text], sampling)
            assert float(found[text]) == pytest.approx(logprobs[text, token], abs=1e-12)


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (0, 0.6), (5, 0.7), (1, 1.0), (0, 1e-9), (1000, 1.0)])
def test_truncation(top_k: int, top_p: float) -> None:
    logits = torch.from_numpy(np.random.default_rng(3).normal(0, 2, (40, 30)))
    for row, kept in zip(logits.numpy(), truncated(logits, top_k, top_p).numpy(), strict=True):
        order = np.argsort(-row)[: top_k or None]
        shares = np.exp(row[order]) / np.exp(row[order]).sum()
        count = 1 + int(np.searchsorted(np.cumsum(shares), top_p)) if top_p < 1 else len(order)
        assert set(np.flatnonzero(np.isfinite(kept))) == set(order[:count])
        assert np.array_equal(kept[order[:count]], row[order[:count]])


def test_frequencies_are_the_softmax() -> None:
    """4,000 samples of one token, against the model's own probabilities at a temperature, truncated."""
    model = build("llama")
    engine = TorchEngine(model, Full())
    prompts = [Prompt((5, 6, 7), sample=sample) for sample in range(4000)]
    sampling = Sampling(1, temperature=0.7, top_k=5)
    chosen = [text.tokens[0] for text in engine.generate(prompts, [BASE], sampling, words).values[0]]
    logits = naive_logprobs(model, (5, 6, 7))[-1] / 0.7
    order = np.argsort(-logits)[:5]
    expected = np.exp(logits[order]) / np.exp(logits[order]).sum()
    counts = np.array([chosen.count(token) for token in order])
    assert counts.sum() == 4000
    assert (
        (counts - 4000 * expected) ** 2 / (4000 * expected)
    ).sum() < 18.5  # 0.1% of chi-squared, 4 degrees of freedom


@pytest.mark.table
@pytest.mark.parametrize("chunk_rows", [5, 4096])
@pytest.mark.parametrize("kind", ["lora", "layers", "activated", "upper"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_work_is_what_the_layers_ran(name: str, kind: str, chunk_rows: int) -> None:
    model = build(name)
    engine = TorchEngine(model, kinds(name)[kind], chunk_rows=chunk_rows)
    prompts, depth = samples(2), CausalModel(model).depth
    for lanes in (TWO, TWO, [BASE], [BASE], LANES):
        with rows_by_layer(model) as counts:
            texts = engine.generate(prompts, lanes, replace(SAMPLED, stop_tokens=tuple(range(20))), words)
        work = texts.work
        assert sum(counts) == work.computed
        demand = sum(
            len(p.tokens) + len(t.tokens) - 1 for own in texts.values for p, t in zip(prompts, own, strict=True)
        )
        assert work.demand == depth * demand == work.computed + sum(work.reused.values())
        assert all(count >= 0 for source, count in work.reused.items() if source != "idle")


def test_what_is_read_and_written_is_counted() -> None:
    """A prompt of 6 (4 before activation), 2 samples of 3 tokens, two lanes, two layers."""
    prompts = [Prompt((1, 2, 3, 4, 5, 6), 4, 0, sample) for sample in range(2)]
    sampling = Sampling(3, temperature=9.0)
    demand, each = 2 * 2 * 2 * 8, 2 * 2
    lanes = {"full": Full(), "layers": Layers(1, 2), "activated": Activated(2, 4.0)}
    works = {}
    for kind, trainable in lanes.items():
        engine = TorchEngine(build("llama"), trainable)
        works[kind] = [engine.generate(prompts, TWO, sampling, words).work for _ in range(2)]
        assert [work.demand for work in works[kind]] == [demand, demand]
    assert [work.computed for work in works["full"]] == [each * (6 + 2 * 2)] * 2
    assert [work.computed for work in works["activated"]] == [each * (2 + 2 * 2) + 2 * 4, each * (2 + 2 * 2)]
    assert works["activated"][1].reused == {"activated": 2 * 4 * 2, "shared_prefix": demand - each * 6 - 2 * 4 * 2}
    assert [work.computed for work in works["layers"]] == [each * (1 + 4) + 3 * 5, each * (1 + 4) + 2 * 5]


def test_the_base_lane_goes_on_from_what_it_wrote() -> None:
    model = build("llama")
    engine = TorchEngine(model, Full())
    first = engine.generate([Prompt((1, 2, 3, 4))], [BASE], GREEDY, words).values[0][0].tokens
    longer = Prompt((1, 2, 3, 4, *first, 9))
    assert engine.generate([longer], [BASE], Sampling(1), words).work.computed == 2 * 2
    engine.update(TERMS)
    assert engine.generate([longer], [BASE], Sampling(1), words).work.computed == 2 * 11
    assert_plain(engine, model, [longer], [BASE], Sampling(3))


def test_a_cache_that_is_too_small() -> None:
    engine = TorchEngine(build("llama"), Full(), reuse=Exact(budget=2**13))
    with pytest.raises(
        CacheFullError, match=r"texts of 28 tokens, .* under 5 lanes need about .*raise it, or lower max_tokens"
    ):
        engine.generate(PROMPT, LANES, GREEDY, words)
    assert engine.generate(PROMPT[:1], [BASE], GREEDY, words).values[0][0].tokens


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        (
            Prompt((1,) * 60),
            Sampling(6),
            r"request 0 has 60 tokens and may be continued by 6; .*max_tokens to 5 or less",
        ),
        (Prompt(()), GREEDY, "empty prompt"),
        (Prompt((1, 97)), GREEDY, "token 97"),
        (Prompt((1, 2), 2), GREEDY, "activates its adapter at token 2 of a prompt of 2"),
        (Prompt((1, 2)), Sampling(0), "max_tokens has to be 1 or more"),
        (Prompt((1, 2)), Sampling(2, top_p=0.0), "top_p above 0"),
        (Prompt((1, 2)), Sampling(2, stop=("",)), "a stop string is empty"),
    ],
)
def test_what_cannot_be_written(prompt: Prompt, sampling: Sampling, message: str) -> None:
    engine = TorchEngine(build("llama"), Activated(2, 4.0))
    with pytest.raises(ModelError, match=message):
        engine.generate([prompt], TWO, sampling, words)
    assert len(engine.generate([Prompt((1,) * 60)], TWO, Sampling(5), words).values[0][0].tokens) == 5


def test_approximate_lanes_are_refused() -> None:
    engine = TorchEngine(build("llama"), Full())
    with pytest.raises(ModelError, match="written under exact lanes"):
        engine.generate(PROMPT, [Lane(Probe(1), 1, 0.1, prefix="base")], GREEDY, words)


def test_nothing_to_write() -> None:
    engine = TorchEngine(build("llama"), Full())
    assert list(engine.generate([], TWO, GREEDY, words).values) == [[], []]
    assert list(engine.generate(PROMPT, [], GREEDY, words).values) == []
