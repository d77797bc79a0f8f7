"""Whether the tests find faults: ``python tests/mutants.py --json FILE`` changes the code at many places, one at a time.

A place is a comparison, an operator, a constant, ``and`` or ``or``, a ``not``, a returned value or a statement. The tests of these packages run once with the
code as it is, to see how long each takes and which lines it reaches (:mod:`courses`). A mutant is judged by those that reach its line, those
that belong to its module first (:mod:`verdicts`): in a fork of a process that has collected the tests, where its functions get other code;
or, where what changes runs when a module is imported, is compiled or is interpreted, in a fork of one that has imported nothing of twinpass.
Sources on disk stay as they are.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

from courses import (
    IMPORTS,
    PACKAGES,
    ROOT,
    Course,
    compiled,
    courses_in,
    file_of,
    interpreted,
    left_out,
    modules,
    tested,
    tests_of,
    unchanged,
)
from mutations import Place, places
from verdicts import Case, Forking, Verdict, case_of, exchanged, judged_anew

WARM = (
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "peft",
    "scipy.stats",
    "matplotlib.pyplot",
)
"""What is imported before anything forks."""
THREADS = {"OMP_NUM_THREADS": "1", "NUMBA_THREADING_LAYER": "workqueue"}
"""OpenMP ends a process that was forked from one that has threads of it."""


def drawn(count: int, seed: int) -> list[Place]:
    """So many places: as many of each module as there are, in rounds of one of each, so that any part of them is a fair sample."""
    dice = random.Random(seed)
    found = {module: places(module, file_of(module).read_text()) for module in modules()}
    rounds = zip_longest(*(random.Random(f"{seed} {name}").sample(own, len(own)) for name, own in found.items()))
    return [place for each in rounds for place in dice.sample(each, len(each)) if place is not None][:count]


@dataclass
class State:
    """What is known so far, line by line in a file, so that a run that was broken off goes on.

    It may go on at a later commit. What tests found stays found where its module is the same; what survived is judged again, and tests
    in files that changed are looked at again. ``commits`` says where each verdict is from.
    """

    file: Path
    files: set[str] = field(default_factory=set)
    courses: dict[str, Course] = field(default_factory=dict)
    verdicts: dict[Place, Verdict] = field(default_factory=dict)
    commits: dict[Place, str] = field(default_factory=dict)
    again: list[Place] = field(default_factory=list)
    at: str = ""

    @classmethod
    def of(cls, file: Path) -> "State":
        """As an earlier run left it."""
        state = cls(file)
        for line in file.read_text().splitlines() if file.exists() else ():
            state._take(json.loads(line))
        if state.at != (head := _git("rev-parse", "--short=12", "HEAD")):
            state._note({"commit": head})
            state._take({"commit": head})
        return state

    def _take(self, record: Mapping[str, Any]) -> None:
        if "commit" in record:
            self._move(record["commit"])
        elif "place" in record:
            place = Place(*record["place"])
            self.verdicts[place], self.commits[place] = record["verdict"], self.at
        elif "files" in record:
            self.files.update(record["files"])
        else:
            seconds, lines = record["course"]
            course = self.courses.setdefault(record["test"], Course(seconds))
            course.lines |= {(module, line) for module, line in lines}

    def _move(self, commit: str) -> None:
        """To another commit."""
        changed = set(_git("diff", "--name-only", self.at, commit).splitlines()) if self.at else set()
        self.at = commit
        self.files -= changed
        self.courses = {name: own for name, own in self.courses.items() if name.split("::")[0] not in changed}

        def stands(place: Place) -> bool:
            return file_of(place.module).relative_to(ROOT).as_posix() not in changed

        sound = {place: verdict for place, verdict in self.verdicts.items() if stands(place)}
        survived = [place for place, verdict in sound.items() if verdict == "survived"]
        self.again = [*filter(stands, self.again), *survived]
        self.verdicts = {place: verdict for place, verdict in sound.items() if verdict != "survived"}

    def reached(self, files: Sequence[str], courses: Mapping[str, Course]) -> None:
        """Take in courses of all tests of some files."""
        for name, course in courses.items():
            self.courses.setdefault(name, Course(course.seconds)).lines |= course.lines
            self._note({"test": name, "course": [course.seconds, sorted(course.lines)]})
        self.files.update(files)
        self._note({"files": files})

    def judged(self, case: Case, verdict: Verdict, seconds: float) -> None:
        """Take in a verdict."""
        self.verdicts[case.place], self.commits[case.place] = verdict, self.at
        self._note({"place": astuple(case.place), "verdict": verdict})
        print(f"{verdict:9} {seconds:5.1f} s, {len(case.names):3} tests: {case.place}", flush=True)

    def _note(self, record: Mapping[str, Any]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(record) + "\n")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def judge(state: State, chosen: Sequence[Place], files: Sequence[str], until: float) -> None:
    """Verdicts of places that have none yet, by tests in these files, as far as there is time; what has to be compiled comes last."""
    courses = courses_in(files, state.courses)
    cases = [case_of(place, courses) for place in chosen if place not in state.verdicts]
    imported = courses[IMPORTS].lines
    anew = [
        case
        for case in cases
        if not case.names or (case.place.module, case.place.line) in imported or not exchanged(case.place)
    ]
    apart = set(anew)
    quick = [case for case in cases if case not in apart]
    if quick:
        files = sorted({name.split("::", maxsplit=1)[0] for case in quick for name in case.names})
        with tempfile.TemporaryDirectory() as folder:
            _in_a_fork(lambda: tested(files, Forking(quick, state.judged, Path(folder), until), "-s"))
    for case in sorted(anew, key=lambda case: compiled(case.place.module)):
        if time.time() > until:
            break
        began = time.monotonic()
        state.judged(case, judged_anew(case), time.monotonic() - began)


def _in_a_fork(run: Callable[[], int]) -> None:
    child = os.fork()
    if child == 0:
        try:
            os._exit(run())
        finally:
            os._exit(70)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the tests cannot be collected, or one that found a change fails without any")


INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton looks when it is imported, so what it interprets is judged in another process than the rest."""


def in_this_world(state: State, chosen: Sequence[Place], until: float) -> None:
    """Judge the places that are of this process."""
    if not chosen:
        return
    for name in WARM:
        import_module(name)
    files = sorted({file for place in chosen for file in tests_of(place.module)})
    if new := [file for file in files if file not in state.files]:
        began = time.monotonic()
        state.reached(new, unchanged(new))
        print(f"{len(state.courses)} tests unchanged in {time.monotonic() - began:.0f} s", flush=True)
    judge(state, chosen, files, until)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=340, help="how many places")
    parser.add_argument("--seed", type=int, default=20, help="which places")
    parser.add_argument(
        "--only", default="", help="places whose text holds this, such as cache/tree or a line's number"
    )
    parser.add_argument(
        "--packages", default=" ".join(PACKAGES), help="which folders, such as 'objective engine/embedded'"
    )
    parser.add_argument("--state", type=Path, help="a file of what was found so far; a run that was broken off goes on")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--minutes", type=float, default=60.0, help="no mutant is begun after so many")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--world", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.world:
        chosen = [place for place in drawn(args.count, args.seed) if args.only in str(place)]
        state = State.of(args.world)
        chosen = list(dict.fromkeys([*state.again, *chosen]))
        in_this_world(state, [place for place in chosen if interpreted(place.module) == INTERPRETING], args.until)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = args.state or Path(folder) / "state"
        command = [sys.executable, __file__, f"--count={args.count}", f"--seed={args.seed}", f"--only={args.only}"]
        command.append(f"--until={time.time() + 60 * args.minutes}")
        for world in ("1", ""):
            environment = {
                **os.environ,
                **THREADS,
                "CUDA_VISIBLE_DEVICES": "",
                "MUTATED": args.packages,
                "TRITON_INTERPRET": world,
            }
            subprocess.run([*command, f"--world={file}"], env=environment, check=True)
        state = State.of(file)
    if left := [place for place in state.again if place not in state.verdicts]:
        raise SystemExit(
            f"{len(left)} mutants that had survived were not judged again in {args.minutes:g} minutes, so that no share is known; "
            "call it again with the same --state"
        )
    judged_at = Counter(state.commits[place] for place in state.verdicts)
    result = report(state.verdicts) | {
        "judged_at": dict(judged_at),
        "seed": args.seed,
        "modules_left_out": list(left_out()),
    }
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
