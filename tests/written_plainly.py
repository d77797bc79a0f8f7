"""What engines are to write: plain loops over plain models, token after token."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from architectures import FALLBACK, TARGETS, VOCABULARY
from architectures import in_lane as moved
from reusing import PROMPTS, acting, in_lane, naive_logprobs, trainables
from transformers import PreTrainedModel

from twinpass.core import Continuations, Lane, Prompt, Sampling, Tokens
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.trainable import Activated, Trainable
from twinpass.perturb.race import reference

PROMPT = tuple(Prompt(request.prompt, request.active_from, row) for row, request in enumerate(PROMPTS))
GREEDY = Sampling(max_tokens=6)
SAMPLED = Sampling(max_tokens=6, temperature=1.5, seed=2**63 + 5)


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
