"""Which weights are trained: every one, some by name or layer, or adapters beside them."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from twinpass.errors import ModelError
from twinpass.settings import STRICT, Count, Index, Positive, Text, Texts

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from twinpass.model.lora import LoraAdapter, LoraWeights
    from twinpass.perturb.parameters import Parameters


@dataclass(frozen=True)
class Trained:
    """The trained tensors, and the adapter they belong to if there is one."""

    parameters: "Parameters"
    adapter: "LoraAdapter | None" = None
    activated: bool = False

    @property
    def adapters(self) -> "dict[str, LoraWeights]":
        """Adapters by the path of their module."""
        return {} if self.adapter is None else self.adapter.modules

    def save(self, model: "PreTrainedModel", run: Path) -> Path:
        """Write ``adapter/`` (PEFT) or ``model/`` (Hugging Face) into the run folder."""
        if self.adapter is not None:
            if self.activated and not self.adapter.invocation:
                raise ModelError("an activated adapter is saved with its invocation tokens: give them to the engine")
            self.adapter.save(run / "adapter", model.name_or_path or "")
            return run / "adapter"
        model.save_pretrained(run / "model")
        return run / "model"


@dataclass(frozen=True)
class Defaults:
    """What suits a choice of weights, where a configuration or a call of ``finetune`` does not say (docs/defaults.md)."""

    eps: float
    lr: float
    steps: int
    batch_size: int = 16


WEIGHTS = Defaults(eps=1e-3, lr=3e-5, steps=120)
ADAPTERS = Defaults(eps=1e-2, lr=4e-3, steps=400)


class Trainable(ABC):
    """A choice of weights, and the settings it is trained with by default.

    An ``adapter`` stands beside the model, whose own weights stay; if ``activated``, it acts from the activation point on.
    """

    defaults: ClassVar[Defaults] = WEIGHTS
    adapter: ClassVar[bool] = False
    activated: ClassVar[bool] = False

    @property
    def upper(self) -> bool | None:
        """Whether lower layers stay as they are, in some steps at least; None: that depends on the model."""
        return False

    def block_at(self, step: int) -> int | None:
        """The block that ``step`` (counted from 0) trains; None: everything at once."""
        return None

    @abstractmethod
    def attach(self, model: "PreTrainedModel", seed: int, invocation: tuple[int, ...] = ()) -> Trained:
        """Pick the tensors out of ``model``, or make new ones from ``seed``, activated by ``invocation``."""


@settings(frozen=True, config=STRICT)
class Full(Trainable):
    """Every parameter of the model."""

    def attach(self, model: "PreTrainedModel", seed: int, invocation: tuple[int, ...] = ()) -> Trained:
        from twinpass.perturb.parameters import Parameters

        return Trained(Parameters(_named(model, lambda name: True)))


@settings(frozen=True, config=STRICT)
class Pattern(Trainable):
    """Parameters whose name matches a regular expression anywhere (``re.search``)."""

    pattern: Text

    @property
    def upper(self) -> None:
        return None

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern: {self.pattern!r} is not a regular expression: {error}") from error

    def attach(self, model: "PreTrainedModel", seed: int, invocation: tuple[int, ...] = ()) -> Trained:
        from twinpass.perturb.parameters import Parameters

        expression = re.compile(self.pattern)
        chosen = _named(model, lambda name: expression.search(name) is not None)
        if not chosen:
            some = ", ".join(list(dict(model.named_parameters()))[:4])
            raise ModelError(f"trainable.pattern {self.pattern!r} matches none of the model's parameters ({some}, ...)")
        return Trained(Parameters(chosen))


@settings(frozen=True, config=STRICT)
class Layers(Trainable):
    """The decoder layers ``first`` to ``last`` - 1, counted from 0; embeddings and head stay as they are.

    With ``block``, so many layers take turns, ``every`` steps each, from the top down and round again.
    """

    first: Index
    last: Count
    block: Index = 0
    every: Count = 1

    @property
    def upper(self) -> bool:
        return self.first > 0 or self.block > 0

    def __post_init__(self) -> None:
        if self.first >= self.last:
            raise ValueError(f"first: layers {self.first} to {self.last} - 1 are none; last must be larger than first")
        if self.every > 1 and not self.block:
            raise ValueError(
                f"every: {self.every} steps a block, but there are no blocks; set block, the layers of one"
            )

    def attach(self, model: "PreTrainedModel", seed: int, invocation: tuple[int, ...] = ()) -> Trained:
        from twinpass.model.causal import CausalModel
        from twinpass.perturb.parameters import Parameters

        causal = CausalModel(model)
        if self.last > causal.depth:
            raise ModelError(
                f"trainable: layers {self.first} to {self.last} are not in the model's range 0 to {causal.depth}"
            )
        prefix = f"{causal.layers_path}."

        def inside(name: str) -> bool:
            index = name.removeprefix(prefix).split(".", 1)[0]
            return name.startswith(prefix) and self.first <= int(index) < self.last

        tensors = _named(model, inside)
        blocks = {name: (self.last - 1 - causal.layer_of(name)) // self.block for name in tensors if self.block}
        return Trained(Parameters(tensors, blocks))

    def block_at(self, step: int) -> int | None:
        return step // self.every % -(-(self.last - self.first) // self.block) if self.block else None


@settings(frozen=True, config=STRICT)
class Lora(Trainable):
    """Low-rank adapters of ``rank`` on the ``targets``, scaled by ``alpha / rank``; the base model stays untouched.

    They sit on the decoder layers from ``first`` on, counted from 0.
    """

    defaults: ClassVar[Defaults] = ADAPTERS
    adapter: ClassVar[bool] = True

    rank: Count = 8
    alpha: Positive = 16.0
    targets: Texts = ("q_proj", "k_proj", "v_proj", "o_proj")
    first: Index = 0

    @property
    def upper(self) -> bool:
        return self.first > 0

    def attach(self, model: "PreTrainedModel", seed: int, invocation: tuple[int, ...] = ()) -> Trained:
        from twinpass.model.lora import LoraAdapter
        from twinpass.perturb.parameters import Parameters

        adapter = LoraAdapter(model, self.rank, self.alpha, self.targets, seed, first=self.first)
        return Trained(Parameters(adapter.tensors, together=True), adapter)


@settings(frozen=True, config=STRICT)
class Activated(Lora):
    """Activated LoRA (Greenewald et al. 2025, arXiv 2504.12397): adapters that act from the activation point on.

    That is where the task's suffix begins, or else the last place in the prompt where the token ids ``invocation``
    stand. Every token before it is read by the base model, so that its keys and values never change.
    """

    activated: ClassVar[bool] = True

    invocation: Annotated[tuple[Index, ...], Field(strict=False)] = ()

    def attach(self, model: "PreTrainedModel", seed: int, invocation: tuple[int, ...] = ()) -> Trained:
        from twinpass.model.lora import LoraAdapter
        from twinpass.perturb.parameters import Parameters

        adapter = LoraAdapter(model, self.rank, self.alpha, self.targets, seed, invocation, self.first)
        return Trained(Parameters(adapter.tensors, together=True), adapter, activated=True)


def _named(model: "PreTrainedModel", chosen: Callable[[str], bool]) -> "dict[str, Tensor]":
    """Parameters by name; a tied one counts if any of its names is chosen, and stands under its first name."""
    names: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        first = names.setdefault(id(tensor), name)
        if chosen(name):
            tensors[first] = tensor
    order = [name for name in names.values() if name in tensors]
    return {name: tensors[name] for name in order}
