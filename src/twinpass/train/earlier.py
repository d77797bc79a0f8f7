"""Run folders of earlier versions, read as they would be written now."""

from collections.abc import Mapping
from typing import Any

MOVED: Mapping[tuple[str, str], str] = {("estimator", "noise"): "engine", ("estimator", "perturbation"): "engine"}
"""Keys by their former section, and the section that has them now."""


def current(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's configuration says, in today's sections; what is damaged stays as it is."""
    now = dict(values)
    for (before, key), after in MOVED.items():
        old, new = now.get(before), now.get(after, {})
        if isinstance(old, Mapping) and isinstance(new, Mapping) and key in old:
            now[before] = {name: value for name, value in old.items() if name != key}
            now[after] = {**new, key: old[key]}
    return now
