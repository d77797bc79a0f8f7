"""Greedy texts by transformers' own generation."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.errors import DataError
from twinpass.model.causal import ends
from twinpass.task.tokens import ids_of


def greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_tokens: int,
    stop: Sequence[str],
    place: str,
) -> str:
    """The continuation of ``prompt``, up to the first ``stop`` string, the end-of-text token, or ``max_tokens``.

    Raises:
        DataError: the prompt has no tokens, or leaves no room in the model's window.
    """
    ids = ids_of(tokenizer, prompt)
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = max_tokens if window is None else min(max_tokens, window - len(ids))
    if not ids or room < 1:
        raise DataError(
            f"{place}: {len(ids)} tokens; expected at least 1, and fewer than the model's window of {window}"
        )
    tokens = torch.tensor([ids], device=model.device)
    stops = ends(model, tokenizer)

    def written(sequence: Any) -> str:
        return str(tokenizer.decode(sequence[len(ids) :], skip_special_tokens=True))

    def stopped(sequences: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor([cut(text, stop) != text for text in map(written, sequences)], device=sequences.device)

    model.train(False)
    generate: Any = model.generate
    with torch.no_grad():
        out = generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=room,
            do_sample=False,
            eos_token_id=list(stops) or None,
            pad_token_id=min(stops, default=0),
            stopping_criteria=[stopped] if stop else [],
        )
    return cut(written(out[0]), stop)


def cut(text: str, stop: Sequence[str]) -> str:
    """``text`` before the first of the ``stop`` strings in it."""
    places = [place for string in stop if (place := text.find(string)) >= 0]
    return text[: min(places)] if places else text
