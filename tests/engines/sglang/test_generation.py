"""Real SGLang writes what the embedded engine writes, greedily, under adapters as lanes."""

from collections.abc import Callable

import pytest
from real_sglang import SIGNS, TEXTS, TOLERANCE, Loaded, engines

from twinpass.core import BASE, Prompt, Request, Sampling, Term
from twinpass.engine.sglang.server import Server
from twinpass.errors import ModelError


@pytest.mark.parametrize("activated", [False, True])
def test_greedy_texts_equal_the_embedded_engines(
    loaded: Loaded, server: Server, rows: Callable[[], int], activated: bool
) -> None:
    """Up to where the two best tokens are nearer to each other than scores are to the embedded engine's."""
    embedded, sglang = engines(loaded, server, activated=activated)
    tokenizer = loaded[1]
    asked = [tuple(tokenizer(text)["input_ids"]) for text in TEXTS]
    prompts = [Prompt(tokens, len(tokens) - 2) for tokens in asked]
    lanes, sampling = [*SIGNS, BASE], Sampling(8, stop_tokens=(tokenizer.eos_token_id,))

    def decode(tokens: tuple[int, ...]) -> str:
        return str(tokenizer.decode(list(tokens)))

    for engine in (embedded, sglang):
        engine.update([Term(5, 2e-2)])
    rows()
    found = sglang.generate(prompts, lanes, sampling, decode)
    assert rows() * sglang.layers == found.work.computed
    expected = embedded.generate(prompts, lanes, sampling, decode)
    same = 0
    for lane, own, others in zip(lanes, found.values, expected.values, strict=True):
        for prompt, one, other in zip(prompts, own, others, strict=True):
            pairs = list(zip(one.tokens, other.tokens, strict=False))
            until = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
            assert max(map(abs, one.logprobs[:until] - other.logprobs[:until]), default=0.0) < TOLERANCE
            same += until == len(pairs)
            if until < len(pairs):
                context = prompt.tokens + other.tokens[:until]
                ties = [Request(context, (pair,), prompt.active_from) for pair in pairs[until]]
                a, b = embedded.score(ties, [lane]).values[0]
                assert abs(a[0] - b[0]) < TOLERANCE
    assert same > len(prompts) * len(lanes) / 2
    tokens = [[text.tokens for text in own] for own in found.values]
    assert tokens[0] != tokens[1] or tokens[0] != tokens[2], "lanes must write otherwise, or nothing is tested"
    whole = found.values[2][0]
    stop = decode(whole.tokens[2:3])
    stopped = sglang.generate(prompts[:1], [BASE], Sampling(8, stop=(stop,)), decode).values[0][0]
    assert stopped.stopped
    assert stopped.text == whole.text[: whole.text.index(stop)]
    with pytest.raises(ModelError, match="random numbers of its own"):
        sglang.generate(prompts, lanes, Sampling(8, temperature=1.0), decode)
    sglang.reset()
