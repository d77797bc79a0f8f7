"""On what a result was measured: versions, machine, memory."""

import hashlib
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("twinpass", "torch", "transformers", "numba", "numpy", "peft")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def memory_bytes() -> int:
    """The memory that this process may have: the machine's, or what it is limited to."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return whole if limit == resource.RLIM_INFINITY else min(whole, limit)


def machine() -> dict[str, str | int]:
    """Processor, cores in use, memory and system."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.machine()}",
    }


@cache
def code() -> Mapping[str, str]:
    """What computes: a hash of twinpass's own source, and the versions, without their builds, of what it computes with."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    found = versions()
    return {
        "source": digest.hexdigest(),
        **{
            name: found[name].partition("+")[0] for name in ("torch", "transformers", "numba", "numpy") if name in found
        },
    }


RESULTS = (":(top,exclude)benchmarks/results", ":(top,exclude)docs")
"""What benchmarks write themselves: one result does not change the code that the next is of."""


def commit() -> str | None:
    """The commit of the checkout that the code runs from, with ``-dirty`` if anything but results and documentation was changed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = _output([*git, "rev-parse", "--short=12", "HEAD"])
        changed = _output([*git, "status", "--porcelain", "--untracked-files=no", "--", ":/", *RESULTS])
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changed else head


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def peak_rss_bytes() -> int:
    """The largest resident memory this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
