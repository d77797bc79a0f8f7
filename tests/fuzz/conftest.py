"""What the fuzz targets came to, written to the file that ``TWINPASS_FUZZ_JSON`` names (``make fuzz``)."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json

BEGAN = time.monotonic()
TARGETS: dict[str, dict[str, object]] = {}


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Iterator[Counter[str]]:
    """Counts of a target: its ``inputs``, and those that were ``refused``."""
    found: Counter[str] = Counter()
    yield found
    for name, count in found.items():
        record_property(name, count)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    target = TARGETS.setdefault(report.nodeid.rpartition("::")[2], {})
    if report.when == "call":
        target |= {"outcome": report.outcome, "seconds": round(report.duration, 1)}
    target |= dict(report.user_properties)


def pytest_sessionfinish() -> None:
    file = os.environ.get("TWINPASS_FUZZ_JSON")
    if file:
        result = {
            "inputs": sum(int(str(each.get("inputs", 0))) for each in TARGETS.values()),
            "seconds": time.monotonic() - BEGAN,
            "failed": [name for name, each in TARGETS.items() if each.get("outcome") != "passed"],
            "targets": TARGETS,
            "commit": commit(),
            "machine": machine(),
            "versions": versions(),
        }
        write_json(Path(file), result)
