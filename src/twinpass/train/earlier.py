"""Run folders of earlier versions, read as they would be written now."""

from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any

from twinpass.reuse.base import Policy
from twinpass.schedule.epsilon import Epsilon

MOVED: Mapping[tuple[str, str], str] = {("estimator", "noise"): "engine", ("estimator", "perturbation"): "engine"}
"""Keys by their former section, and the section that has them now."""

EVERYWHERE = {"targets": ("q_proj", "k_proj", "v_proj", "o_proj"), "first": 0}
"""Where activated adapters sat when nothing was said, before a run wrote down where they do."""


def current(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's configuration says, in today's sections; what is damaged stays as it is."""
    now = dict(values)
    for (before, key), after in MOVED.items():
        old, new = now.get(before), now.get(after, {})
        if isinstance(old, Mapping) and isinstance(new, Mapping) and key in old:
            now[before] = {name: value for name, value in old.items() if name != key}
            now[after] = {**new, key: old[key]}
    trained = now.get("trainable")
    if isinstance(trained, Mapping) and trained.get("kind") == "activated" and EVERYWHERE.keys().isdisjoint(trained):
        now["trainable"] = {**trained, **EVERYWHERE}
    return now


def taken_out(section: str, keys: dict[str, Any], known: Collection[str]) -> list[str]:
    """Take keys of a section out that another section has now, and return where they went; ``known`` are its own."""
    moved = [key for key in keys if key not in known and (section, key) in MOVED]
    return [
        f"[{section}] {key}: moved to [{now}]; say it there: [{now}] {key} = {keys.pop(key)!r}"
        for key in moved
        for now in [MOVED[section, key]]
    ]


def completed(before: Any, now: Any, settings: Any) -> Any:
    """What a run's configuration says, with the default of each key that it lacks and one of ``now`` has: its version did not know it.

    ``settings`` are today's objects, by section, which ``now`` was written of; where one holds others, so do they. Where the kind of one
    was not written, its keys are all that tell it from another, and none of them may be missing.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        lacking = [key for key in now if key not in before]
        defaults = _defaults(settings) | (_kind(settings) if len(lacking) == 1 else {})
        whole = {key: completed(value, now.get(key), _own(settings, key)) for key, value in before.items()}
        return {**whole, **{key: defaults[key] for key in lacking if key in defaults}}
    several = isinstance(before, list) and isinstance(now, list) and isinstance(settings, list | tuple)
    if several and len(before) == len(now) == len(settings):
        return [completed(*each) for each in zip(before, now, settings, strict=True)]
    return before


def _own(settings: Any, key: str) -> Any:
    """The value of one key or field, if there is one of that name."""
    if isinstance(settings, Mapping):
        return settings.get(key)
    known = is_dataclass(settings) and any(field.name == key for field in fields(settings))
    return getattr(settings, key) if known else None


def _kind(settings: Any) -> dict[str, str]:
    """The key that says of what class an object is, of those that once were written without."""
    name = type(settings).__name__
    return {"policy": name} if isinstance(settings, Policy) else {"kind": name} if isinstance(settings, Epsilon) else {}


def _defaults(settings: Any) -> dict[str, Any]:
    """What an object's fields are where they are left out, by name."""
    if not is_dataclass(settings):
        return {}
    made = {field.name: field.default_factory() for field in fields(settings) if field.default_factory is not MISSING}
    made |= {field.name: field.default for field in fields(settings) if field.default is not MISSING}
    return {name: asdict(own) if is_dataclass(own) and not isinstance(own, type) else own for name, own in made.items()}
