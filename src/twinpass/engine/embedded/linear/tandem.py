"""The tandem forward: all lanes travel through the model together, each under its own weights.

For the time of a forward pass, the modules that own trainable parameters run as :mod:`twinpass.engine.embedded.linear.modules` says.
A module that owns trainable parameters *and* children is refused by name.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from twinpass.engine.embedded.linear.arithmetic import Arithmetic
from twinpass.engine.embedded.linear.lanes import LaneLayout, LaneWeights
from twinpass.engine.embedded.linear.modules import (
    LaneConv1D,
    LaneEmbedding,
    LaneHead,
    LaneInformed,
    LaneLeaf,
    LaneLinear,
    LaneLora,
    LaneModule,
    LaneRmsNorm,
)
from twinpass.engine.embedded.linear.norms import offset_of
from twinpass.engine.embedded.linear.uses import ELSE, RawUse
from twinpass.errors import MissedParameterError, UnsupportedModuleError
from twinpass.model.causal import is_linear, output_layer
from twinpass.model.informed import InformedWeights
from twinpass.model.lora import LoraWeights
from twinpass.model.patching import forwards_of
from twinpass.perturb.parameters import Parameters


class Tandem:
    """A model prepared to run several lanes at once.

    Args:
        model: an unmodified causal language model; nothing stays changed in it after a pass.
        parameters: what is perturbed (None: nothing; the model runs as it stands, with its adapters).
        adapters: low-rank adapters by the path of the module they belong to.
        arithmetic: how linear layers multiply, but for the one that makes logits.

    Raises:
        UnsupportedModuleError: a selected parameter belongs to a module that cannot run lane by lane.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        parameters: Parameters | None,
        adapters: Mapping[str, LoraWeights | InformedWeights],
        arithmetic: Arithmetic,
    ) -> None:
        self._modules = list(_lane_modules(model, parameters, adapters, arithmetic))
        self._head = next((module for module in self._modules if isinstance(module, LaneHead)), None)
        self._unchecked = set(parameters or ())

    @property
    def reads_columns(self) -> bool:
        """Whether the head can compute the logits of a few tokens alone."""
        return self._head is not None

    @contextmanager
    def running(self, weights: LaneWeights, layout: LaneLayout) -> Iterator[None]:
        """Inside the block the model computes ``weights.lanes``, which lie in its tensors as ``layout`` says."""
        perturbed = weights.perturbed
        with ExitStack() as stack:
            if unchecked := self._unchecked & perturbed:
                stack.enter_context(RawUse(weights.parameters, unchecked))
            acting = (module for module in self._modules if module.acts(perturbed, layout))
            stack.enter_context(forwards_of({each.module: partial(each.forward, weights, layout) for each in acting}))
            yield

    def check(self, passes: Collection[LaneWeights]) -> None:
        """Called after all passes of a batch.

        Raises:
            MissedParameterError: a selected parameter was perturbed and never used.
        """
        perturbed = {name: None for weights in passes for name in weights.parameters if name in weights.perturbed}
        visited = set[str]().union(*(weights.visited for weights in passes))
        if missed := [name for name in perturbed if name in self._unchecked and name not in visited]:
            raise MissedParameterError(
                f"{len(missed)} selected parameters took no part in the forward pass: {', '.join(missed[:5])}; "
                "select only what the model uses, with trainable.kind = 'pattern'"
            )
        self._unchecked.difference_update(perturbed)


def _lane_modules(
    model: PreTrainedModel,
    parameters: Parameters | None,
    adapters: Mapping[str, LoraWeights | InformedWeights],
    arithmetic: Arithmetic,
) -> Iterator[LaneModule]:
    head = output_layer(model)
    for path, module in model.named_modules():
        if path in adapters:
            own = adapters[path]
            if isinstance(own, InformedWeights):
                yield LaneInformed(path, module, own, arithmetic)
            else:
                yield LaneLora(path, module, own, arithmetic)
            continue
        owned = {}
        for local, tensor in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameters is not None and (name := parameters.name_of(tensor)) is not None:
                owned[local] = name
        if module is head and head is not None and is_linear(head):
            yield LaneHead(path, head, owned)
        elif is_linear(module) and (owned or arithmetic.everywhere):
            yield LaneLinear(path, module, owned, arithmetic)
        elif owned and (offset := offset_of(module)) is not None:
            yield LaneRmsNorm(path, module, owned, offset)
        elif owned:
            yield _kind(path, module)(path, module, owned)


def _kind(path: str, module: nn.Module) -> type[LaneModule]:
    if isinstance(module, nn.Embedding):
        return LaneEmbedding
    if isinstance(module, Conv1D):
        return LaneConv1D
    if any(True for _ in module.children()):
        raise UnsupportedModuleError(
            f"{path} ({type(module).__name__}) owns trainable parameters and child modules, so it cannot run lane by lane; {ELSE}"
        )
    return LaneLeaf
