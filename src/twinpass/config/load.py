"""From TOML to a checked :class:`Config`; all faults are reported at once, each with file, key and remedy."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from twinpass.config.automatic import spell_out, watched
from twinpass.config.checks import conflicts
from twinpass.config.engines import LANES
from twinpass.config.learner import Learner, chosen, reached
from twinpass.config.schema import SECTIONS, Config, Section
from twinpass.config.tasks import TaskSettings, whole
from twinpass.errors import ConfigError, ExtensionError
from twinpass.model.defaults import Defaults
from twinpass.model.source import absolute
from twinpass.model.trainable import Trainable
from twinpass.settings import LONGEST, meant
from twinpass.task.sources.read import located
from twinpass.train.automatic import AUTO
from twinpass.train.earlier import current, taken_out

Values = dict[str, dict[str, Any]]

LACKING = {
    ("task", "options"): (
        '; name the answers to choose from, such as [" bad", " good"], or the text to write: completion = "{answer}", or the functions '
        "that judge it: rewards"
    )
}
"""What may have been meant where a key is missing, by section and key."""

SOURCES = ("train", "eval", "path")
"""Keys of the section [task] that name sources of rows, relative to the configuration file; [model] path may be, too."""

FUNCTIONS = "rewards"
"""The key of the section [task] that names functions, those in files relative to the configuration file."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, apply ``section.key=value`` overrides, check everything.

    Raises:
        ConfigError: with every problem found.
    """
    return _checked(_read(path), path, overrides)


def load_run(run: Path, overrides: Sequence[str] = (), *, engine: bool = True) -> Config:
    """The same of a run's folder, which an earlier version may have written; without its ``engine``, the run is used on the embedded one.

    Raises:
        ConfigError: with every problem found.
    """
    path = run / "config.toml"
    values = current(_read(path))
    return _checked(values if engine else {**values, "engine": {}}, path, overrides, begun=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}; give the path of a TOML file"]) from error
    except RecursionError as error:
        raise ConfigError(str(path), ["not valid TOML: nested too deep to be read"]) from error
    except ValueError as error:
        raise ConfigError(str(path), [f"not valid TOML: {clip(str(error))}"]) from error


def _checked(values: dict[str, Any], path: Path, overrides: Sequence[str], *, begun: bool = False) -> Config:
    problems = [problem for override in overrides if (problem := _override(values, override))]
    try:
        return parse(values, str(path), path.parent, problems, begun=begun)
    except RecursionError as error:
        raise ConfigError(str(path), ["a value is nested too deep to be read"]) from error


def clip(text: str) -> str:
    """A text that fits a message."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text):,} characters)"


def portable(config: Config) -> dict[str, Any]:
    """A configuration's values with paths below the working directory relative to it, for results that others read."""
    values = deepcopy(dict(config.values))
    _each_source(values["task"], _shortest)
    values["model"]["path"] = _shortest("path", values["model"]["path"])
    if isinstance(given := values["task"].get(FUNCTIONS), list):
        values["task"][FUNCTIONS] = [_shortest(FUNCTIONS, name) for name in given]
    return values


def handed_on(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's values with rows, functions and folders by their names alone, for people who have other folders; the model stays."""
    own = deepcopy(dict(values))
    task = own.get("task", {})
    _each_source(task, lambda _, name: _last(name))
    if isinstance(given := task.get(FUNCTIONS), list):
        task[FUNCTIONS] = [_last(each) if isinstance(each, str) else each for each in given]
    for section, key in (("run", "out"), ("reuse", "spill")):
        if isinstance(place := own.get(section, {}).get(key), str):
            own[section][key] = _last(place)
    return own


def _last(name: str) -> str:
    path = Path(name)
    return path.name if path.is_absolute() else name


def _shortest(key: str, name: str) -> str:
    path = Path(name)
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else name


def _each_function(task: dict[str, Any], folder: Path) -> None:
    """Put the whole path in the place of a relative one in every ``file.py:function``, and in that of a reward model's folder."""
    given = task.get(FUNCTIONS)
    given = [given] if isinstance(given, str) else given
    if isinstance(given, list):
        task[FUNCTIONS] = [_function(each, folder) if isinstance(each, str) else each for each in given]


def _function(spec: str, folder: Path) -> str:
    place, separator, name = spec.rpartition(":")
    if not separator:
        return absolute(spec, folder)
    return f"{(folder / place).resolve()}{separator}{name}" if place.endswith(".py") else spec


def _located(key: str, source: str, folder: Path, problems: list[str]) -> str:
    try:
        return located(source, folder) if source else source
    except (ValueError, OSError) as error:
        problems.append(f"[task] {key}: {source!r} is not a usable path: {error}")
        return source


def _each_source(task: dict[str, Any], change: Callable[[str, str], str]) -> None:
    """Put ``change`` of its key and name in the place of every source; what is no name stays."""
    for key in SOURCES:
        given = task.get(key)
        if isinstance(given, str):
            task[key] = change(key, given)
        elif isinstance(given, list):
            task[key] = [change(key, each) if isinstance(each, str) else each for each in given]


def parse(
    values: Mapping[str, Any], source: str, folder: Path, problems: Sequence[str] = (), *, begun: bool = False
) -> Config:
    """Check plain values; relative data paths are taken from ``folder``. A run that has ``begun`` may hold what has no effect.

    Raises:
        ConfigError: with every problem found.
    """
    found = list(problems)
    for name in values:
        if name not in SECTIONS:
            found.append(f"[{name}]: no such section{_hint(name, SECTIONS)}; there are {_list(SECTIONS)}")
    resolved: Values = {}
    built: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        given = values.get(name, {})
        if not isinstance(given, Mapping):
            found.append(f"{name}: expected a section [{name}], got {given!r}")
            continue
        resolved[name] = whole(name, deepcopy(dict(given)), None if begun else built.get("task"))
        if name == "task":
            _each_source(resolved[name], lambda key, source: _located(key, source, folder, found))
            _each_function(resolved[name], folder)
        if name == "model" and isinstance(path := given.get("path"), str):
            resolved[name]["path"] = absolute(path, folder)
        suited = _suited(built, values)
        default = _default(section, suited, built, values)
        if name == "optimizer":
            found.extend(spell_out(resolved[name], default, built.get("estimator")))
        built[name] = _build(name, section, resolved[name], suited, default, found)
        if section.optional and not given:
            del resolved[name]
    if built.get("trainable") and built.get("estimator"):
        built["trainable"] = reached(built["trainable"], built["estimator"])
    if built.get("task"):
        found += built["task"].problems()
    found += conflicts(built, _suited(built, values), begun=begun)
    if not found:
        found += built["engine"].lacks(built, begun=begun)
    if found:
        raise ConfigError(source, [clip(problem) for problem in found])
    return Config(**built, source=source, values=resolved, reason=_learner(built["task"], values).reason)


def section_of(name: str, given: Mapping[str, Any], problems: list[str]) -> Any:
    """What one section says by itself; None, if there are ``problems``, which it adds."""
    section, suited = SECTIONS[name], Trainable.defaults
    return _build(name, section, deepcopy(dict(given)), suited, _default(section, suited, {}, {name: given}), problems)


def _suited(built: Mapping[str, Any], values: Mapping[str, Any]) -> Defaults:
    """Values for keys that are left out: those of the learner, or what suits the task and the kind of weights. Steps that are given are all taken."""
    task: TaskSettings | None = built.get("task")
    trainable: type[Trainable] | Trainable = built.get("trainable") or Trainable
    suited = _learner(task, values).defaults
    suited = suited or (trainable.defaults if task is None else task.suited(trainable))
    if getattr(built.get("estimator"), "measures_length", False):
        suited = replace(suited, lr=1.0)
    optimizer = values.get("optimizer")
    if not isinstance(optimizer, Mapping):
        return suited
    suited = replace(suited, patience=0) if "steps" in optimizer else suited
    ends_by_itself = optimizer.get("steps") == AUTO or optimizer.get("schedule") == "plateau"
    return watched(suited) if ends_by_itself else suited


def _learner(task: TaskSettings | None, values: Mapping[str, Any]) -> Learner:
    """What the whole configuration learns by."""
    return chosen(task, values, probing=_probing(values))


def _probing(values: Mapping[str, Any]) -> bool:
    """Whether something is asked for that probes alone can have: an approximation, other noise, or an objective without a derivative."""
    engine = values.get("engine")
    if isinstance(engine, Mapping) and any(engine.get(key, usual) != usual for key, usual in LANES.items()):
        return True
    return _says(values, "reuse", "approximate", True) or _says(values, "objective", "differentiable", False)


def _says(values: Mapping[str, Any], name: str, trait: str, value: bool) -> bool:
    """Whether the kind that a section names has a trait."""
    given, section = values.get(name), SECTIONS[name]
    kind = given.get(section.key) if isinstance(given, Mapping) and section.key else None
    try:
        return isinstance(kind, str) and kind in section.kinds and getattr(section.kinds[kind], trait, None) is value
    except ExtensionError:
        return False


def _default(section: Section, suited: Defaults, built: Mapping[str, Any], values: Mapping[str, Any]) -> str | None:
    """The kind of a section that names none."""
    if section.suited_kind is not None:
        return str(getattr(suited, section.suited_kind))
    return section.default(built, values) if callable(section.default) else section.default


def _build(
    name: str, section: Section, given: dict[str, Any], suited: Defaults, default: str | None, problems: list[str]
) -> Any:
    kind = ""
    options = dict(given)
    if section.optional and not given:
        return None
    if section.key is not None:
        named = options.pop(section.key, default)
        if not isinstance(named, str) or named not in section.kinds:
            problem = f"[{name}] {section.key}: " + ("is missing" if named is None else f"there is no {named!r}")
            problems.append(f"{problem}{_hint(str(named), section.kinds)}; choose from {_list(section.kinds)}")
            return None
        kind = given[section.key] = named
    try:
        chosen_class = section.kinds[kind]
    except ExtensionError as error:
        problems.append(f"[{name}] {section.key}: {error}")
        return None
    names = [field.name for field in fields(chosen_class)]
    problems += taken_out(name, options, names)
    along = getattr(chosen_class, "along_probes", None)
    if along is None:
        along = not chosen_class.whole if hasattr(chosen_class, "whole") else suited.along_probes
    suits = dict(section.suited) if along == suited.along_probes else {}
    if getattr(chosen_class, "scale_free", False):
        suits.pop("lr", None)
    if section.together and not suits.keys().isdisjoint(given):
        suits = {}
    for key, name_there in suits.items():
        if key in names and key not in given and (value := getattr(suited, name_there)) is not None:
            given[key] = options[key] = value
    for key in set(section.nested) & set(options):
        before = len(problems)
        options[key] = _nested(f"{name}.{key}", section, given[key], suited, problems)
        if len(problems) > before:
            return None
    try:
        return chosen_class(**options)
    except ValidationError as error:
        problems += [_explain(name, names, dict(fault)) for fault in error.errors()]
        return None


def _nested(name: str, section: Section, given: Any, suited: Defaults, problems: list[str]) -> Any:
    """Build what a table, or each of an array of tables, says."""
    if isinstance(given, list):
        return tuple(_nested(f"{name}.{i}", section, each, suited, problems) for i, each in enumerate(given))
    if not isinstance(given, dict):
        problems.append(f"[{name}]: expected a table such as {{ {section.key} = ... }}, got {given!r}")
        return None
    return _build(name, section, given, suited, section.default if isinstance(section.default, str) else None, problems)


def _explain(section: str, names: Sequence[str], fault: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return (
            f"[{section}] {key}: no such key{_hint(key, names) or _elsewhere(section, key)}; there are {_list(names)}"
        )
    if fault["type"] in ("missing", "missing_argument"):
        return f"[{section}] {key}: is missing{LACKING.get((section, key), '')}"
    if fault["type"] == "value_error":
        return f"[{section}] {fault['ctx']['error']}"
    message = str(fault["msg"])
    return f"[{section}] {key}: {message[0].lower()}{message[1:]}, got {fault['input']!r}"


def _elsewhere(section: str, key: str) -> str:
    """Which kinds of a section have a key that this one has not."""
    family = SECTIONS.get(section.partition(".")[0])
    if family is None or family.key is None or "." in key:
        return ""
    having = [name for name, kind in family.kinds.items() if key in (field.name for field in fields(kind))]
    return f" here, but with {family.key} = {' or '.join(map(repr, having))}" if having else ""


def _override(values: dict[str, Any], override: str) -> str | None:
    target, separator, text = override.partition("=")
    section, dot, key = target.strip().partition(".")
    if not separator or not dot:
        return f"--set {override}: expected section.key=value, such as optimizer.lr=1e-3"
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    keys = values.setdefault(section, {})
    if not isinstance(keys, dict):
        return f"--set {override}: {section} is not a section in the file; write it as [{section}]"
    keys[key] = value
    return None


def _hint(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    return f" (did you mean {close!r}?)" if (close := meant(name, known)) else ""


def _list(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(names)
