"""Every architecture writes, under every kind of training, what plain loops over plain models write."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import FALLBACK, FEW, LANES, build, engine_of
from architectures import in_lane as moved
from reusing import NAMES, PROMPTS, TERMS, TWO, rows_by_layer
from tiers import some_fast
from written_plainly import GREEDY, PROMPT, SAMPLED, assert_plain, kinds, words

from twinpass.core import BASE, Continuations, Lane, Probe, Prompt, Sampling, Tokens
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.scoring import paged
from twinpass.errors import CacheFullError, ModelError
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Activated, Full, Layers, Lora, Trainable
from twinpass.reuse.auto import Auto
from twinpass.reuse.exact import Exact
from twinpass.reuse.invariant import Invariant

GRID = [Lane(Probe(7), 1, 2**-4), Lane(Probe(7), -1, 2**-4), BASE]
"""Lanes that an exact lattice has, too."""


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


@pytest.mark.parametrize("kind", ["lora", "activated", "upper"])
@pytest.mark.parametrize("name", some_fast(NAMES, FEW))
def test_without_its_adapters_a_model_writes_what_it_did(name: str, kind: str) -> None:
    engine = engine_of(name, build(name), kinds(name)[kind])
    engine.update(TERMS)
    trained = engine.generate(PROMPT, [BASE], GREEDY, words)
    before = engine_of(name, build(name)).generate(PROMPT, [BASE], GREEDY, words)
    for _ in range(2):
        found = engine.generate_reference(PROMPT, GREEDY, words)
        assert tokens_of(found) == tokens_of(before)
        assert off(found, before) < 1e-4 < off(trained, before)
        assert off(engine.generate(PROMPT, [BASE], GREEDY, words), trained) < 1e-4, "neither reads what the other left"


def off(texts: Continuations, others: Continuations) -> float:
    """By how much first tokens' log-probabilities differ."""
    pairs = zip(texts.values[0], others.values[0], strict=True)
    return max(abs(float(one.logprobs[0] - other.logprobs[0])) for one, other in pairs)


def test_a_model_whose_own_weights_are_trained_is_nowhere_as_it_was() -> None:
    with pytest.raises(ModelError, match="theta_0 is not at hand"):
        engine_of("llama", build("llama")).generate_reference(PROMPT, GREEDY, words)


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
    keys = Invariant(keep="keys")
    lanes = {"full": (Full(), Auto()), "layers": (Layers(1, 2), Auto()), "keys": (Layers(1, 2), keys)}
    works = {}
    for kind, (trainable, reuse) in {**lanes, "activated": (Activated(2, 4.0), Auto())}.items():
        engine = TorchEngine(build("llama"), trainable, reuse=reuse)
        works[kind] = [engine.generate(prompts, TWO, sampling, words).work for _ in range(2)]
        assert [work.demand for work in works[kind]] == [demand, demand]
    assert [work.computed for work in works["full"]] == [each * (6 + 2 * 2)] * 2
    assert [work.computed for work in works["activated"]] == [each * (2 + 2 * 2) + 2 * 4, each * (2 + 2 * 2)]
    assert works["activated"][1].reused == {"activated": 2 * 4 * 2, "shared_prefix": demand - each * 6 - 2 * 4 * 2}
    assert [work.computed for work in works["layers"]] == [each * (1 + 4) + 3 * 5] * 2  # prompts are read again
    assert [work.computed for work in works["keys"]] == [each * (1 + 4) + 3 * 5, each * (1 + 4) + 2 * 5]


def test_the_base_lane_goes_on_from_what_it_wrote() -> None:
    model = build("llama")
    engine = TorchEngine(model, Full())
    first = engine.generate([Prompt((1, 2, 3, 4))], [BASE], GREEDY, words).values[0][0].tokens
    longer = Prompt((1, 2, 3, 4, *first, 9))
    assert engine.generate([longer], [BASE], Sampling(1), words).work.computed == 2 * 2
    engine.update(TERMS)
    assert engine.generate([longer], [BASE], Sampling(1), words).work.computed == 2 * 11
    assert_plain(engine, model, [longer], [BASE], Sampling(3))


def test_what_lanes_wrote_is_freed_and_what_the_base_lane_wrote_goes_with_its_weights() -> None:
    engine = TorchEngine(build("llama"), Full())
    held = [engine.generate(samples(1), [BASE], SAMPLED, words).cache.held]
    held += [engine.generate(samples(1), lanes, SAMPLED, words).cache.held for lanes in (TWO, LANES[:1])]
    assert held[0] > 0
    assert held == held[:1] * 3
    engine.update(TERMS)
    assert engine.generate([Prompt((1, 2))], [BASE], Sampling(1), words).cache.held < held[0] / 4


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
