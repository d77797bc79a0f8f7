"""How settings are declared: frozen dataclasses that check themselves, in Python and from a configuration file."""

import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from fractions import Fraction
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

STRICT = ConfigDict(extra="forbid", strict=True, validate_default=True)
"""Unknown keys and wrong types are errors; an integer may stand for a float, nothing else is converted."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Index = Annotated[int, Field(ge=0, le=2**63 - 1)]
Layer = Annotated[int, Field(ge=-(10**6), le=10**6)]
"""A layer's number; below 0, counted from the uppermost, which is -1."""
Several = Annotated[int, Field(ge=1, le=2**14)]
"""Rows or directions of one step: more than a step could take in a day."""
Rank = Annotated[int, Field(ge=1, le=2**14)]
Scale = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
"""A factor that float32 can still multiply weights by."""
Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=1e7)]
"""What clocks of the system can count, and a run can wait for."""
NonEmpty = Annotated[str, Field(min_length=1)]
Strings = Annotated[tuple[str, ...], Field(strict=False)]
"""Several strings; a TOML array becomes a tuple."""
Targets = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
"""The same, but at least one."""


def written(names: Any) -> Any:
    """Names as rows and files have them: whole numbers and truth values as texts; what is none of these stays as it is."""
    if not isinstance(names, list | tuple):
        return names
    words = {True: "true", False: "false"}
    return tuple(
        words[each] if isinstance(each, bool) else str(each) if isinstance(each, int) else each for each in names
    )


Names = Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(written)]
"""Strings; whole numbers and truth values may stand for them."""

Kinds = Literal["outputs", "all-linear"]
"""What adapters sit on, where modules are not named: those that write into the residual stream, or all linear layers."""


def _places(value: Any) -> Any:
    several = isinstance(value, list | tuple) and bool(value) and all(isinstance(name, str) for name in value)
    if not several and value not in get_args(Kinds):
        raise ValueError(
            f'targets: expected names of modules such as ["q_proj"], "outputs" or "all-linear", got {value!r}'
        )
    return value


Sites = Annotated[Targets | Kinds, BeforeValidator(_places)]
"""Modules by name, or by what they are."""

ComputeDtype = Literal["float32", "bfloat16"]
"""What linear layers multiply in."""

Perturbation = Literal["tandem", "inplace"]
"""All lanes run in one pass; or the weights walk from lane to lane."""

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def _bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([kmgt]?)(?:i?b)?\s*", value.lower())
    if found is None:
        raise ValueError(f"expected a size such as 2GiB, 512MiB or a number of bytes, got {value!r}")
    return int(Fraction(found[1]) * _UNITS[found[2]])


Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1, le=2**44)]
"""A size in bytes, or a text such as "2GiB"; units are powers of 1,024."""


OTHERS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": "targets",
    "learning_rate": "lr",
    "max_steps": "steps",
    "num_train_steps": "steps",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "weight_decay": "decay",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps",
    "max_grad_norm": "max_norm",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warmup",
    "max_length": "window",
    "max_new_tokens": "max_tokens",
    "max_completion_length": "max_tokens",
    "num_generations": "samples",
    "reward_funcs": "rewards",
    "reward_weights": "weights",
    "output_dir": "out",
    "max_train_samples": "train_rows",
    "max_eval_samples": "eval_rows",
}
"""What PEFT, transformers and TRL call some settings."""

LONGEST = 600
"""Characters of what was given that a message shows; a value may be a megabyte of something else."""


def meant(name: str, known: Iterable[str]) -> str | None:
    """The one of the ``known`` names that stands for another's, or is nearest to a slip; None: there is none."""
    names = list(known)
    if OTHERS.get(name) in names:
        return OTHERS[name]
    return next(iter(get_close_matches(name[:LONGEST], names, 1)), None)


def unknown(name: str, known: Iterable[str]) -> str:
    """Why a setting is refused that is none, and what it may have been meant to be."""
    names = list(known)
    close = meant(name, names)
    return f"no such setting{f' (did you mean {close!r}?)' if close else ''}; there are {', '.join(names)}"


def public(settings: Any) -> Any:
    """The same class, as it is met in Python.

    Its signature has plain types, as ``help`` and editors show it: what pydantic checks by is left out. Where a keyword is no setting, a note
    below pydantic's error says which one may be meant.
    """
    if not (isinstance(settings, type) and is_dataclass(settings) and hasattr(settings, "__pydantic_fields__")):
        return settings
    start: Any = settings.__init__
    if not hasattr(start, "__wrapped__"):
        start = _knowing(settings, start)
        setattr(settings, "__init__", start)  # noqa: B010 - mypy takes no other assignment
    hints = get_type_hints(settings)
    given = [
        each.replace(annotation=hints.get(name, each.annotation))
        for name, each in signature(settings).parameters.items()
    ]
    own = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
    start.__doc__ = "Keep the values, which are checked."
    for place, parameters in ((settings, given), (start, [own, *given])):
        setattr(place, "__signature__", Signature(parameters))  # noqa: B010 - neither declares one
    return settings


def _knowing(settings: Any, start: Any) -> Any:
    names = [each.name for each in fields(settings) if each.init]

    @wraps(start)
    def checked(self: Any, *args: Any, **given: Any) -> None:
        try:
            start(self, *args, **given)
        except ValidationError as error:
            for name in given:
                if name not in names:
                    error.add_note(f"{settings.__name__}: {name}: {unknown(name, names)}")
            raise

    return checked
