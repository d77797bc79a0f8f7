"""Options that another one always outdoes, as they begin with it."""

from collections.abc import Sequence
from functools import lru_cache

from twinpass.core import Tokens
from twinpass.task.example import Example


def outdone(examples: Sequence[Example]) -> list[str]:
    """A note on options whose tokens begin with all of another's, for the log: by the sum of log-probabilities they can never be the likelier."""
    found = [example for example in examples if _begins_with_another(example.options)]
    if not found:
        return []
    return [
        f"in {len(found):,} of {len(examples):,} rows ({found[0].place} is the first) an option begins with all of another, and as the sum of its tokens' "
        "log-probabilities is compared, it can never be chosen; let all options end alike, such as with a line break, or "
        'set [objective] kind = "choice" and score = "mean" (in Python objective=twinpass.Choice(score="mean"))'
    ]


@lru_cache(maxsize=64)
def _begins_with_another(options: tuple[Tokens, ...]) -> bool:
    return any(a != b and a[: len(b)] == b for a in options for b in options)
