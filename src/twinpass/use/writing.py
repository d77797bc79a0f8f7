"""Texts by the engine: prompts that begin alike are read once, and continuations grow together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from twinpass.core import BASE, Prompt, Sampling, Tokens
from twinpass.engine.base import require_sense
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import DataError
from twinpass.model.causal import ends
from twinpass.task.fields import as_text
from twinpass.task.tokens import ids_of

TOGETHER = 16
"""Prompts that are continued at a time."""


@dataclass(frozen=True)
class Writer:
    """Continues texts under trained weights.

    Args:
        engine: holds them.
        activated: they are an adapter that acts from the last place on where the engine's invocation tokens stand.
            Prompts that do not hold them are continued by the model alone.
    """

    engine: TorchEngine
    tokenizer: PreTrainedTokenizerBase
    activated: bool

    def write(self, prompts: Sequence[str], sampling: Sampling, first: int = 0) -> Iterator[str]:
        """Continuations in the order of the prompts, which are counted from ``first``: random numbers go by that count.

        A text ends before the first of ``sampling.stop`` in it, at the end-of-text token, or after ``max_tokens``, or where the model's
        window is full: the last token needs no place in it.

        Raises:
            DataError: a prompt is no text, has no tokens, or more than the model's window.
        """
        read = [ids_of(self.tokenizer, _text(prompt, first + i)) for i, prompt in enumerate(prompts)]
        return self.go_on([(ids, self.starts(ids)) for ids in read], sampling, first)

    def go_on(self, prompts: Sequence[tuple[Tokens, int | None]], sampling: Sampling, first: int = 0) -> Iterator[str]:
        """The same for tokens, each with the place that an activated adapter acts from; None: it does not act."""
        sampling = replace(sampling, stop_tokens=(*sampling.stop_tokens, *ends(self.engine.model, self.tokenizer)))
        rooms = [self.room(ids, sampling, f"prompt {first + i + 1}") for i, (ids, _) in enumerate(prompts)]
        for start in range(0, len(prompts), TOGETHER):
            part = range(start, min(start + TOGETHER, len(prompts)))
            written: dict[int, str] = {}
            groups: dict[tuple[int, bool], list[int]] = {}
            for i in part:
                groups.setdefault((rooms[i], prompts[i][1] is None), []).append(i)
            for (room, plain), members in groups.items():
                asked = [Prompt(prompts[i][0], prompts[i][1] or 0, first + i) for i in members]
                own = replace(sampling, max_tokens=room)
                found = (
                    self.engine.generate_reference(asked, own, self._decode)
                    if plain
                    else self.engine.generate(asked, [BASE], own, self._decode)
                )
                written |= {i: text.text for i, text in zip(members, found.values[0], strict=True)}
            yield from (written[i] for i in part)

    def room(self, ids: Tokens, sampling: Sampling, place: str) -> int:
        """Tokens that may be written after a prompt; ``place`` names it in messages.

        Raises:
            DataError: it has no tokens, or more than the model's window.
            ModelError: no number of tokens is asked for.
        """
        require_sense(sampling)
        window = self.engine.window
        room = sampling.max_tokens if window is None else min(sampling.max_tokens, window + 1 - len(ids))
        if not ids or room < 1:
            raise DataError(
                f"{place}: {len(ids)} tokens; expected at least 1, and no more than the model's window of {window}"
            )
        return room

    def starts(self, ids: Tokens) -> int | None:
        """Where an activated adapter begins to act in a prompt; None: nowhere."""
        if not self.activated:
            return 0
        invocation = self.engine.invocation
        places = range(len(ids) - len(invocation), -1, -1)
        return next((i for i in places if ids[i : i + len(invocation)] == invocation), None)

    def _decode(self, tokens: Tokens) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def _text(prompt: object, number: int) -> str:
    """A prompt that is a text.

    Raises:
        DataError: it is none, such as a row or messages, or half a character.
    """
    if not isinstance(prompt, str):
        raise DataError(
            f"prompt {number + 1}: expected a text, got a {type(prompt).__name__}; the prompts of rows and conversations are made by write and predict"
        )
    try:
        return as_text(prompt)
    except ValueError as error:
        raise DataError(f"prompt {number + 1} {error}") from error
