"""Whether the tests find faults: ``python tests/mutants.py --json FILE`` changes the code at many places, one at a time.

A place is a comparison, an operator, a constant, ``and`` or ``or``, a ``not``, a returned value or a statement. All tests run once with the
code as it is, to see how long each takes and which lines it reaches. A mutant is judged by those that reach its line, those that belong to
its module first (by name or import, and :data:`ALSO`), in a process forked from this one, which has imported torch and transformers but
nothing of twinpass. Sources on disk stay as they are.
"""

import argparse
import ast
import builtins
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from functools import cache
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Literal

import numba
import pytest
from llvmlite import binding
from mutations import Place, announced, mutated, places

ROOT = Path(__file__).parent.parent
SOURCE, TESTS = ROOT / "src", ROOT / "tests"
PACKAGES = ("cache", "reuse", "estimate", "train", "perturb")

ALSO: Mapping[str, tuple[str, ...]] = {
    "cache": ("unit/test_cache.py", "unit/test_prefix_cache.py", "conformance/test_accounting.py"),
    "reuse": ("conformance/test_families.py", "unit/test_policies.py", "unit/test_plans.py"),
    "estimate": ("conformance/test_families.py", "statistics/test_bias.py", "unit/test_directions.py"),
    "train": (
        "invariant/test_runs.py",
        "invariant/test_descent_runs.py",
        "invariant/test_informed_runs.py",
        "unit/test_safeguards.py",
    ),
    "perturb": ("unit/test_noise.py", "unit/test_moving.py", "unit/test_parameters.py", "unit/test_shard.py"),
    "perturb.gemm": ("unit/test_multiply.py", "unit/test_pairs.py"),
}
"""Tests of a package that neither a module's name nor an import tells."""

WARM = (
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "peft",
    "scipy.stats",
    "matplotlib.pyplot",
)
"""What is imported before anything forks."""

COMPILED = ("draw", "kernels", "race", "sums", "multiply", "pairs", "registers", "tiles")
"""Modules that Numba compiles: which of their lines a test reaches is not to be seen, and compiled code is not another mutant's."""
INTERPRETED = ("triton_draw", "triton_kernels", "triton_programs", "backend")
"""Modules that Triton interprets, in a process of its own."""
AMX = ("pairs", "tiles")
"""Modules whose products this processor may not have: without AMX most of their tests are skipped, and they are left out."""

REACHED = "__reached__"
"""What modules call before every statement."""

SECONDS = 25.0
"""Tests are taken until they need so long."""
PATIENCE, GRACE, COMPILING = 4.0, 15.0, 120.0
"""A mutant has so many times as long as its tests, so many seconds more, and those if it has to be compiled."""

Verdict = Literal["killed", "survived", "timed out"]


@dataclass
class Course:
    """A test without any mutant: seconds, and lines (module, number) that it reaches."""

    seconds: float = 0.0
    lines: set[tuple[str, int]] = field(default_factory=set)
    passed: bool = True


class Watch(MetaPathFinder):
    """A plugin of pytest that notes each test's :class:`Course`; what runs for several tests of a file counts for all of them.

    Modules are imported with a call before every statement that says which one it is, but for what Numba or Triton compiles.
    """

    def __init__(self) -> None:
        self.courses: dict[str, Course] = {}
        self._shared: dict[str, set[tuple[str, int]]] = {}
        self._now: set[tuple[str, int]] = set()

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in modules() or name.rpartition(".")[2] in COMPILED + INTERPRETED:
            return None
        setattr(builtins, REACHED, self._reached)
        return spec_of(name, announced(file_of(name).read_text(), name, REACHED))

    def _reached(self, module: str, first: int, last: int) -> None:
        self._now.update((module, line) for line in range(first, last + 1))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.courses[report.nodeid].passed &= report.passed

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        course = self.courses[item.nodeid] = Course()
        self._now, started = course.lines, time.perf_counter()
        try:
            return (yield)
        finally:
            course.seconds = time.perf_counter() - started

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        before = self._now
        if fixturedef.scope in ("class", "module"):
            self._now = self._shared.setdefault(str(request.path), set())
        try:
            return (yield)
        finally:
            self._now = before

    def pytest_sessionfinish(self) -> None:
        for name, course in self.courses.items():
            course.lines |= self._shared.get(str(ROOT / name.split("::", maxsplit=1)[0]), set())


class Only:
    """A plugin of pytest that runs some tests, in this order."""

    def __init__(self, names: Sequence[str]) -> None:
        self.order = {name: number for number, name in enumerate(names)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda item: self.order[item.nodeid])


class Changed(MetaPathFinder):
    """Imports one module with a change."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.place.module:
            return None
        return spec_of(name, mutated(file_of(name).read_text(), self.place))


def spec_of(name: str, tree: ast.Module) -> ModuleSpec | None:
    """A module that is this program."""

    class Loader(SourceFileLoader):
        def get_code(self, fullname: str) -> CodeType:
            return compile(tree, self.path, "exec")

    return spec_from_file_location(name, file_of(name), loader=Loader(name, str(file_of(name))))


def file_of(module: str) -> Path:
    return SOURCE / (module.replace(".", "/") + ".py")


@cache
def modules() -> tuple[str, ...]:
    files = [file for name in PACKAGES for file in sorted((SOURCE / "twinpass" / name).rglob("*.py"))]
    names = [".".join(file.relative_to(SOURCE).with_suffix("").parts) for file in files]
    return tuple(name for name in names if name.rpartition(".")[2] not in ("__init__", *left_out()))


def left_out() -> tuple[str, ...]:
    return () if binding.get_host_cpu_features().get("amx-bf16") else AMX


def drawn(count: int, seed: int) -> list[Place]:
    """So many places, in an order in which any part of them is a fair sample."""
    every = [place for module in modules() for place in places(module, file_of(module).read_text())]
    return random.Random(seed).sample(every, min(count, len(every)))


@cache
def tests_of(module: str) -> tuple[str, ...]:
    """Files of tests that belong to a module."""
    name, inner = module.rpartition(".")[2], module.removeprefix("twinpass.")
    if name in INTERPRETED:
        return ("tests/gpu/test_triton_cuda.py",)
    found = {f"tests/{path}" for key, paths in ALSO.items() if f"{inner}.".startswith(f"{key}.") for path in paths}
    for folder in ("unit", "conformance", "invariant", "statistics"):
        for file in (TESTS / folder).glob("test_*.py"):
            if file.stem == f"test_{name}" or f"from {module} import" in file.read_text():
                found.add(file.relative_to(ROOT).as_posix())
    return tuple(sorted(found))


def forked(run: Callable[[], int], limit: float, log: Path | None = None) -> int | None:
    """What ``run`` returns in a process of its own, which leaves nothing running; None: it took too long."""
    child = os.fork()
    if child == 0:
        os.setsid()
        output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = 70
        try:
            code = run()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    until = time.perf_counter() + limit
    status = None
    while status is None and time.perf_counter() < until:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
        else:
            time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    return status


def tested(files: Sequence[str], plugin: object, *options: str) -> int:
    """What pytest returns for the fast tests of some files."""
    os.chdir(ROOT)
    if any(file.startswith("tests/gpu/") for file in files):
        os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    quiet = ("-q", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider")
    return int(pytest.main([*quiet, *options, "-m", "not full", *files], [plugin]))


def unchanged(files: Sequence[str]) -> dict[str, Course]:
    """Every test's course, of those that pass.

    Raises:
        SystemExit: the tests cannot be run.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "courses.json", Path(folder) / "log"

        def run() -> int:
            watch = Watch()
            sys.meta_path.insert(0, watch)
            code = tested(files, watch)
            passed = {name: [c.seconds, sorted(c.lines)] for name, c in watch.courses.items() if c.passed}
            file.write_text(json.dumps(passed))
            return code

        if forked(run, 3600.0, log) not in (0, 1):
            raise SystemExit(f"{log.read_text()[-3000:]}\nthe tests do not run")
        print(log.read_text()[-500:], flush=True)
        found = json.loads(file.read_text())
    return {
        name: Course(seconds, {(module, line) for module, line in lines}) for name, (seconds, lines) in found.items()
    }


def judges(place: Place, courses: Mapping[str, Course]) -> list[str]:
    """Tests that may find a mutant: its module's own first, the quickest first, for as long as :data:`SECONDS`."""
    own, module = tests_of(place.module), place.module.rpartition(".")[2]
    hidden = module in COMPILED + INTERPRETED
    reached = [
        name
        for name, course in courses.items()
        if (place.module, place.line) in course.lines or ((hidden or place.outside) and name.split("::")[0] in own)
    ]
    reached.sort(key=lambda name: (name.split("::")[0] not in own, courses[name].seconds))
    chosen: list[str] = []
    seconds = 0.0
    for name in reached:
        if seconds + courses[name].seconds <= SECONDS or not chosen:
            chosen.append(name)
            seconds += courses[name].seconds
    return chosen


def judged(place: Place, names: Sequence[str], seconds: float) -> Verdict:
    """What tests say to a change."""
    compiled = place.module.rpartition(".")[2] in COMPILED

    def run() -> int:
        sys.meta_path.insert(0, Changed(place))
        with tempfile.TemporaryDirectory() as folder:
            if compiled:
                numba.core.config.CACHE_DIR = folder
            return tested(sorted({name.split("::")[0] for name in names}), Only(names), "-x")

    if not names:
        return "survived"
    code = forked(run, PATIENCE * seconds + GRACE + COMPILING * compiled)
    return "timed out" if code is None else "killed" if code else "survived"


@dataclass
class State:
    """What is known so far, and the file that it is kept in, if any."""

    file: Path | None
    courses: dict[str, Course] = field(default_factory=dict)
    verdicts: dict[Place, Verdict] = field(default_factory=dict)

    @classmethod
    def of(cls, file: Path | None) -> "State":
        """As an earlier run left it."""
        if file is None or not file.exists():
            return cls(file)
        kept = json.loads(file.read_text())
        courses = {
            name: Course(seconds, {(m, n) for m, n in lines}) for name, (seconds, lines) in kept["courses"].items()
        }
        return cls(file, courses, {Place(*place): verdict for place, verdict in kept["verdicts"]})

    def keep(self) -> None:
        """Write it down."""
        if self.file is None:
            return
        courses = {name: [course.seconds, sorted(course.lines)] for name, course in self.courses.items()}
        verdicts = [[astuple(place), verdict] for place, verdict in self.verdicts.items()]
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps({"courses": courses, "verdicts": verdicts}))
        new.replace(self.file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=330, help="how many places")
    parser.add_argument("--seed", type=int, default=20, help="which places")
    parser.add_argument("--minutes", type=float, default=35.0, help="no mutant is begun after so many")
    parser.add_argument(
        "--only", default="", help="places whose text holds this, such as cache/tree or a line's number"
    )
    parser.add_argument("--state", type=Path, help="a file of what was found so far; a run that was broken off goes on")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    started = time.perf_counter()
    for name in WARM:
        import_module(name)
    chosen = [place for place in drawn(args.count, args.seed) if args.only in str(place)]
    state = State.of(args.state)
    if not state.courses:
        files = sorted({file for place in chosen for file in tests_of(place.module)})
        for inside in (False, True):
            if some := [file for file in files if file.startswith("tests/gpu/") == inside]:
                state.courses |= unchanged(some)
        state.keep()
        print(f"{len(state.courses)} tests unchanged in {time.perf_counter() - started:.0f} s", flush=True)
    for place in chosen:
        if place in state.verdicts:
            continue
        if time.perf_counter() - started > 60 * args.minutes:
            break
        names = judges(place, state.courses)
        began = time.perf_counter()
        verdict = judged(place, names, sum(state.courses[name].seconds for name in names))
        state.verdicts[place] = verdict
        if len(state.verdicts) % 20 == 0:
            state.keep()
        print(f"{verdict:9} {time.perf_counter() - began:5.1f} s, {len(names):3} tests: {place}", flush=True)
    state.keep()
    result = report(state.verdicts) | {"seed": args.seed, "modules_left_out": list(left_out())}
    print(json.dumps({key: result[key] for key in ("mutants", "verdicts", "found")}))
    if args.json:
        from twinpass.report.environment import commit, machine, versions
        from twinpass.report.files import write_json

        write_json(args.json, result | {"commit": commit(), "machine": machine(), "versions": versions()})


def report(verdicts: Mapping[Place, Verdict]) -> dict[str, Any]:
    """Counts, the share found (a mutant that takes too long is found), and those that were not by name."""

    def counts(key: Callable[[Place], str]) -> dict[str, dict[str, int]]:
        groups = {key(place) for place in verdicts}
        return {
            group: dict(Counter(verdict for place, verdict in verdicts.items() if key(place) == group))
            for group in sorted(groups)
        }

    missed = sorted(str(place) for place, verdict in verdicts.items() if verdict == "survived")
    return {
        "mutants": len(verdicts),
        "verdicts": dict(Counter(verdicts.values())),
        "found": 1 - len(missed) / max(len(verdicts), 1),
        "by_package": counts(lambda place: place.module.split(".")[1]),
        "by_kind": counts(lambda place: place.kind),
        "survived": missed,
        "timed_out": sorted(str(place) for place, verdict in verdicts.items() if verdict == "timed out"),
    }


if __name__ == "__main__":
    main()
