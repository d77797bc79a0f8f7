"""What a model can read of an example: so many tokens, and only those it knows."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from twinpass.errors import DataError
from twinpass.task.example import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Truncate = Literal["error", "left", "right"]


@dataclass(frozen=True)
class Limits:
    """``window`` tokens of prompt and longest answer, of ids below ``vocabulary`` (None: no limit known).

    ``truncate`` says what becomes of a prompt that is too long: "left" takes tokens from its beginning, "right" from the end of the
    text before the suffix. A beginning-of-text token, the suffix and the answers stay whole. A prompt without answers needs ``room`` for
    so many tokens.
    """

    window: int | None = None
    vocabulary: int | None = None
    truncate: Truncate = "error"
    room: int = 0

    def applied(self, example: Example, tokenizer: "PreTrainedTokenizerBase") -> Example:
        """The example, shortened where it is too long and may be.

        Raises:
            DataError: it does not fit.
        """
        self._require_known(example, tokenizer)
        length = len(example.prompt) + max((len(answer) for answer in example.options), default=self.room)
        if self.window is None or length <= self.window:
            return example
        if self.truncate == "error":
            if not example.options:
                raise DataError(
                    f"{example.place}: {len(example.prompt)} tokens that may be continued by {self.room + 1}, but the model's window holds "
                    f"{self.window}; lower generation.max_tokens, shorten or drop the row"
                )
            raise DataError(
                f'{example.place}: {length} tokens, but the model\'s window holds {self.window}; shorten it (truncate = "left" or "right") or drop the row'
            )
        return self._shortened(example, length - self.window, tokenizer.bos_token_id)

    def _shortened(self, example: Example, over: int, beginning: object) -> Example:
        first = int(example.prompt[0] == beginning)
        if over >= example.suffix_start - first:
            raise DataError(
                f"{example.place}: {over} tokens too many for a window of {self.window}, and only "
                f"{example.suffix_start - first} before the suffix that could be left out; shorten or drop the row"
            )
        start = first if self.truncate == "left" else example.suffix_start - over
        prompt = example.prompt[:start] + example.prompt[start + over :]
        return replace(example, prompt=prompt, suffix_start=example.suffix_start - over)

    def _require_known(self, example: Example, tokenizer: "PreTrainedTokenizerBase") -> None:
        if self.vocabulary is None:
            return
        for token in (*example.prompt, *(token for answer in example.options for token in answer)):
            if token >= self.vocabulary:
                text = tokenizer.convert_ids_to_tokens(token)
                raise DataError(
                    f"{example.place}: token {token} ({text!r:.40}) is outside of the model's vocabulary, 0 to {self.vocabulary - 1}: "
                    "the tokenizer has tokens that the model has no embeddings for; give the model these tokens, or drop the row"
                )


UNLIMITED = Limits()
