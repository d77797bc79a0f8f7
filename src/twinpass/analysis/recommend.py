"""From a sweep to advice: the policy, eps and dtype to train with, and why."""

from collections.abc import Mapping, Sequence
from typing import Any

LARGEST_ERROR = 0.1
"""Relative error of g that a recommended setting may have."""

HIT_TARGET = 0.8
"""Accepted hit rate that a recommended reflection must have."""


def recommend(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fastest setting whose gradient is near enough, at the eps of its least error.

    Saved compute counts within a dtype, and the seconds of a probe between them.
    """
    usable = [row for row in rows if _error(row) <= LARGEST_ERROR and _hits(row) and not _worse_than_exact(row)]
    if not usable:
        best = min(rows, key=_error)
        return {
            **_setting(best),
            "reason": f"nothing measured here has an error of g within {LARGEST_ERROR:g}; this comes nearest, with {_error(best):.2g}",
        }
    by_setting: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in usable:
        key = (row["policy"], row["dtype"])
        if key not in by_setting or _error(row) < _error(by_setting[key]):
            by_setting[key] = row
    dtype = min(by_setting.values(), key=lambda row: row["seconds_per_probe"])["dtype"]
    chosen = max((row for row in by_setting.values() if row["dtype"] == dtype), key=lambda row: row["compute_saved"])
    reason = (
        f"{chosen['compute_saved']:.0%} less forward compute than exact, error of g {_error(chosen):.2g} over "
        f"{chosen['probes']} probes, least at this eps"
    )
    if chosen["policy"] == "exact":
        reason = f"no approximation saved compute within an error of {LARGEST_ERROR:g}; exact is nearest the derivative at this eps"
    return {**_setting(chosen), "reason": reason}


def _setting(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"policy": row["policy"], "eps": row["eps"], "dtype": row["dtype"]}


def _error(row: Mapping[str, Any]) -> float:
    """The largest of what the policy adds and what eps and dtype add."""
    return float(max(row["relative_error"], row["reference_error"] or 0.0))


def _hits(row: Mapping[str, Any]) -> bool:
    accepted = row["accepted_hit_rate"]
    return accepted is None or bool(accepted >= HIT_TARGET)


def _worse_than_exact(row: Mapping[str, Any]) -> bool:
    return bool(row["policy"] != "exact" and row["compute_saved"] <= 0)
