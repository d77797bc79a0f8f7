"""Activated adapters that SGLang serves: they act from their invocation tokens on, as in PEFT, and find the base model's keys and values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from real_sglang import LAYERS, OPTIONS, SHOTS, TEXTS, TOLERANCE, Loaded

from twinpass.core import BASE, Request, Term, Tokens
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.sglang.calls import Call, reply_of
from twinpass.engine.sglang.inside.activated import _admit
from twinpass.engine.sglang.server import Server, Variant
from twinpass.model.trainable import Activated

SUFFIX = "\nSentiment:"


@contextmanager
def serving(loaded: Loaded, server: Server, names: Sequence[str]) -> Iterator[TorchEngine]:
    """Adapters by these names, all alike and on the upper layers only, and an engine that has it."""
    model, tokenizer = loaded
    trainable, invocation = Activated(first=LAYERS // 2), tuple(tokenizer(SUFFIX)["input_ids"])
    trained, moved = trainable.attach(model, 3, invocation), [Term(5, 5e-2)]
    embedded = TorchEngine(model, trainable, invocation=invocation, seed=3)
    embedded.update(moved)
    trained.parameters.add(moved, "binomial")
    adapter = trained.adapter
    assert adapter is not None
    config = adapter.peft_config("")
    assert tuple(config["alora_invocation_tokens"]) == invocation
    tensors = {f"base_model.model.{name}": tensor for name, tensor in adapter.peft_tensors(adapter.tensors).items()}
    for name in names:
        server.load(name, tensors, config)
    yield embedded
    for name in names:
        server.unload(name)


def ids(loaded: Loaded, text: str) -> Tokens:
    return tuple(loaded[1](text)["input_ids"])


def asked(
    server: Server, prompts: Sequence[Tokens], options: Sequence[int], adapters: Sequence[str | None]
) -> tuple[np.ndarray, list[int]]:
    """Log-probabilities [prompts, options] after each prompt under its adapter, and how many tokens of it were found."""
    calls = [Call(prompt, len(prompt) - 1, None, list(options)) for prompt in prompts]
    metas = server.score(calls, [Variant(name) for name in adapters])
    replies = [reply_of(call, meta) for call, meta in zip(calls, metas, strict=True)]
    return np.array([[reply.last[token] for token in options] for reply in replies]), [each.cached for each in replies]


def scored(
    embedded: TorchEngine, prompts: Sequence[Tokens], starts: Sequence[int], options: Sequence[int]
) -> np.ndarray:
    requests = [
        Request(prompt, (token,), start) for prompt, start in zip(prompts, starts, strict=True) for token in options
    ]
    (found,) = embedded.score(requests, [BASE]).values
    return np.array([score[0] for score in found]).reshape(len(prompts), len(options))


def test_adapters_act_where_their_invocation_stands_last(loaded: Loaded, server: Server) -> None:
    """Demonstrations hold it, too. What comes before it is kept for the base model and for every adapter, and nothing after it is."""
    options = [ids(loaded, option)[0] for option in OPTIONS[:2]]
    prompts = [ids(loaded, f"Served.\n{SHOTS}Review: {text}{SUFFIX}") for text in TEXTS]
    without = [ids(loaded, f"Served plainly: {text}") for text in TEXTS]
    starts = [len(prompt) - len(ids(loaded, SUFFIX)) for prompt in prompts]
    with serving(loaded, server, ["mine", "other"]) as embedded:
        expected = scored(embedded, prompts, starts, options)
        for name in ("mine", "other"):
            found, cached = asked(server, prompts, options, [name] * len(prompts))
            assert np.abs(found - expected).max() < TOLERANCE
            assert cached == ([0] * len(prompts) if name == "mine" else starts)
        base, cached = asked(server, prompts, options, [None] * len(prompts))
        embedded.reset()
        assert np.abs(base - scored(embedded, prompts, starts, options)).max() < TOLERANCE
        assert cached == starts, "what an adapter read before it acted is the base model's"
        assert np.abs(base - expected).max() > 0.1, "the adapter makes a difference"
        plain, _ = asked(server, without, options, ["mine"] * len(without))
        assert np.abs(plain - scored(embedded, without, [len(each) - 1 for each in without], options)).max() < TOLERANCE
        _, cached = asked(server, without, options, [None] * len(without))
        assert cached == [len(each) - 1 for each in without], "they are the base model's, keys and values, too"


def test_more_adapters_than_a_batch_has_room_for(loaded: Loaded, server: Server) -> None:
    """Rows before the activation point need a slot, so that one adapter less goes with them."""
    options = [ids(loaded, option)[0] for option in OPTIONS[:2]]
    names = [f"served-{i}" for i in range(server.slots + 1)]
    prompts = [ids(loaded, f"Number {i}.\nReview: {TEXTS[i % 3]}{SUFFIX}") for i in range(len(names))]
    starts = [len(prompt) - len(ids(loaded, SUFFIX)) for prompt in prompts]
    with serving(loaded, server, names) as embedded:
        found, cached = asked(server, prompts, options, names)
        assert np.abs(found - scored(embedded, prompts, starts, options)).max() < TOLERANCE
        room = server.slots - 1
        assert cached == [0] * room + [len(ids(loaded, "Number "))] * (len(names) - room), (
            "the second batch began alike"
        )


def test_texts_go_on_under_the_adapter(loaded: Loaded, server: Server) -> None:
    """Tokens that are written after the invocation are the adapter's, those of other requests in the batch are not."""
    prompts = [ids(loaded, f"Texts.\n{SHOTS}Review: {text}{SUFFIX}") for text in TEXTS]
    with serving(loaded, server, ["mine"]) as embedded:
        metas = server._ask(
            [Variant("mine"), Variant(), Variant("mine")],
            input_ids=[list(prompt) for prompt in prompts],
            sampling_params=[{"max_new_tokens": 6, "temperature": 0, "ignore_eos": True}] * 3,
            return_logprob=[True] * 3,
        )
        for i, (prompt, meta) in enumerate(zip(prompts, metas, strict=True)):
            embedded.reset()
            embedded.update([Term(5, 5e-2)] if i != 1 else [])
            tokens = tuple(token for _, token, *_ in meta["output_token_logprobs"])
            values = [value for value, *_ in meta["output_token_logprobs"]]
            start = len(prompt) - len(ids(loaded, SUFFIX))
            ((score,),) = embedded.score([Request(prompt, tokens, start)], [BASE]).values
            assert len(tokens) == 6
            assert np.abs(np.array(values) - score).max() < TOLERANCE, i


@pytest.mark.parametrize(
    ("backend", "slots", "message"),
    [("TorchNativeLoRABackend", 2, ""), ("TorchNativeLoRABackend", 1, "max_loras_per_batch"), ("object", 2, "object")],
)
def test_an_adapter_that_would_act_on_every_token_is_not_loaded(backend: str, slots: int, message: str) -> None:
    from sglang.srt.lora.backend import torch_backend

    kind = getattr(torch_backend, backend, object)
    manager = SimpleNamespace(lora_backend=object.__new__(kind), max_loras_per_batch=slots)
    config = SimpleNamespace(hf_config={"alora_invocation_tokens": [1, 2]})
    expected = pytest.raises(RuntimeError, match=message) if message else nullcontext()
    with expected:
        _admit(None, manager, config, SimpleNamespace(lora_name="mine"))
    _admit(None, manager, SimpleNamespace(hf_config={}), SimpleNamespace(lora_name="plain"))
