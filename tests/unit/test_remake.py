"""Results are made again in parts: the shortest first, past failures, and what cannot be made is left with the reason."""

import re
from fnmatch import fnmatch
from pathlib import Path

import freshness
import pytest
import remake
from remake import BY_HAND, PARTS, Part

ROOT = Path(__file__).parents[2]
ALL = (Part("long", ("c",), 60), Part("short", ("a", "b"), 1), Part("middle", ("d",), 5), Part("other", ("e",), 2))


def run(
    states: dict[str, str], broken: str = "", idle: str = "", lacks: str = "", minutes: float = 1e9
) -> tuple[list[str], remake.Outcome]:
    asked = list[str]()

    def make(target: str) -> bool:
        asked.append(target)
        for part in ALL:
            if part.target == target and target not in (broken, idle):
                states.update(dict.fromkeys(part.results, "up to date"))
        return target != broken

    def why_not(part: Part) -> str | None:
        return "no such machine" if part.target == lacks else None

    return asked, remake.remake(ALL, why_not, lambda: states, make, minutes)


def test_what_is_older_or_missing_is_made_the_shortest_first() -> None:
    asked, found = run({"a": "up to date", "b": "older", "c": "unknown", "e": "up to date"})
    assert asked == ["short", "middle", "long"]
    assert found == remake.Outcome(["b", "d", "c"], {})


def test_failures_stop_nothing_and_the_next_call_goes_on() -> None:
    states: dict[str, str] = {}
    asked, found = run(states, broken="short", lacks="other")
    assert asked == ["short", "middle", "long"]
    assert found.left == {"a": "make short failed", "b": "make short failed", "e": "no such machine"}
    asked, found = run(states)
    assert asked == ["short", "other"]
    assert not found.left


def test_a_part_that_made_nothing_is_said() -> None:
    _, found = run({}, idle="other")
    assert found.left == {"e": "make other has not made it of this commit"}


def test_no_part_begins_that_would_end_too_late() -> None:
    asked, found = run({}, minutes=30)
    assert asked == ["short", "other", "middle"]
    assert found.left == {"c": "takes about 60 minutes more"}


@pytest.mark.parametrize(
    ("needs", "reason"),
    [("amx_bf16", "this processor has no AMX"), ("cuda", "no CUDA device"), ("ROWS", "give ROWS=... to make")],
)
def test_what_is_missing(needs: str, reason: str) -> None:
    part = Part("x", ("x",), 1, needs)
    assert remake.missing(part, "avx2 amx_bf16_no", {}, cuda=False) == reason
    assert remake.missing(part, "avx2 amx_bf16", {"ROWS": "file"}, cuda=True) is None


def test_every_result_is_a_part_s_or_made_by_hand() -> None:
    parts = [name for part in PARTS for name in part.results]
    assert len(parts) == len(set(parts))
    names = [file.stem for file in freshness.RESULTS.glob("*.json")]
    known = [*parts, *BY_HAND]
    assert len(names) > 20
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in known)] == []


def test_every_file_that_a_target_writes_is_a_part_s() -> None:
    """Names with variables in them are those of workloads, seeds and tasks of one's own."""
    written = set(re.findall(r"benchmarks/results/([\w-]+)\.json", (ROOT / "Makefile").read_text()))
    assert {"noise", "scale", "chaos"} < written
    assert (
        written
        - {name for part in PARTS for name in part.results}
        - {"learning-NAME", "merged-NAME", "rewards-SEED", "reward-learners-SEED", "damage"}
        == set()
    )


def test_every_part_is_a_target_and_writes_its_results() -> None:
    text = (ROOT / "Makefile").read_text()
    rules = dict(re.findall(r"^([a-z0-9%-]+):(.*\n(?:\t.*\n)+)", text, re.MULTILINE))
    for part in PARTS:
        stem = next((stem for stem in ("bench-workload-", "bench-bfloat16-") if part.target.startswith(stem)), None)
        rule = rules[part.target if stem is None else f"{stem}%"]
        for name in part.results:
            written = [name, re.sub(r"\d$", "$$seed", name), name.replace(part.target[len(stem or "") :], "$*")]
            assert any(f"benchmarks/results/{each}.json" in rule for each in written), (part.target, name)
