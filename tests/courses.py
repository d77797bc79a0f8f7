"""What each test of a module takes without any mutant: seconds of the processor, and the lines that it reaches."""

import ast
import builtins
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest
from llvmlite import binding
from mutations import announced

ROOT = Path(__file__).parent.parent
SOURCE, TESTS = ROOT / "src", ROOT / "tests"
PACKAGES = tuple(os.environ.get("MUTATED", "cache reuse estimate train perturb").split())
"""Folders of twinpass that are changed; others can be asked for."""

ALSO: Mapping[str, tuple[str, ...]] = {
    "cache": ("unit/test_cache.py", "unit/test_prefix_cache.py", "conformance/test_memory.py"),
    "reuse": (
        "conformance/test_families.py",
        "unit/test_policies.py",
        "unit/test_plans.py",
        "unit/test_reference.py",
    ),
    "estimate": ("conformance/test_families.py", "statistics/test_bias.py", "unit/test_reference.py"),
    "train": (
        "conformance/test_families.py",
        "invariant/test_runs.py",
        "invariant/test_descent_runs.py",
        "invariant/test_informed_runs.py",
        "unit/test_composition.py",
        "unit/test_reference.py",
    ),
    "perturb": (
        "unit/test_noise.py",
        "unit/test_kernels.py",
        "unit/test_moving.py",
        "unit/test_parameters.py",
        "unit/test_shard.py",
    ),
    "perturb.gemm.registers": ("unit/test_multiply.py",),
    "train.trainer": ("invariant/test_approximate_runs.py",),
    "perturb.race": ("conformance/test_generation.py", "conformance/test_choosing.py"),
    "perturb.gemm.heads": ("unit/test_paged.py",),
    "perturb.vectorised": ("unit/test_paged.py", "unit/test_segments.py", "unit/test_race.py"),
    "objective": ("unit/test_trl_rewards.py", "invariant/test_reward_settings.py", "invariant/test_reward_runs.py"),
    "task": ("invariant/test_none_held_out.py", "invariant/test_json.py", "fuzz/test_fuzz.py"),
    "use": (
        "invariant/test_export.py",
        "invariant/test_use.py",
        "invariant/test_use_in_python.py",
        "invariant/test_damaged_weights.py",
        "invariant/test_doctor.py",
        "conformance/test_peft.py",
    ),
    "config": (
        "unit/test_composition.py",
        "unit/test_config.py",
        "unit/test_config_faults.py",
        "unit/test_idle.py",
        "unit/test_learner.py",
        "invariant/test_finetune.py",
    ),
    "engine.embedded.descent": (
        "conformance/test_gradient.py",
        "conformance/test_feedback.py",
        "conformance/test_mixed.py",
        "conformance/test_projections.py",
    ),
}
"""Tests of a package beside the unit tests of that name, or that import it."""

COMPILED = (
    *("draw", "kernels", "race", "sums", "multiply", "pairs", "registers", "tiles"),
    *("heads", "low_rank", "norms", "paged", "segments", "vectorised"),
)
"""Modules that Numba compiles: which of their lines a test reaches is not to be seen, and compiled code is not another mutant's."""
INTERPRETED = ("triton_draw", "triton_kernels", "triton_programs", "backend")
"""Modules that Triton interprets, in a process of its own."""
AMX = ("pairs", "tiles")
"""Modules whose products this processor may not have: without AMX most of their tests are skipped, and they are left out."""

IMPORTS = "imports"
REACHED = "__reached__"
"""What modules call before every statement."""
FAULT = 70
"""What a process returns in which something else than a test failed."""
WALL = 20
"""A process that waits, or has to share the processor, may take so many times as long as it may run."""


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
        self.imports: set[tuple[str, int]] = set()
        self._shared: dict[str, set[tuple[str, int]]] = {}
        self._now = self.imports

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
        self._now, started = course.lines, time.process_time()
        try:
            return (yield)
        finally:
            course.seconds = time.process_time() - started

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


def unchanged(files: Sequence[str]) -> dict[str, Course]:
    """Every test's course, of those that pass, and what runs while they are imported, under :data:`IMPORTS`.

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
            file.write_text(json.dumps(passed | {IMPORTS: [0.0, sorted(watch.imports)]}))
            return code

        if forked(run, 3600.0, log) not in (0, 1):
            raise SystemExit(f"{log.read_text()[-3000:]}\nthe tests do not run")
        print(log.read_text()[-500:], flush=True)
        found = json.loads(file.read_text())
    return {name: Course(seconds, {(m, line) for m, line in lines}) for name, (seconds, lines) in found.items()}


def courses_in(files: Sequence[str], courses: Mapping[str, Course]) -> dict[str, Course]:
    """Those of tests in these files, and what runs while they are imported: a process that Triton interprets in has other files than one without."""
    return {name: own for name, own in courses.items() if name == IMPORTS or name.split("::", maxsplit=1)[0] in files}


def tested(files: Sequence[str], plugin: object, *options: str) -> int:
    """What pytest returns for the fast tests of some files."""
    os.chdir(ROOT)
    quiet = ("-q", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider")
    return int(pytest.main([*quiet, *options, "-m", "not full", *files], [plugin]))


def compiled(module: str) -> bool:
    """Whether Numba compiles it."""
    return module.rpartition(".")[2] in COMPILED


def interpreted(module: str) -> bool:
    """Whether Triton interprets it."""
    return module.rpartition(".")[2] in INTERPRETED


def forked(run: Callable[[], int], limit: float, log: Path | None = None) -> int | None:
    """What ``run`` returns in a process of its own, which leaves nothing running; None: it ran for longer than ``limit``, in seconds."""
    child = os.fork()
    if child == 0:
        os.setsid()
        output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 3))
        code = FAULT
        try:
            code = run()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    until = time.monotonic() + WALL * limit
    status = None
    while status is None and time.monotonic() < until:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
        else:
            time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    return None if status in (-signal.SIGXCPU, -signal.SIGKILL) else status


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


@cache
def tests_of(module: str) -> tuple[str, ...]:
    """Files of tests that belong to a module."""
    (package, _, name), inner = module.rpartition("."), module.removeprefix("twinpass.")
    imported = re.compile(rf"^ *from ({module} import|{package} import .*\b{name}\b)", re.MULTILINE)
    if name in INTERPRETED:
        return tuple(sorted(file.relative_to(ROOT).as_posix() for file in (TESTS / "gpu").glob("test_triton*.py")))
    found = {f"tests/{path}" for key, paths in ALSO.items() if f"{inner}.".startswith(f"{key}.") for path in paths}
    for file in (TESTS / "unit").glob("test_*.py"):
        if file.stem == f"test_{name}" or imported.search(file.read_text()):
            found.add(file.relative_to(ROOT).as_posix())
    return tuple(sorted(found))
