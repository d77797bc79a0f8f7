"""Which tests are left out of ``make test``: those marked ``full``, and most rows of tables marked ``table``.

``@pytest.mark.table`` on a parametrized function: the fast tier runs rows in which every value of every axis occurs, the full one rows
in which every pair of values of two axes does. Where there are two axes that is the whole table; of three or more most rows are never
run.
"""

import signal
import sys
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import pytest

Cell = tuple[tuple[str, Hashable], ...]
"""A value of one axis, or of each of two: the axes' names, and what tells their values apart."""


def pytest_configure() -> None:
    """Signals end tests as they do in a terminal, also where what began them ignores some, as ``nohup`` and a shell's ``&`` do."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bfloat16 are taken on every processor: float32's instructions give what AMX's give, no faster."""
    monkeypatch.setattr("twinpass.config.engines.multiplies_tiles", lambda: True)


def pytest_collection_finish() -> None:
    if "twinpass.perturb.compiled" in sys.modules:
        from compiling import one_at_a_time

        one_at_a_time()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tables: dict[str, list[Any]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("table") and hasattr(item, "callspec"):
            tables[item.nodeid.split("[")[0]].append(item)
    left_out: set[pytest.Item] = set()
    for rows in tables.values():
        pairs = chosen(rows, 2)
        fast = chosen([row for row in pairs if not row.get_closest_marker("full")], 1)
        left_out.update(row for row in rows if row not in pairs)
        for row in pairs:
            if row not in fast:
                row.add_marker(pytest.mark.full)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def chosen(rows: Sequence[Any], together: int) -> list[Any]:
    """Those rows of a table in which every combination of ``together`` axes' values occurs."""
    kept = selected([row.callspec.params for row in rows], together)
    return [row for number, row in enumerate(rows) if number in kept]


def selected(rows: Sequence[Mapping[str, object]], together: int) -> set[int]:
    """Rows in which every combination of ``together`` axes' values occurs that occurs at all: the ones with most new ones first."""
    cells = [set(_cells(row, together)) for row in rows]
    missing, kept = set().union(*cells), set[int]()
    while missing:
        best = max(range(len(rows)), key=lambda number: len(cells[number] & missing))
        kept.add(best)
        missing -= cells[best]
    return kept


def _cells(row: Mapping[str, object], together: int) -> Iterator[Cell]:
    values = [(axis, _key(value)) for axis, value in sorted(row.items())]
    return combinations(values, min(together, len(values)))


def _key(value: object) -> Hashable:
    return (type(value), value) if isinstance(value, Hashable) and not isinstance(value, tuple) else id(value)
