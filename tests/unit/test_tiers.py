"""Rows of tables that the fast tier keeps."""

import os
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

import conftest
import pytest
from conftest import selected

TABLE = [{"name": a, "kind": b, "setting": c} for a, b, c in product(range(10), range(4), range(8))]


def test_every_value_occurs() -> None:
    kept = selected(TABLE, 1)
    assert len(kept) == 10
    for axis, size in (("name", 10), ("kind", 4), ("setting", 8)):
        assert {TABLE[number][axis] for number in kept} == set(range(size))


def test_every_pair_occurs() -> None:
    kept = selected(TABLE, 2)
    assert 80 <= len(kept) < 100
    for a, b in combinations(("name", "kind", "setting"), 2):
        assert {(TABLE[n][a], TABLE[n][b]) for n in kept} == {(row[a], row[b]) for row in TABLE}


@pytest.mark.parametrize("together", [1, 2])
def test_what_never_occurs_is_not_waited_for(together: int) -> None:
    rows = [{"x": i, "y": i} for i in range(5)]
    assert selected(rows, together) == set(range(5))
    assert selected(rows[:1], together) == {0}


TREE = """
import pytest

@pytest.mark.full
def test_slow(): pass

@pytest.mark.table
@pytest.mark.parametrize("x", range(3))
@pytest.mark.parametrize("y", range(5))
@pytest.mark.parametrize("z", range(2))
def test_table(x, y, z): pass

@pytest.mark.table
@pytest.mark.parametrize("x", [0, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("y", range(3))
def test_table_of_some(x, y): pass

@pytest.mark.parametrize("x", range(3))
@pytest.mark.parametrize("y", range(5))
def test_all(x, y): pass
"""


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        ("not full", 5 + 15 + 3),
        pytest.param("full", 1 + 10 + 3, marks=pytest.mark.full),
        pytest.param("full or not full", 15 + 1 + 15 + 6, marks=pytest.mark.full),
    ],
)
def test_the_tiers_are_the_whole(chosen: str, count: int, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(Path(conftest.__file__).read_text())
    (tmp_path / "test_tree.py").write_text(TREE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "-q",
        "-m",
        chosen,
        str(tmp_path),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"{count} passed" in result.stdout
