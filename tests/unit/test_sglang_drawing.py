"""What SGLang takes for marked requests is replaced by the token that twinpass draws; others keep theirs."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from twinpass.core import Prompt, Sampling
from twinpass.engine.embedded.scoring.choosing import choose
from twinpass.engine.sglang.inside import drawing

VOCABULARY = 50
PROMPTS = [Prompt((), 0, row, sample) for row in (0, 3) for sample in range(2)]
SAMPLINGS = [Sampling(1, 0.7, 0.9, 20, seed=2**64 - 5), Sampling(1, 1.0, seed=4)]


class Request(SimpleNamespace):
    """One of SGLang's, which can be referred to weakly."""


def request(rid: str, read: int, marks: dict[str, Any] | None) -> Request:
    return Request(rid=rid, sampling_params=SimpleNamespace(custom_params=marks), origin_input_ids=list(range(read)))


def batch_of(requests: Sequence[Request], lengths: Sequence[int]) -> SimpleNamespace:
    for one in requests:
        drawing._take_mark(None, one)
    return SimpleNamespace(rids=[one.rid for one in requests], seq_lens=torch.tensor(lengths))


def greedy(runner: None, output: SimpleNamespace, batch: SimpleNamespace) -> torch.Tensor:
    """As SGLang does: logits are not there any more when it is done."""
    found = torch.log_softmax(output.next_token_logits, -1).max(-1)
    output.next_token_logits.zero_()
    output.next_token_logprobs = found.values.clone()
    return found.indices.to(torch.int32)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_marked_requests_get_the_token_that_is_drawn(sampling: Sampling) -> None:
    logits = torch.from_numpy(np.random.default_rng(1).standard_normal((6, VOCABULARY), np.float32))
    marked = [request(str(i), 5, {drawing.MARK: drawing.draw_of(one, sampling)}) for i, one in enumerate(PROMPTS)]
    others = [request("another", 5, None), request("activated", 5, {"twinpass_active_from": 3})]
    requests = [marked[0], others[0], *marked[1:], others[1]]
    output, done = SimpleNamespace(next_token_logits=logits.clone()), [0, 2, 1, 0, 4, 2]
    tokens = drawing._draw(greedy, None, output, batch_of(requests, [5 + n for n in done]))
    rows = [0, 2, 3, 4]
    expected, logprobs = choose(logits[rows], PROMPTS, [done[row] for row in rows], sampling)
    assert tokens.dtype == torch.int32
    assert tokens[rows].tolist() == expected.tolist()
    assert torch.equal(output.next_token_logprobs[rows], logprobs)
    likeliest = torch.log_softmax(logits, -1).max(-1)
    assert tokens[[1, 5]].tolist() == likeliest.indices[[1, 5]].tolist()
    assert torch.equal(output.next_token_logprobs[[1, 5]], likeliest.values[[1, 5]])
    assert tokens[rows].tolist() != likeliest.indices[rows].tolist(), "or nothing was drawn"


def test_requests_that_are_sampled_otherwise_share_a_batch() -> None:
    logits = torch.from_numpy(np.random.default_rng(2).standard_normal((4, VOCABULARY), np.float32))
    told = [(drawing.draw_of(one, SAMPLINGS[i % 2]), i) for i, one in enumerate(PROMPTS)]
    found = {
        row: int(token)
        for rows, chosen, _ in drawing.chosen_of(logits, told)
        for row, token in zip(rows, chosen, strict=True)
    }
    alone = [choose(logits[i : i + 1], [one], [i], SAMPLINGS[i % 2])[0].item() for i, one in enumerate(PROMPTS)]
    assert [found[i] for i in range(4)] == alone


def test_a_request_that_ended_is_forgotten() -> None:
    one = request("ends", 3, {drawing.MARK: drawing.draw_of(PROMPTS[0], SAMPLINGS[0])})
    drawing._take_mark(None, one)
    assert "ends" in drawing._marked
    del one
    assert "ends" not in drawing._marked
