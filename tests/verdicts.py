"""What tests say to a mutant: each is judged in a process forked for it."""

import ast
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, Literal

import numba
import pytest
from courses import COMPILED, FAULT, IMPORTS, INTERPRETED, Course, file_of, forked, spec_of, tested, tests_of
from mutations import Place, mutated

Verdict = Literal["killed", "survived", "timed out"]

SECONDS = 8.0
"""Tests are taken until they need so long."""
PATIENCE, GRACE, COMPILING = 4.0, 10.0, 120.0
"""A mutant has so many times as long as its tests, so many seconds more, and those if it has to be compiled."""
UNCHANGED = 71
UNJUDGED = (UNCHANGED, FAULT, pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED)
"""What a process returns that could not make the change, or not run the tests."""


@dataclass(frozen=True)
class Case:
    """A mutant and the tests that may find it, in the order in which they run."""

    place: Place
    names: tuple[str, ...]
    seconds: float

    @property
    def limit(self) -> float:
        return PATIENCE * self.seconds + GRACE + COMPILING * (_name(self.place) in COMPILED)


def case_of(place: Place, courses: Mapping[str, Course]) -> Case:
    """Tests that reach a place: its module's own first, the quickest first, for as long as :data:`SECONDS`."""
    own, line = tests_of(place.module), (place.module, place.line)
    everywhere = place.outside or _name(place) in COMPILED + INTERPRETED or line in courses[IMPORTS].lines
    reached = [
        name
        for name, course in courses.items()
        if name != IMPORTS and (line in course.lines or (everywhere and _file(name) in own))
    ]
    reached.sort(key=lambda name: (_file(name) not in own, courses[name].seconds))
    chosen: list[str] = []
    seconds = 0.0
    for name in reached:
        if seconds + courses[name].seconds <= SECONDS or not chosen:
            chosen.append(name)
            seconds += courses[name].seconds
    return Case(place, tuple(chosen), seconds)


def _name(place: Place) -> str:
    return place.module.rpartition(".")[2]


def _file(name: str) -> str:
    return name.split("::", maxsplit=1)[0]


def of_code(code: int | None, said: Path | None = None) -> Verdict:
    """The verdict, by what a process returned: one that says nothing about tests is a fault of this script, and shown what it ``said``.

    Raises:
        SystemExit: it could not make the change, or run the tests.
    """
    if code in UNJUDGED:
        words = said.read_text()[-3000:] if said is not None else ""
        raise SystemExit(f"{words}\na change could not be made, or its tests not be run: the process returned {code}")
    return "timed out" if code is None else "killed" if code else "survived"


# --- a module imported anew


class Changed(MetaPathFinder):
    """Imports one module with a change; what Triton interprets comes from a file, where Triton reads it."""

    def __init__(self, place: Place, folder: Path) -> None:
        self._place, self._folder = place, folder

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._place.module:
            return None
        tree = mutated(file_of(name).read_text(), self._place)
        if _name(self._place) not in INTERPRETED:
            return spec_of(name, tree)
        file = self._folder / "changed.py"
        file.write_text(ast.unparse(tree))
        return spec_from_file_location(name, file)


class Only:
    """A plugin of pytest that runs some tests, in this order."""

    def __init__(self, names: Sequence[str]) -> None:
        self.order = {name: number for number, name in enumerate(names)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda item: self.order[item.nodeid])


def judged_anew(case: Case) -> Verdict:
    """In a process that has imported nothing of twinpass, and imports the module with the change."""

    def run() -> int:
        with tempfile.TemporaryDirectory() as folder:
            sys.meta_path.insert(0, Changed(case.place, Path(folder)))
            if _name(case.place) in COMPILED:
                numba.core.config.CACHE_DIR = folder
            return tested(sorted({_file(name) for name in case.names}), Only(case.names), "-x")

    return of_code(forked(run, case.limit)) if case.names else "survived"


# --- a function that gets other code


Key = tuple[str, int]
"""A function's name within its module, and its first line."""


def exchanged(place: Place) -> dict[Key, CodeType]:
    """Other code of functions that makes the change; none: it takes another import."""
    if place.outside or _name(place) in COMPILED + INTERPRETED:
        return {}
    source, file = file_of(place.module).read_text(), str(file_of(place.module))
    before = list(_codes(compile(ast.parse(source), file, "exec")))
    after = list(_codes(compile(mutated(source, place), file, "exec")))
    keys = [_key(code) for code in before]
    if keys != [_key(code) for code in after] or len(set(keys)) < len(keys):
        return {}
    if any(old.co_freevars != new.co_freevars for old, new in zip(before, after, strict=True)):
        return {}
    return {_key(new): new for old, new in zip(before, after, strict=True) if old != new and old.co_flags & 1}


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType) and not constant.co_name.startswith("<"):
            yield from _codes(constant)


def _key(code: CodeType) -> Key:
    return code.co_qualname, code.co_firstlineno


class Forking:
    """A plugin of pytest that runs no test itself: in a fork for each case the mutant's functions get their other code, and its tests run."""

    def __init__(
        self, cases: Sequence[Case], told: Callable[[Case, Verdict, float], None], folder: Path, until: float
    ) -> None:
        self._cases, self._told, self._until = cases, told, until
        self._found, self._said = folder / "found", folder / "said"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        for case in self._cases:
            if time.time() > self._until:
                break
            began = time.monotonic()
            code = forked(partial(_run, case, items), case.limit, self._said)
            self._told(case, of_code(code, self._said), time.monotonic() - began)
        finders = dict.fromkeys(self._found.read_text().splitlines()) if self._found.exists() else {}
        if forked(partial(_passing, [items[name] for name in finders]), PATIENCE * SECONDS * len(finders)):
            raise SystemExit(
                f"a test that found a change fails without any: {self._found.read_text().splitlines()[-1]}"
            )
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            with self._found.open("a") as file:
                file.write(f"{report.nodeid}\n")
            os._exit(1)


def _run(case: Case, items: Mapping[str, pytest.Item]) -> int:
    other, file = exchanged(case.place), import_module(case.place.module).__file__
    functions = [each for each in gc.get_objects() if type(each) is FunctionType]  # isinstance would ask the object
    own = [each for each in functions if each.__code__.co_filename == file and _key(each.__code__) in other]
    if not own:
        return UNCHANGED
    for each in own:
        each.__code__ = other[_key(each.__code__)]
    return _passing([items[name] for name in case.names])


def _passing(chosen: Sequence[pytest.Item]) -> int:
    for item, following in zip(chosen, [*chosen[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    return 0
