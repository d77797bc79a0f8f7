"""What a run's journal begins with: what it may be resumed and replayed on, and what it has to be compared with."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from twinpass.engine.base import Engine
from twinpass.errors import JournalError
from twinpass.perturb.noise import ALGORITHM
from twinpass.train.earlier import completed, current

FINETUNE = "finetune"
"""The section of a configuration that twinpass.finetune wrote."""


def header(values: Mapping[str, Any], engine: Engine, ground: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a journal has to be replayed with; ``ground`` is what it has to be resumed on, besides (see :func:`changes`)."""
    config = _plain(values)
    below = {} if ground is None else {"ground": dict(ground)}
    return {"base": engine.base_hash, "noise": ALGORITHM, "trained": engine.trained, "config": config, **below}


GROUND = {
    "configuration": "the model's configuration is another one",
    "train": "the training rows are others",
    "held_out": "the held-out rows are others",
    "template": "the template is another one",
    "tokenizer": "the tokenizer is another one",
    "chat_template": "the chat template is another one",
    "examples": "rows are tokenised otherwise",
    "source": "twinpass itself is another version",
    "rewards": "a reward function was changed",
}
"""What a run stands on besides its model and configuration; other names are those of packages."""


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """What is no longer as it was, in words by name; a journal that does not say how it was counts as changed."""
    found = {}
    for name in now:
        if before.get(name) != now[name]:
            known = GROUND.get(name) or f"{name} was {before.get(name, 'not named')}, now {now[name]}"
            found[name] = known if name in before else f"it does not say what it stood on ({name})"
    return found


def require_same(
    journal: Path, found: Mapping[str, Any], expected: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> None:
    """Refuse to continue or replay a journal on other ground than it was written on; the device may be another.

    ``settings``: the objects that ``expected`` was written of, by section; a key that they have and the journal lacks is at its default there.

    Raises:
        JournalError: naming what differs.
    """
    causes = {
        "base": "the base model is another one (its weights differ)",
        "noise": "it was written with another noise algorithm",
        "trained": "another number of weights is trained",
        "config": "its settings are others",
    }
    for key, cause in causes.items():
        before, now = _anywhere(found.get(key)), _anywhere(expected[key])
        if before != now and (begun := _plain(completed(before, now, settings))) != now:
            which = f" ({'; '.join(_others(begun, now))})" if key == "config" else ""
            raise JournalError(
                f"{journal} does not belong to this run: {cause}{which}; restore what the run began with"
            )


def _others(before: Any, now: Any, *place: str) -> Iterator[str]:
    """What two configurations differ by, a line a key."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                yield from _others(before.get(key), now.get(key), *place, key)
    elif place:
        section, *keys = place
        yield f"[{section}] {'.'.join(keys)} was {_short(before)}, now {_short(now)}" if keys else f"[{section}]"


def _short(value: Any) -> str:
    return "not set" if value is None else textwrap.shorten(json.dumps(value), 60, placeholder="...")


def _anywhere(value: Any) -> Any:
    """A configuration without [engine] device and where a model came from: a run may go on, or be replayed, elsewhere, or by a later version."""
    if not isinstance(value, Mapping) or not isinstance(value.get("engine", {}), Mapping):
        return value
    value = {key: own for key, own in current(value).items() if key != FINETUNE}
    engine = value.get("engine", {})
    rest = {key: setting for key, setting in engine.items() if key != "device"}
    return {**{key: own for key, own in value.items() if key != "engine"}, **({"engine": rest} if rest else {})}


def _plain(values: Any) -> Any:
    """Values as a journal's line has them."""
    return json.loads(json.dumps(without_none(values) if isinstance(values, Mapping) else values))


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """What TOML has a word for: keys without a value are left out."""
    return {
        key: without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }
