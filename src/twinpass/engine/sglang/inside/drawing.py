"""Tokens that SGLang samples by twinpass's random numbers: a hook around its sampler.

A token is to be a pure function of (seed, row, sample, position, logits), the same that the embedded engine draws, whatever else is in the
batch and however often a run is resumed. SGLang's own random numbers know neither rows nor lanes. Requests that carry :data:`MARK` are
greedy to SGLang; what it takes for them is replaced by the token that is drawn from the same logits. Others are not touched.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

from twinpass.core import Prompt, Sampling

MARK = "twinpass_draw"
"""Key in a request's ``custom_params``: what :func:`draw_of` gives."""

HOOKS = ("sglang.srt.managers.schedule_batch.Req.__init__", "sglang.srt.model_executor.model_runner.ModelRunner.sample")

_marked: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""Requests with the mark that this process holds, by their id."""


def draw_of(prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
    """What SGLang is told of how a prompt is continued."""
    return {
        "row": prompt.row,
        "sample": prompt.sample,
        "seed": str(sampling.seed),  # 64 bits, which not all that read JSON have
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
    }


def hooks() -> list[tuple[str, Callable[..., Any], str]]:
    """What is hooked, by what, and how."""
    return [(HOOKS[0], _take_mark, "AFTER"), (HOOKS[1], _draw, "AROUND")]


def _take_mark(result: None, request: Any, *args: Any, **kwargs: Any) -> None:
    if (request.sampling_params.custom_params or {}).get(MARK) is not None:
        _marked[request.rid] = request


def _draw(original: Callable[..., Any], runner: Any, logits_output: Any, batch: Any) -> Any:
    """Let SGLang take tokens, and replace those of marked requests."""
    requests = {} if not _marked else {i: _marked[rid] for i, rid in enumerate(batch.rids or ()) if rid in _marked}
    if not requests:
        return original(runner, logits_output, batch)
    logits = logits_output.next_token_logits[list(requests)]  # a copy: SGLang may use the memory up
    tokens = original(runner, logits_output, batch)
    lengths = batch.seq_lens.tolist()
    told = [
        (request.sampling_params.custom_params[MARK], lengths[i] - len(request.origin_input_ids))
        for i, request in requests.items()
    ]
    for rows, chosen, logprobs in chosen_of(logits, told):
        at = [list(requests)[row] for row in rows]
        tokens[at] = chosen.to(tokens.dtype)
        if logits_output.next_token_logprobs is not None:
            logits_output.next_token_logprobs[at] = logprobs.to(logits_output.next_token_logprobs.dtype)
    return tokens


def chosen_of(logits: Any, told: Sequence[tuple[Mapping[str, Any], int]]) -> list[tuple[list[int], Any, Any]]:
    """Tokens and their log-probabilities for rows of ``logits``, some rows at a time: those that are sampled alike.

    Args:
        told: of each row what :func:`draw_of` gave, and how many tokens of the text are there (below 0 while the prompt is read in parts).
    """
    from twinpass.engine.embedded.scoring.choosing import choose  # in SGLang's processes only when it is needed

    alike: dict[Sampling, list[int]] = {}
    for row, (draw, _) in enumerate(told):
        how = Sampling(1, draw["temperature"], draw["top_p"], draw["top_k"], seed=int(draw["seed"]))
        alike.setdefault(how, []).append(row)
    found = []
    for sampling, rows in alike.items():
        prompts = [Prompt((), 0, told[row][0]["row"], told[row][0]["sample"]) for row in rows]
        found.append((rows, *choose(logits[rows], prompts, [max(0, told[row][1]) for row in rows], sampling)))
    return found
