"""Reward functions as people have them, and one way to call them all: TRL's.

A function of TRL's form is called with keywords: ``prompts, completions, completion_ids, trainer_state, log_extra, log_metric`` and a list
for every column of the rows but ``prompt``; it returns a number, or None or NaN where it does not apply, for each completion. Functions of
other forms are told by the names of their arguments and called once a completion:

======================  ==================================================================
verl                    ``compute_score(data_source, solution_str, ground_truth, extra_info)``
es-at-scale             ``reward_function(output, target)``, which returns (label, reward)
verifiers               arguments by name, among ``prompt, completion, answer, state`` and columns
======================  ==================================================================

A reward model is one, too (:mod:`twinpass.objective.reward_models`), and so is its name.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpass.errors import RewardError
from twinpass.model.source import absolute, is_path
from twinpass.objective.awaiting import awaited
from twinpass.objective.importing import imported

if TYPE_CHECKING:
    from twinpass.objective.reward_models import RewardModel

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""What a function of TRL's form is given beside the columns."""

TEXTS = {"prompts", "completions", "completion_ids"}
"""Arguments that no other form has."""

_ENVIRONMENTS = "environments"


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """A function in TRL's form, under the ``name`` that its metrics go by; it ``needs`` these arguments.

    ``source`` is where another process has it from: the function itself, or a name as :func:`load_reward` takes it. ``waits``: it is a
    coroutine of TRL's form, and mostly waits for others. ``judge`` is the reward model that is called, if it is one.
    """

    name: str
    call: Callable[..., Any]
    needs: tuple[str, ...]
    source: Any = None
    waits: bool = False
    judge: "RewardModel | None" = None

    @property
    def code(self) -> str:
        """Its text, or that of the file which it was named by, or the hash of a model's weights; its name, where there is none of these."""
        if self.judge is not None:
            return str(self.judge.code)
        try:
            if not isinstance(self.source, str):
                return inspect.getsource(_bare(self.source))
            place = self.source.rpartition(":")[0]
            file = place if place.endswith(".py") else str(sys.modules[place].__file__)
            return Path(file).read_text(encoding="utf-8")
        except (TypeError, OSError, ValueError, KeyError):
            return self.name

    @classmethod
    def of(cls, function: Callable[..., Any], name: str = "") -> "RewardFunction":
        """Any of the forms above.

        Raises:
            RewardError: it has none of them.
        """
        if (judge := _judging(function)) is not None:
            return cls(name or judge.__name__, judge, (), function, judge=judge)
        named = name or getattr(function, "__name__", "") or _name(_bare(function))
        parameters = _parameters(function)
        open_ = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        plain = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        needs = [n for n, p in plain.items() if p.default is p.empty]
        names = tuple(plain)
        if TEXTS & plain.keys() or (open_ and not {"completion", "solution_str", "output"} & plain.keys()):
            taken = None if open_ else names
            columns = tuple(n for n in needs if n not in GIVEN)
            return cls(
                named, _filtered(function, taken), columns, function, inspect.iscoroutinefunction(_bare(function))
            )
        if "solution_str" in plain:
            columns = tuple(n for n in needs if n not in ("solution_str", "data_source", "ground_truth", "extra_info"))
            if "ground_truth" in needs:
                columns = (*columns, "ground_truth")
            return cls(named, _each(_verl(function), _score), columns, function)
        if names[:2] == ("output", "target"):
            return cls(named, _each(_es_at_scale(function), _second), ("target",), function)
        if "completion" in plain:
            columns = tuple(n for n in needs if n not in ("prompt", "completion", "state"))
            return cls(named, _each(_verifiers(function, None if open_ else names), _itself), columns, function)
        raise RewardError(
            f"reward {named!r} takes ({', '.join(parameters)}): expected 'completions' as TRL's reward functions do, "
            "'solution_str' (verl), 'output, target' (es-at-scale) or 'completion' (verifiers); "
            "a function that makes rewards has to be called: name what it returns"
        )

    def require(self, columns: Sequence[str]) -> None:
        """Refuse rows that lack what the function asks for.

        Raises:
            RewardError: naming the function and what is missing.
        """
        missing = [name for name in self.needs if name not in columns]
        if _ENVIRONMENTS in missing:
            raise RewardError(
                f"reward {self.name!r} asks for {_ENVIRONMENTS}, and texts are written at once here, without any; judge the completions alone"
            )
        if missing:
            raise RewardError(
                f"reward {self.name!r} asks for {', '.join(missing)}, and the rows have only {', '.join(columns) or 'a prompt'}; "
                "add the column, or give the argument a default"
            )


def load_reward(spec: str, folder: Path = Path()) -> RewardFunction:
    """The function that ``file.py:function`` (beside ``folder``) or ``package.module:function`` names, or the reward model of a folder or the hub.

    Raises:
        RewardError: there is no such file, module, function or model, or it cannot be loaded.
    """
    if _names_a_model(spec, folder):
        from twinpass.objective.reward_models import RewardModel

        place = absolute(spec, folder)
        return replace(RewardFunction.of(RewardModel.named(place)), source=place)
    place, separator, name = spec.rpartition(":")
    if not separator or not place or not name.isidentifier():
        raise RewardError(
            f"reward {spec!r}: expected file.py:function, package.module:function, or a reward model's folder or name on the hub{_meant(spec)}"
        )
    module = imported(spec, place, folder)
    function = getattr(module, name, None)
    if not callable(function):
        known = [own for own, value in vars(module).items() if inspect.isfunction(value) and not own.startswith("_")]
        raise RewardError(f"reward {spec!r}: {place} has no function {name!r}; there are {', '.join(known) or 'none'}")
    where = f"{(folder / place).resolve()}:{name}" if place.endswith(".py") else spec
    return replace(RewardFunction.of(function, name), source=where)


def _names_a_model(spec: str, folder: Path) -> bool:
    if ":" in spec or spec.endswith(".py"):
        return False
    return is_path(spec) or spec.count("/") == 1 or (bool(spec) and (folder / spec).is_dir())


def _judging(function: Any) -> "RewardModel | None":
    """The reward model that something is, or is the network of."""
    if "torch" not in sys.modules:
        return None
    from twinpass.objective.reward_models import RewardModel

    if isinstance(function, sys.modules["torch"].nn.Module):
        return RewardModel.beside(function)
    return function if isinstance(function, RewardModel) else None


def _meant(spec: str) -> str:
    """What a name of another form may have been meant to be."""
    module, _, name = spec.rpartition(".")
    if spec.isidentifier():
        return f"; TRL's own are trl.rewards:NAME, so perhaps 'trl.rewards:{spec}'"
    if name != "py" and name.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return f"; did you mean '{module}:{name}'?"
    return ""


def named_apart(functions: Sequence[RewardFunction]) -> list[RewardFunction]:
    """The functions, each under a name of its own: of several with one name, such as lambdas, the second gets ``_2`` behind it.

    Raises:
        RewardError: one is there twice.
    """
    found = dict[str, RewardFunction]()
    for function in functions:
        if any(function.source is known.source or _one_name(function.source, known.source) for known in found.values()):
            raise RewardError(f"reward {function.name!r} is there twice; name it once, with a weight")
        names = chain([function.name], (f"{function.name}_{number}" for number in count(2)))
        name = next(name for name in names if name not in found)
        found[name] = replace(function, name=name)
    return list(found.values())


def _one_name(one: Any, other: Any) -> bool:
    return isinstance(one, str) and one == other


def require_distinct(functions: Sequence[RewardFunction]) -> None:
    """Refuse two functions of one name, which no metric could tell apart.

    Raises:
        RewardError: naming them.
    """
    names = [function.name for function in functions]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RewardError(
            f"two rewards are called {twice[0]!r}, and metrics go by names; rename one, or set its __name__"
        )


def _bare(function: Any) -> Any:
    """What lies within ``functools.partial``."""
    while isinstance(function, partial):
        function = function.func
    return function


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    """Those that are left of a partial's, also where ``functools.update_wrapper`` has named it after its function."""
    return inspect.signature(function, follow_wrapped=not isinstance(function, partial)).parameters


def _filtered(function: Callable[..., Any], names: tuple[str, ...] | None) -> Callable[..., Any]:
    """The function, given what it takes."""

    def call(**given: Any) -> Any:
        found = function(**{n: v for n, v in given.items() if names is None or n in names})
        return awaited([found])[0]

    return call


def _each(one: Callable[[Mapping[str, Any]], Any], reward: Callable[[Any], Any]) -> Callable[..., Any]:
    """One call a completion, with that completion's own values; coroutines are waited for side by side. ``reward`` of what each returns."""

    def call(prompts: Sequence[Any], completions: Sequence[Any], **given: Any) -> list[Any]:
        columns = {name: values for name, values in given.items() if name not in GIVEN}
        found = [
            one({**{n: v[i] for n, v in columns.items()}, "prompt": prompts[i], "completion": completions[i]})
            for i in range(len(completions))
        ]
        return [reward(each) for each in awaited(found)]

    return call


def _verl(function: Callable[..., Any]) -> Callable[[Mapping[str, Any]], Any]:
    names = _parameters(function)

    def call(row: Mapping[str, Any]) -> Any:
        known = {
            "data_source": row.get("data_source", ""),
            "solution_str": text_of(row["completion"]),
            "ground_truth": row.get("ground_truth"),
            "extra_info": row.get("extra_info"),
        }
        return function(**{name: value for name, value in {**row, **known}.items() if name in names})

    return call


def _score(found: Any) -> Any:
    return found["score"] if isinstance(found, Mapping) else found


def _es_at_scale(function: Callable[..., Any]) -> Callable[[Mapping[str, Any]], Any]:
    def call(row: Mapping[str, Any]) -> Any:
        return function(text_of(row["completion"]), row["target"])

    return call


def _second(found: Any) -> Any:
    return found[1] if isinstance(found, tuple) else found


def _itself(found: Any) -> Any:
    return found


def _verifiers(function: Callable[..., Any], names: tuple[str, ...] | None) -> Callable[[Mapping[str, Any]], Any]:
    def call(row: Mapping[str, Any]) -> Any:
        given = {"state": {}, **row}
        return function(**{name: value for name, value in given.items() if names is None or name in names})

    return call


def text_of(completion: Any) -> str:
    """A completion's text, also where it is a list of messages."""
    return completion if isinstance(completion, str) else "".join(str(message["content"]) for message in completion)
