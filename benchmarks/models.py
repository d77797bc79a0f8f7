"""Does it run, on a tiny random model of every type that transformers writes text with: ``python benchmarks/models.py --json FILE [TYPE ...]``.

What users do is tried on each (``models_tried.py``), in a child process: its memory and time are bounded, and where it
dies, that type's line says so and another process goes on with the next. Some 15 minutes.
"""

import argparse
import json
import os
import queue
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json

MEMORY = 10 << 30
"""Bytes of address space of a process that tries."""
SECONDS = 60
"""Of the processor for a type; and ten times as many by the clock, so that a busy machine decides nothing."""


class Late(BaseException):
    """A type has had its time."""


def work(types: Sequence[str]) -> None:
    """Try the types, one after another; a line of JSON a trial, and one as each type ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with os.fdopen(os.dup(1), "w") as told:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        import models_tried

        def tell(kind: str, trial: str, found: Any) -> None:
            print(json.dumps([kind, trial, found]), file=told, flush=True)

        def late(number: int, frame: object) -> None:
            raise Late

        signal.signal(signal.SIGPROF, late)
        for kind in types:
            folder = Path(tempfile.mkdtemp())
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                with patch("twinpass.train.run.draw_run"):  # plots would take most of the time
                    models_tried.tried(kind, folder, partial(tell, kind))
            except Late:
                tell(kind, "stopped", f"no end after {SECONDS} s of the processor")
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                shutil.rmtree(folder, ignore_errors=True)
            tell(kind, "", None)


def found(types: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What came of each type's trials, by name."""
    results: dict[str, dict[str, Any]] = {kind: {} for kind in types}
    left = list(types)
    while left:
        command = [sys.executable, __file__, "--work", *left]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            why = _listened(process, results, left)
        if left and (why or process.returncode):
            kind = left.pop(0)
            results[kind]["stopped"] = why or _died(process.returncode)
            print(f"{kind}: {results[kind]['stopped']}", flush=True)
    return results


def _listened(process: "subprocess.Popen[str]", results: dict[str, dict[str, Any]], left: list[str]) -> str:
    """Take what the process tells, until it ends or is made to; why it was made to."""
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=10 * SECONDS)
        except queue.Empty:
            process.kill()
            return f"no sign of it for {10 * SECONDS} s"
        if not line:
            return ""
        kind, trial, came = json.loads(line)
        if trial:
            results[kind][trial] = came
        else:
            left.remove(kind)
            lacking = [name for name, each in results[kind].items() if isinstance(each, str) or not each["works"]]
            print(f"{kind}: {', '.join(lacking) or 'all'}", flush=True)


def _read(stream: IO[str] | None, lines: "queue.Queue[str]") -> None:
    for line in stream or ():
        lines.put(line)
    lines.put("")


def _died(code: int) -> str:
    return f"the process died of {signal.Signals(-code).name}" if code < 0 else f"the process ended with {code}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="types of models; by default all that the installed transformers has")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.types)
        return
    from models_tiny import TYPES

    measured = {"commit": commit(), "machine": machine(), "versions": versions()}
    types = found(args.types or TYPES)
    if args.json:
        write_json(args.json, {"types": types, **measured})


if __name__ == "__main__":
    main()
