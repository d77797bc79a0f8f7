"""The next token is the likeliest, or as likely as the model says, among those that truncation leaves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import VOCABULARY, build
from reusing import naive_logprobs
from written_plainly import SAMPLED, best, words

from twinpass.core import BASE, Prompt, Sampling
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.scoring import choosing
from twinpass.engine.embedded.scoring.choosing import truncated
from twinpass.model.trainable import Full


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
