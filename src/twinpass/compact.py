"""Records that grow in number as long as a run goes on, as bytes: of an ordinary step about a sixth of what its objects take."""

import struct
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")

RECENT = 128
"""So many of the last are kept as they came, too: those are looked at again and again, 100 of them at each step to clip one probe."""


class Compact(Sequence[T], Generic[T]):
    """Dataclasses in order, made anew where they are looked at: equal to those that came, to the bit.

    Numbers and texts are kept as bytes, one record after the other; what else there is of a record, its form, once for all that share it.
    """

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._bytes = bytearray()
        self._starts = array("Q")
        self._form = array("I")
        self._forms: list[tuple[str, Any]] = []
        self._numbers: dict[Any, int] = {}
        self._recent: deque[T] = deque(maxlen=RECENT)
        for item in items:
            self.append(item)

    def append(self, item: T) -> None:
        """Add one at the end."""
        codes, values = list[str](), list[Any]()
        form = _apart(item, codes, values)
        number = self._numbers.setdefault(form, len(self._forms))
        if number == len(self._forms):
            self._forms.append(("=" + "".join(codes), form))
        self._starts.append(len(self._bytes))
        self._form.append(number)
        self._bytes += struct.pack(self._forms[number][0], *values)
        self._recent.append(item)

    def cut(self, to: int) -> None:
        """Keep the first ``to``."""
        if to < len(self):
            del self._bytes[self._starts[to] :], self._starts[to:], self._form[to:]
            self._recent.clear()

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, at: int) -> T: ...

    @overload
    def __getitem__(self, at: slice) -> list[T]: ...

    def __getitem__(self, at: int | slice) -> T | list[T]:
        here = range(len(self))[at]
        return [self._at(i) for i in here] if isinstance(here, range) else self._at(here)

    def _at(self, i: int) -> T:
        back = i - len(self) + len(self._recent)
        if back >= 0:
            return self._recent[back]
        codes, form = self._forms[self._form[i]]
        made: T = _together(form, iter(struct.unpack_from(codes, self._bytes, self._starts[i])))
        return made

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


def _apart(value: Any, codes: list[str], values: list[Any]) -> Any:
    """A value's form, with its numbers and texts at the end of ``values``, and how ``struct`` packs them at the end of ``codes``."""
    if isinstance(value, float):
        codes.append("d")
        values.append(value)
        return float
    if isinstance(value, str):
        values.append(value.encode("utf-8", "surrogatepass"))
        codes.append(f"{len(values[-1])}s")
        return str, len(values[-1])
    if type(value) is int and 0 < value < 1 << 64:
        codes.append("Q")
        values.append(value)
        return int
    if isinstance(value, tuple):
        kinds = set(map(type, value))
        if kinds == {float} or (kinds == {int} and min(value) >= 0 and max(value) < 1 << 64):
            code = "d" if kinds == {float} else "Q"
            codes.append(f"{len(value)}{code}")
            values.extend(value)
            return code, len(value)
        return tuple, *(_apart(part, codes, values) for part in value)
    if isinstance(value, Mapping):
        return dict, tuple(value), *(_apart(part, codes, values) for part in value.values())
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), *(_apart(getattr(value, name), codes, values) for name in _names(type(value)))
    return "as it is", type(value), value


def _together(form: Any, values: Iterator[Any]) -> Any:
    """The value that was taken apart."""
    if form is float or form is int:
        return next(values)
    kind, *parts = form
    if kind in ("d", "Q"):
        return tuple(islice(values, parts[0]))
    if kind is str:
        return next(values).decode("utf-8", "surrogatepass")
    if kind == "as it is":
        return parts[1]
    if kind is dict:
        return {key: _together(part, values) for key, part in zip(parts[0], parts[1:], strict=True)}
    made = (_together(part, values) for part in parts)
    return tuple(made) if kind is tuple else kind(*made)


@lru_cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))
