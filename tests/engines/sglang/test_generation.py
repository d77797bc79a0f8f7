"""Real SGLang writes what the embedded engine writes, greedily, under adapters as lanes."""

from collections.abc import Callable

import pytest
from real_sglang import SIGNS, TEXTS, Loaded, engines, require_same_texts

from twinpass.core import BASE, Prompt, Sampling, Term
from twinpass.engine.sglang.server import Server
from twinpass.errors import ModelError


@pytest.mark.parametrize("activated", [False, True])
def test_greedy_texts_equal_the_embedded_engines(
    loaded: Loaded, server: Server, rows: Callable[[], int], activated: bool
) -> None:
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
    require_same_texts(embedded, prompts, lanes, found, expected)
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
