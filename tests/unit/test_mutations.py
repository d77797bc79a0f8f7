"""Changes of ``make mutants``: each is another program that compiles, at the place that it names."""

import ast
import asyncio
import re
from pathlib import Path
from typing import Any

from courses import ALSO, COMPILED, IMPORTS, TESTS, Course, courses_in, file_of
from courses import SOURCE as TREE
from mutations import announced, mutated, places
from verdicts import case_of

import twinpass.cache.tree
import twinpass.reuse.reflected

SOURCE = '''
from dataclasses import dataclass

LIMIT: int = 3

@dataclass(frozen=True)
class Point:
    """Not a place."""
    x: int | None = None

    def move(self, by: int = 5) -> int:
        if not by and self.x < 4 or by == -2:
            raise ValueError(f"{by + 1} is too far")
        self.seen = by
        print(by)
        return self.x + by
'''


def test_every_kind_of_change_is_made_where_it_is_named() -> None:
    found = {place.change: place for place in places("m", SOURCE)}
    lines = {change: place.line for change, place in found.items()}
    assert lines == {
        "3 -> 4": 4,
        "5 -> 6": 11,
        "not by and self.x < 4 or by == -2: Or -> And": 12,
        "not by and self.x < 4: And -> Or": 12,
        "not by: no not": 12,
        "self.x < 4: Lt -> LtE": 12,
        "4 -> 5": 12,
        "by == -2: Eq -> NotEq": 12,
        "-2: no minus": 12,
        "2 -> 3": 12,
        "self.seen = by: dropped": 14,
        "print(by): dropped": 15,
        "return self.x + by -> None": 16,
        "self.x + by: Add -> Sub": 16,
    }
    assert {change for change, place in found.items() if place.outside} == {"3 -> 4", "5 -> 6"}
    assert "self.x - by" in ast.unparse(mutated(SOURCE, found["self.x + by: Add -> Sub"]))
    assert "not not by" in ast.unparse(mutated(SOURCE, found["not by: no not"]))


def test_every_mutant_is_another_program() -> None:
    for module in (twinpass.cache.tree, twinpass.reuse.reflected):
        source = Path(str(module.__file__)).read_text()
        before = ast.unparse(ast.parse(source))
        for place in places(module.__name__, source):
            after = mutated(source, place)
            assert ast.unparse(after) != before
            compile(after, "it", "exec")


def test_every_statement_says_that_it_is_reached() -> None:
    source = "def f(x):\n    'It.'\n    if x > (\n        1\n    ):\n        return 1\n    else:\n        y = 2\n    return y\n"
    seen = list[tuple[str, int, int]]()
    space = {"reached": lambda *place: seen.append(place)}
    exec(compile(announced(source, "m", "reached"), "it", "exec"), space)
    function: Any = space["f"]
    assert (function(0), function.__doc__) == (2, "It.")
    assert seen == [("m", 3, 5), ("m", 8, 8), ("m", 9, 9)]


def test_coroutines_say_so_too() -> None:
    seen = list[tuple[str, int, int]]()
    space = {"reached": lambda *place: seen.append(place)}
    exec(compile(announced("async def f(x):\n    return x\n", "m", "reached"), "it", "exec"), space)
    function: Any = space["f"]
    assert (asyncio.run(function(4)), seen) == (4, [("m", 2, 2)])


def test_what_numba_compiles_is_known() -> None:
    """Its lines cannot say that they are reached, and other code takes another compilation."""
    decorated = re.compile(r"^@(njit|kernel|intrinsic|overload)\b", re.MULTILINE)
    found = {file.stem for file in (TREE / "twinpass").rglob("*.py") if decorated.search(file.read_text())}
    assert found == set(COMPILED)


def test_tests_that_judge_are_there() -> None:
    assert not [path for paths in ALSO.values() for path in paths if not (TESTS / path).exists()]


def test_a_change_is_judged_by_tests_that_its_process_can_run() -> None:
    """Not by those that Triton interprets, which the run has seen reach its line in another process."""
    place = next(each for each in places("twinpass.perturb.shard", file_of("twinpass.perturb.shard").read_text()))
    there = "tests/gpu/test_triton_cuda.py::test_it", "tests/unit/test_shard.py::test_it"
    courses = {IMPORTS: Course(), **{name: Course(0.1, {(place.module, place.line)}) for name in there}}
    assert set(case_of(place, courses).names) == set(there)
    assert case_of(place, courses_in(["tests/unit/test_shard.py"], courses)).names == there[1:]
