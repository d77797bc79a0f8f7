"""Which weights are trained: every one, some by name or layer, or adapters beside them."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from twinpass.errors import ModelError
from twinpass.model.defaults import ADAPTERS, ATTENTION, INFORMED, OUTPUTS, WEIGHTS, Defaults
from twinpass.settings import STRICT, Count, Index, Layer, NonEmpty, Positive, Rank, Scale, Sites, Targets

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from twinpass.model.adapter import Adapter
    from twinpass.model.informed import InformedWeights
    from twinpass.model.lora import LoraWeights
    from twinpass.perturb.parameters import Parameters


@dataclass(frozen=True)
class Trained:
    """The trained tensors, and the adapter they belong to if there is one."""

    parameters: "Parameters"
    adapter: "Adapter | None" = None
    activated: bool = False

    @property
    def adapters(self) -> "Mapping[str, LoraWeights | InformedWeights]":
        """Adapters by the path of their module."""
        return {} if self.adapter is None else self.adapter.modules

    @property
    def loras(self) -> "Mapping[str, LoraWeights]":
        """LoRA adapters by the path of their module, for those who need both factors.

        Raises:
            ModelError: the adapter is of another kind.
        """
        from twinpass.model.lora import LoraWeights

        found = {path: own for path, own in self.adapters.items() if isinstance(own, LoraWeights)}
        if len(found) < len(self.adapters):
            raise ModelError("informed directions take no derivatives; use trainable.kind = 'activated'")
        return found

    def save(self, model: "PreTrainedModel", run: Path, tokenizer: "PreTrainedTokenizerBase | None" = None) -> Path:
        """Write ``adapter/`` (PEFT) or ``model/`` (Hugging Face, with the tokenizer) into the run folder.

        Raises:
            ModelError or OSError: it cannot be written.
        """
        from twinpass.model.save import save_model

        if self.adapter is not None:
            if self.activated and not self.adapter.invocation:
                raise ModelError("an activated adapter is saved with its invocation tokens: give them to the engine")
            self.adapter.save(run / "adapter", model.name_or_path or "")
            return run / "adapter"
        save_model(model, tokenizer, run / "model")
        return run / "model"


@dataclass(frozen=True)
class Fitting:
    """How directions are fitted to the task before each step (:mod:`twinpass.estimate.directions`).

    At most ``rows`` training rows are looked at, others than those of the step's batch, so that what a direction is worth is
    measured on rows that it was not fitted to. ``rank`` and ``ridge`` are those of :func:`twinpass.estimate.directions.fit`.
    """

    rows: int
    rank: int
    ridge: float | None


class Trainable(ABC):
    """A choice of weights, and the settings it is trained with by default.

    An ``adapter`` stands beside the model, whose own weights stay; if ``activated``, it acts from the activation point on: where
    the suffix begins, or only at its last token where the adapter is ``late``.
    """

    defaults: ClassVar[Defaults] = WEIGHTS
    adapter: ClassVar[bool] = False
    activated: ClassVar[bool] = False
    late: ClassVar[bool] = False

    @property
    def upper(self) -> bool | None:
        """Whether lower layers stay as they are, in some steps at least; None: that depends on the model."""
        return False

    @property
    def fitting(self) -> Fitting | None:
        """How directions are fitted, where they are; None: directions are drawn at random in all that is trained."""
        return None

    def fed_back(self) -> "Trainable | None":
        """What of it [estimator] kind "feedback" tells; None: nothing."""
        return self

    def block_at(self, step: int) -> int | None:
        """The block that ``step`` (counted from 0) trains; None: everything at once."""
        return None

    @abstractmethod
    def attach(self, model: "PreTrainedModel", seed: int, invocation: tuple[int, ...] = ()) -> Trained:
        """Pick the tensors out of ``model``, or make new ones from ``seed``, activated by ``invocation``."""


@settings(frozen=True, config=STRICT)
class Full(Trainable):
    """Every parameter of the language model; what else a larger model has (vision, sound) stays as it is.

    Where nothing else is said of how to learn, or by [estimator] kind "feedback", which tells no others, the output projections of upper layers
    alone (:class:`twinpass.model.projections.Projections`); every parameter moves along random directions, [estimator] kind "spsa".
    """

    def fed_back(self) -> Trainable:
        from twinpass.model.projections import Projections

        return Projections()

    def attach(self, model: "PreTrainedModel", seed: int, invocation: tuple[int, ...] = ()) -> Trained:
        from twinpass.perturb.parameters import Parameters

        return Trained(Parameters(_named(model, lambda name: True)))


@settings(frozen=True, config=STRICT)
class Pattern(Trainable):
    """Parameters whose name the regular expression ``pattern`` matches anywhere (``re.search``)."""

    pattern: NonEmpty

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
            some = ", ".join(list(_named(model, lambda name: True))[:4])
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

    def fed_back(self) -> None:
        return None

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
    """Low-rank adapters of ``rank`` on the ``targets``, scaled by ``alpha`` over rank; the base model stays untouched.

    They sit on the decoder layers from ``first`` on, counted from 0; -16 stands for the uppermost 16, or all where there are fewer.

    Args:
        targets: last parts of modules' names; or "outputs", what writes into the residual stream by its usual names; or, as in PEFT,
            "all-linear", the linear layers of those decoder layers; what PEFT could not load is left out of both. The default stands for attention's projections, also where a
            model calls them otherwise, such as ``qkv_proj`` or ``c_attn``; in a model without attention it and "outputs" stand for all linear layers.
    """

    defaults: ClassVar[Defaults] = ADAPTERS
    adapter: ClassVar[bool] = True

    rank: Rank = 8
    alpha: Scale = 16.0
    targets: Sites = ATTENTION
    first: Layer = 0

    @property
    def upper(self) -> bool | None:
        return None if self.first < 0 else self.first > 0

    def places(self, model: "PreTrainedModel") -> tuple[tuple[str, ...], int]:
        """Names of the targets in a model, and the first layer counted from 0.

        Raises:
            ModelError: it has none of these.
        """
        from twinpass.model.causal import CausalModel
        from twinpass.model.targets import named, named_so

        causal = CausalModel(model)
        first = max(0, causal.depth + self.first) if self.first < 0 else self.first
        if isinstance(self.targets, str):
            return named(causal, self.targets, first, activated=self.activated), first
        return named_so(causal, self.targets, activated=self.activated), first

    def attach(self, model: "PreTrainedModel", seed: int, invocation: tuple[int, ...] = ()) -> Trained:
        from twinpass.model.lora import LoraAdapter
        from twinpass.perturb.parameters import Parameters

        targets, first = self.places(model)
        adapter = LoraAdapter(model, self.rank, self.alpha, targets, seed, invocation if self.activated else (), first)
        return Trained(Parameters(adapter.tensors, together=True), adapter, activated=self.activated)


@settings(frozen=True, config=STRICT)
class Activated(Lora):
    """Activated LoRA (Greenewald et al. 2025, arXiv 2504.12397): adapters that act from the activation point on.

    That is where the task's suffix begins, or else the last place in the prompt where the token ids ``invocation``
    stand. Every token before it is read by the base model, so that its keys and values never change.
    """

    activated: ClassVar[bool] = True

    invocation: Annotated[tuple[Index, ...], Field(strict=False)] = ()


@settings(frozen=True, config=STRICT)
class Informed(Trainable):
    """Directions that the task itself tells, one a module, of which only the gains are trained (docs/maths/informed.md).

    Before every step forward passes over up to ``fit_rows`` training rows tell in which direction each of the ``targets`` of the
    uppermost ``layers`` should move; probes then find out on other rows how far. What comes of it is an activated adapter of
    LoRA's form, of at most ``rank``, that acts from the prompt's last token on, where the answer is read.

    Args:
        targets: modules that write into the residual stream; the default stands for those of a model that calls them otherwise, too,
            such as ``dense`` or ``c_proj``.
        ridge: how cautiously directions are fitted; by default as it predicts left-out rows best.
        invocation: as for :class:`Activated`; by default the suffix's last token.
    """

    defaults: ClassVar[Defaults] = INFORMED
    adapter: ClassVar[bool] = True
    activated: ClassVar[bool] = True
    late: ClassVar[bool] = True

    layers: Count = 12
    targets: Targets = OUTPUTS
    rank: Rank = 64
    fit_rows: Count = 512
    ridge: Positive | None = None
    invocation: Annotated[tuple[Index, ...], Field(strict=False)] = ()

    @property
    def upper(self) -> bool:
        return True

    @property
    def fitting(self) -> Fitting:
        return Fitting(self.fit_rows, self.rank, self.ridge)

    def fed_back(self) -> None:
        return None

    def attach(self, model: "PreTrainedModel", seed: int, invocation: tuple[int, ...] = ()) -> Trained:
        from twinpass.model.causal import CausalModel
        from twinpass.model.informed import InformedAdapter
        from twinpass.model.targets import written_so
        from twinpass.perturb.parameters import Parameters

        causal = CausalModel(model)
        targets = written_so(causal, self.targets, max(0, causal.depth - self.layers))
        adapter = InformedAdapter(model, self.layers, targets, invocation)
        return Trained(Parameters(adapter.tensors, together=True), adapter, activated=True)


def _named(model: "PreTrainedModel", chosen: Callable[[str], bool]) -> "dict[str, Tensor]":
    """Parameters of the language model by name; a tied one counts if any of its names is chosen, and stands under its first name."""
    from twinpass.model.causal import CausalModel

    causal = CausalModel(model)
    names: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        first = names.setdefault(id(tensor), name)
        if chosen(name) and causal.reads_text(name):
            tensors[first] = tensor
    order = [name for name in names.values() if name in tensors]
    return {name: tensors[name] for name in order}
