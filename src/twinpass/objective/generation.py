"""The section [generation]: how texts are written."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from twinpass.core import Sampling, Tokens
from twinpass.settings import STRICT, Index, Share, Strings

MaxTokens = Annotated[int, Field(ge=1, le=2**20)]
Temperature = Annotated[float, Field(ge=0, le=1e3)]
COLDEST = 1e-3
"""The least temperature above 0: below it, logits grow out of float32."""


@dataclass(frozen=True, config=STRICT)
class Generation:
    """How texts are written: up to ``max_tokens`` tokens, the end-of-text token, or one of the ``stop`` strings, which does not belong to the text.

    ``temperature`` 0 is greedy, the likeliest token each time. Above 0, tokens are sampled: of the ``top_k`` likeliest (0: of all), and of
    those the fewest whose probabilities add up to ``top_p``.
    """

    max_tokens: MaxTokens = 64
    temperature: Temperature = 1.0
    top_p: Share = 1.0
    top_k: Index = 0
    stop: Strings = ()

    def __post_init__(self) -> None:
        if 0 < self.temperature < COLDEST:
            raise ValueError(f"temperature: 0 takes the likeliest token; to sample, give {COLDEST:g} or more")
        if not self.temperature and (self.top_p, self.top_k) != (Generation.top_p, Generation.top_k):
            raise ValueError(
                "temperature: 0 takes the likeliest token, so that top_p and top_k have no effect; leave them out, or raise it"
            )
        if "" in self.stop:
            raise ValueError("stop: a string is empty, so that every text would end before it begins; leave it out")

    def sampling(self, ends: Tokens) -> Sampling:
        """The same for an engine; ``ends`` are tokens that end a text."""
        return Sampling(self.max_tokens, self.temperature, self.top_p, self.top_k, self.stop, ends)
