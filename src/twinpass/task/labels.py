"""Which option a label means."""

import math
import re
from collections.abc import Sequence
from fractions import Fraction

from twinpass.task.fields import plain
from twinpass.task.rows import Category

MEANINGS = ({"false", "no"}, {"true", "yes"})


def option_of(value: object, names: Sequence[str], options: Sequence[str]) -> int | None:
    """The index of the option that a row's label means; None: of none.

    A text is an entry of ``names``, or an option. A number is an entry of ``names`` or an option too, compared by value, as soon as
    any of them is written as a number; otherwise it is an option's index. True and false are the entries that mean so
    ("true" and "false", "yes" and "no"), otherwise 1 and 0.
    """
    value = plain(value)
    named = value.text if isinstance(value, Category) else value
    stripped = [option.strip() for option in options]
    if isinstance(named, str):
        for known, text in (
            (names, named),
            (options, named),
            (stripped, named),
            (names, named.strip()),
            (stripped, named.strip()),
        ):
            if text in known:
                return known.index(text)
    if (truth := _truth(value)) is not None:
        for known in (names,) if names else (stripped,):
            if (found := _meaning(truth, known)) is not None:
                return found
        value = truth if len(options) == len(MEANINGS) else None
    number = _number(value)
    if number is None:
        return None
    for known in (names, stripped):
        numbers = [_number(name) for name in known]
        if any(each is not None for each in numbers):
            return numbers.index(number) if number in numbers else None
    return int(number) if number in range(len(options)) else None


def takes_indices(names: Sequence[str], options: Sequence[str]) -> bool:
    """Whether a number is an option's index, and not one of the names."""
    return all(_number(name.strip()) is None for name in (*names, *options))


def _truth(value: object) -> int | None:
    if isinstance(value, bool):
        return int(value)
    text = value.strip().lower() if isinstance(value, str) else ""
    return {"false": 0, "true": 1}.get(text)


def _meaning(truth: int, known: Sequence[str]) -> int | None:
    places = [[i for i, name in enumerate(known) if name.lower() in meaning] for meaning in MEANINGS]
    return places[truth][0] if all(len(found) == 1 for found in places) else None


def _number(value: object) -> Fraction | None:
    if isinstance(value, float):
        return Fraction(repr(value)) if math.isfinite(value) else None
    if isinstance(value, int):
        return Fraction(value)
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}(\.\d{0,18})?\s*", value, re.ASCII):
        return Fraction(value)
    return None
