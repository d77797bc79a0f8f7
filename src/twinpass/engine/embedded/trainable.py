"""Which weights are trained: every one, some by name or layer, or adapters beside them."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as settings
from torch import Tensor
from transformers import PreTrainedModel

from twinpass.engine.embedded.adapter import LoraAdapter, LoraWeights
from twinpass.errors import ModelError
from twinpass.perturb.parameters import Parameters
from twinpass.settings import STRICT, Count, Index, Positive, Text, Texts


@dataclass(frozen=True)
class Trained:
    """The trained tensors, and the adapter they belong to if there is one."""

    parameters: Parameters
    adapter: LoraAdapter | None = None

    @property
    def adapters(self) -> dict[str, LoraWeights]:
        """Adapters by the path of their module."""
        return {} if self.adapter is None else self.adapter.modules

    def save(self, model: PreTrainedModel, run: Path) -> Path:
        """Write ``adapter/`` (PEFT) or ``model/`` (Hugging Face) into the run folder."""
        if self.adapter is not None:
            self.adapter.save(run / "adapter", model.name_or_path or "")
            return run / "adapter"
        model.save_pretrained(run / "model")
        return run / "model"


class Trainable(ABC):
    """A choice of weights."""

    @abstractmethod
    def attach(self, model: PreTrainedModel, seed: int) -> Trained:
        """Pick the tensors out of ``model``, or make new ones from ``seed``."""


@settings(frozen=True, config=STRICT)
class Full(Trainable):
    """Every parameter of the model."""

    def attach(self, model: PreTrainedModel, seed: int) -> Trained:
        return Trained(Parameters(_named(model, lambda name: True)))


@settings(frozen=True, config=STRICT)
class Pattern(Trainable):
    """Parameters whose name matches a regular expression anywhere (``re.search``)."""

    pattern: Text

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern: {self.pattern!r} is not a regular expression: {error}") from error

    def attach(self, model: PreTrainedModel, seed: int) -> Trained:
        expression = re.compile(self.pattern)
        chosen = _named(model, lambda name: expression.search(name) is not None)
        if not chosen:
            some = ", ".join(list(dict(model.named_parameters()))[:4])
            raise ModelError(f"trainable.pattern {self.pattern!r} matches none of the model's parameters ({some}, ...)")
        return Trained(Parameters(chosen))


@settings(frozen=True, config=STRICT)
class Layers(Trainable):
    """The decoder layers ``first`` to ``last`` - 1, counted from 0; embeddings and head stay as they are."""

    first: Index
    last: Count

    def __post_init__(self) -> None:
        if self.first >= self.last:
            raise ValueError(f"first: layers {self.first} to {self.last} - 1 are none; last must be larger than first")

    def attach(self, model: PreTrainedModel, seed: int) -> Trained:
        count = int(model.config.get_text_config().num_hidden_layers)
        if not 0 <= self.first < self.last <= count:
            raise ModelError(f"trainable: layers {self.first} to {self.last} are not in the model's range 0 to {count}")
        prefix = _layers_prefix(model, count)

        def inside(name: str) -> bool:
            index = name.removeprefix(prefix).split(".", 1)[0]
            return name.startswith(prefix) and self.first <= int(index) < self.last

        return Trained(Parameters(_named(model, inside)))


@settings(frozen=True, config=STRICT)
class Lora(Trainable):
    """Low-rank adapters of ``rank`` on the ``targets``, scaled by ``alpha / rank``; the base model stays untouched."""

    rank: Count = 8
    alpha: Positive = 16.0
    targets: Texts = ("q_proj", "k_proj", "v_proj", "o_proj")

    def attach(self, model: PreTrainedModel, seed: int) -> Trained:
        adapter = LoraAdapter(model, self.rank, self.alpha, self.targets, seed)
        return Trained(Parameters(adapter.tensors), adapter)


def _named(model: PreTrainedModel, chosen: Callable[[str], bool]) -> dict[str, Tensor]:
    """Parameters by name; a tied one counts if any of its names is chosen, and stands under its first name."""
    names: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        first = names.setdefault(id(tensor), name)
        if chosen(name):
            tensors[first] = tensor
    order = [name for name in names.values() if name in tensors]
    return {name: tensors[name] for name in order}


def _layers_prefix(model: PreTrainedModel, count: int) -> str:
    for path, module in model.named_modules():
        children: Any = list(module.named_children())
        if len(children) == count and [name for name, _ in children] == [str(i) for i in range(count)]:
            return f"{path}."
    raise ModelError(f"{type(model).__name__} has no list of {count} decoder layers; use trainable.kind = 'pattern'")
