"""Real SGLang writes texts under weights of the model itself, moved from lane to lane: the embedded engine's, and never from old keys and values."""

from collections.abc import Callable
from typing import cast

import pytest
from moved_lanes import embedded_of, engine_of, lanes_of
from real_sglang import LAYERS, SHOTS, TEXTS, Loaded, require_same_texts

from twinpass.core import BASE, Prompt, Sampling, Term
from twinpass.engine.sglang.engine import SglangEngine
from twinpass.engine.sglang.server import Server
from twinpass.engine.sglang.weights import WeightVariants
from twinpass.model.trainable import Full, Layers, Trainable
from twinpass.perturb.noise import Distribution

FAR = 2.0**-6
"""So that lanes write otherwise."""


def digest(engine: SglangEngine) -> str:
    """Of the base lane's weights, as SGLang computes with them."""
    variants = cast(WeightVariants, engine._variants)
    variants._move_to(BASE)
    return str(variants._command("digest")["digest"])


@pytest.mark.parametrize(
    ("trainable", "noise", "inplace", "block", "temperature"),
    [
        (Full(), "binomial", True, None, 0.0),
        (Layers(first=LAYERS - 4, last=LAYERS, block=2), "gaussian", False, 1, 1.0),
    ],
    ids=["full-inplace-greedy", "blocks-copied-sampled"],
)
def test_each_step_writes_the_embedded_engines_texts_and_leaves_the_weights(
    loaded: Loaded,
    server: Server,
    rows: Callable[[], int],
    trainable: Trainable,
    noise: Distribution,
    inplace: bool,
    block: int | None,
    temperature: float,
) -> None:
    """Prompts are the same under every lane and step, so that keys and values of another version would be found and show."""
    model, tokenizer = loaded
    prompts = [Prompt(tuple(tokenizer(f"{SHOTS}Review: {text}")["input_ids"]), row=i) for i, text in enumerate(TEXTS)]
    sampling = Sampling(8, temperature, stop_tokens=(tokenizer.eos_token_id,), seed=11)

    def decode(tokens: tuple[int, ...]) -> str:
        return str(tokenizer.decode(list(tokens)))

    embedded = embedded_of(model, trainable, noise=noise, inplace=inplace)
    with engine_of(model, server, trainable, noise=noise, inplace=inplace) as sglang:
        start, seen = digest(sglang), set[str]()
        for step in range(2):
            lanes, before = [BASE, *lanes_of(7 + step, block, FAR)], digest(sglang)
            rows()
            found = sglang.generate(prompts, lanes, sampling, decode)
            assert rows() * sglang.layers == found.work.computed
            assert found.work.hit_rate > 0.2, "texts of one lane share their prompts' beginning"
            expected = embedded.generate(prompts, lanes, sampling, decode)
            require_same_texts(embedded, prompts, lanes, sampling, found, expected)
            assert digest(sglang) == before, "the step's lanes leave no trace"
            written = {tuple(each.text for each in own) for own in found.values}
            assert len(written) > 1, "lanes must write otherwise, or nothing is tested"
            seen.add(before)
            for engine in (embedded, sglang):
                engine.update([Term(5 + step, 2.0**-9, block)])
        assert len({*seen, digest(sglang)}) == 3, "updates move the weights"
        sglang.reset()
        assert digest(sglang) == start
