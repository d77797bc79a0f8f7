"""Real SGLang writes what the embedded engine writes, greedily and sampled, under adapters as lanes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from real_sglang import SIGNS, TEXTS, Loaded, engines, require_same_texts

from twinpass.core import BASE, Prompt, Sampling, Term
from twinpass.engine.sglang.server import Server


@pytest.mark.parametrize("activated", [False, True])
def test_texts_equal_the_embedded_engines(
    loaded: Loaded, server: Server, rows: Callable[[], int], activated: bool
) -> None:
    """A sampled token is drawn there by the same random numbers, which lanes share, and samples of a prompt do not."""
    embedded, sglang = engines(loaded, server, activated=activated)
    tokenizer = loaded[1]
    asked = [tuple(tokenizer(text)["input_ids"]) for text in TEXTS]
    prompts = [Prompt(tokens, len(tokens) - 2, row, n) for row, tokens in enumerate(asked) for n in range(2)]
    lanes, greedy = [*SIGNS, BASE], Sampling(8, stop_tokens=(tokenizer.eos_token_id,))
    sampled = replace(greedy, temperature=0.8, top_p=0.9, top_k=40, seed=2**64 - 3)

    def decode(tokens: tuple[int, ...]) -> str:
        return str(tokenizer.decode(list(tokens)))

    for engine in (embedded, sglang):
        engine.update([Term(5, 2e-2)])
    texts = {}
    for sampling, own in ((greedy, prompts[::2]), (sampled, prompts)):
        rows()
        found = sglang.generate(own, lanes, sampling, decode)
        assert rows() * sglang.layers == found.work.computed
        require_same_texts(embedded, own, lanes, sampling, found, embedded.generate(own, lanes, sampling, decode))
        texts[sampling] = [[text.tokens for text in values] for values in found.values]
    assert len({str(own) for own in texts[greedy]}) > 1, "lanes must write otherwise, or nothing is tested"
    plus, _, base = texts[sampled]
    assert all(base[i] != base[i + 1] for i in range(0, len(base), 2)), "samples of a prompt are others"
    assert base[::2] != texts[greedy][2], "or nothing was sampled"
    assert sum(own[0] == other[0] for own, other in zip(plus, base, strict=True)) > len(base) / 2, "lanes share noise"
    alone = sglang.generate(prompts[3:4], [BASE], sampled, decode).values[0][0]
    assert alone.tokens == base[3], "whatever else is in the batch"
    whole = sglang.generate(prompts[:1], [BASE], greedy, decode).values[0][0]
    stop = decode(whole.tokens[2:3])
    stopped = sglang.generate(prompts[:1], [BASE], Sampling(8, stop=(stop,)), decode).values[0][0]
    assert stopped.stopped
    assert stopped.text == whole.text[: whole.text.index(stop)]
    sglang.reset()


def test_texts_end_where_they_are_asked_to_and_nowhere_else(loaded: Loaded, server: Server) -> None:
    """So hot a text is the random numbers' alone: its first token is the model's own end."""
    embedded, sglang = engines(loaded, server, activated=False)
    end = loaded[1].eos_token_id
    asked, sampled = [Prompt((504, 365, 28), 0, 0, 111741)], Sampling(4, temperature=1e6, seed=7)
    for engine in (embedded, sglang):
        for stop_tokens, length in (((), 4), ((end,), 1)):
            sampling = replace(sampled, stop_tokens=stop_tokens)
            (text,) = engine.generate(asked, [BASE], sampling, str).values[0]
            assert (text.tokens[0], len(text.tokens)) == (end, length)
