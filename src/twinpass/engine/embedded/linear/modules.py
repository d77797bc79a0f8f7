"""What a module computes when several lanes run together: each lane's rows under that lane's weights.

Linear layers, Hugging Face's ``Conv1D``, embeddings and root mean square norms have a fast path; any other leaf module runs
through ``torch.func.functional_call``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from twinpass.engine.embedded.linear.arithmetic import Arithmetic, Plain
from twinpass.engine.embedded.linear.lanes import LaneLayout, LaneWeights
from twinpass.engine.embedded.linear.norms import epsilon_of, rms_norm
from twinpass.engine.embedded.linear.uses import ELSE, LookUp
from twinpass.errors import UnsupportedModuleError
from twinpass.model.causal import is_linear
from twinpass.model.informed import InformedWeights
from twinpass.model.lora import LoraWeights
from twinpass.model.patching import forward_of
from twinpass.perturb.gemm import low_rank
from twinpass.phases import phase


class LaneModule(ABC):
    """A module's forward for several lanes.

    Args:
        name: the module's path in the model, for messages.
        module: the module; ``original`` is its own forward.
        owned: local parameter names to the names they are trained under.
    """

    def __init__(self, name: str, module: nn.Module, owned: dict[str, str]) -> None:
        self.name, self.module, self.owned = name, module, owned
        self.original: Callable[..., Any] = module.forward

    @abstractmethod
    def forward(self, weights: LaneWeights, layout: LaneLayout, *args: Any, **kwargs: Any) -> Any:
        """What the module returns, with each lane's rows computed under that lane's weights."""

    def require_lanes(self, layout: LaneLayout, tensor: Tensor) -> None:
        """Make sure that the first axis of ``tensor`` tells lanes apart.

        Raises:
            UnsupportedModuleError: it does not.
        """
        if not layout.splits(tensor):
            raise UnsupportedModuleError(
                f"{self.name} got a tensor of shape {tuple(tensor.shape)}, in which {layout.lanes} lanes of {layout.rows} "
                f"rows cannot be told apart: it mixes tokens; {ELSE}"
            )

    def split(self, layout: LaneLayout, x: Tensor) -> Tensor:
        """``x`` [..., in] as [lanes, rows, in]."""
        self.require_lanes(layout, x)
        return x.reshape(layout.lanes, -1, x.shape[-1])

    def acts(self, perturbed: Set[str], layout: LaneLayout) -> bool:
        """Whether the module has to run lane by lane where these parameters are perturbed."""
        return not perturbed.isdisjoint(self.owned.values())

    @property
    def weight(self) -> Tensor:
        """The module's own, unperturbed weight."""
        weight: Tensor = self.module.get_parameter("weight")
        return weight

    def bias(self, weights: LaneWeights, y: Tensor) -> Tensor:
        """Add the bias, perturbed or not, to ``y`` [lanes, rows, out] in place."""
        if "bias" in self.owned:
            y += weights.whole(self.owned["bias"])[:, None]
        elif isinstance(self.module.bias, Tensor):
            y += self.module.bias.detach()
        return y


class LaneLinear(LaneModule):
    """``nn.Linear``: lanes multiplied as an arithmetic does it."""

    def __init__(self, name: str, module: nn.Module, owned: dict[str, str], arithmetic: Arithmetic) -> None:
        super().__init__(name, module, owned)
        self.arithmetic = arithmetic

    def acts(self, perturbed: Set[str], layout: LaneLayout) -> bool:
        return self.arithmetic.everywhere or super().acts(perturbed, layout)

    @phase("linear")
    def forward(self, weights: LaneWeights, layout: LaneLayout, x: Tensor) -> Tensor:
        rows = self.split(layout, x)
        if "weight" in self.owned:
            y = self.arithmetic.moved(weights, self.owned["weight"], rows)
        else:
            y = self.arithmetic.fixed(weights.lanes, self.module, rows, None)
        return self.bias(weights, y).view(*x.shape[:-1], -1)


class LaneHead(LaneLinear):
    """The layer that makes logits, of a few tokens where they suffice; in the dtype of its weights."""

    def __init__(self, name: str, module: nn.Module, owned: dict[str, str]) -> None:
        super().__init__(name, module, owned, Plain())

    def acts(self, perturbed: Set[str], layout: LaneLayout) -> bool:
        return layout.columns is not None or super().acts(perturbed, layout)

    def forward(self, weights: LaneWeights, layout: LaneLayout, x: Tensor) -> Tensor:
        if layout.columns is None:
            return super().forward(weights, layout, x)
        rows, lanes = self.split(layout, x), layout.lanes
        if "weight" in self.owned:
            chosen = weights.rows(self.owned["weight"], layout.columns.expand(lanes, -1))
        else:
            chosen = self.weight[layout.columns].expand(lanes, -1, -1)
        y = torch.bmm(rows, chosen.transpose(1, 2))
        if "bias" in self.owned:
            y += weights.whole(self.owned["bias"])[:, None, layout.columns]
        elif isinstance(self.module.bias, Tensor):
            y += self.module.bias.detach()[layout.columns]
        return y.view(*x.shape[:-1], -1)


class LaneConv1D(LaneModule):
    """GPT-2's ``Conv1D``: a linear layer with its weight stored as [in, out]."""

    @phase("linear")
    def forward(self, weights: LaneWeights, layout: LaneLayout, x: Tensor) -> Tensor:
        rows = self.split(layout, x)
        weight = weights.whole(self.owned["weight"]) if "weight" in self.owned else self.weight
        return self.bias(weights, torch.matmul(rows, weight)).view(*x.shape[:-1], -1)


class LaneEmbedding(LaneModule):
    """An embedding of any kind: its own forward runs, only the table look-up inside it is perturbed."""

    def forward(self, weights: LaneWeights, layout: LaneLayout, *args: Any, **kwargs: Any) -> Any:
        with LookUp(self.weight, lambda ids: self._rows(weights, layout, ids)):
            return self.original(*args, **kwargs)

    def _rows(self, weights: LaneWeights, layout: LaneLayout, ids: Tensor) -> Tensor:
        self.require_lanes(layout, ids)
        return weights.rows(self.owned["weight"], ids)


class LaneLeaf(LaneModule):
    """Any leaf module that acts token by token: run once a lane on its slice of the rows."""

    def forward(self, weights: LaneWeights, layout: LaneLayout, *args: Any, **kwargs: Any) -> Any:
        perturbed = {local: weights.whole(name) for local, name in self.owned.items()}
        outputs = []
        for lane in range(layout.lanes):
            own = {local: tensor[lane] for local, tensor in perturbed.items()}
            part = [self._slice(layout, lane, value) for value in args]
            named = {name: self._slice(layout, lane, value) for name, value in kwargs.items()}
            with forward_of(self.module, self.original):
                outputs.append(functional_call(self.module, own, tuple(part), named))
        if layout.lanes == 1:
            return outputs[0]
        if not all(isinstance(y, Tensor) and self._is_slice(layout, y) for y in outputs):
            kind = type(outputs[0]).__name__
            raise UnsupportedModuleError(f"{self.name} returns {kind}, not a tensor of rows; {ELSE}")
        return torch.cat(outputs)

    def _slice(self, layout: LaneLayout, lane: int, value: Any) -> Any:
        if layout.lanes == 1 or not isinstance(value, Tensor):
            return value
        self.require_lanes(layout, value)
        return value.chunk(layout.lanes)[lane]

    def _is_slice(self, layout: LaneLayout, y: Tensor) -> bool:
        return y.dim() > 0 and (y.shape[0] == layout.rows or (y.shape[0] == 1 and layout.rows in y.shape[1:]))


class LaneRmsNorm(LaneModule):
    """A root mean square norm: all lanes in one pass over memory."""

    def __init__(self, name: str, module: nn.Module, owned: dict[str, str], offset: float) -> None:
        super().__init__(name, module, owned)
        self.offset, self.epsilon = offset, epsilon_of(module)
        self.leaf = LaneLeaf(name, module, owned)

    def forward(self, weights: LaneWeights, layout: LaneLayout, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if len(args) == 1 and not kwargs else None
        if self.epsilon is None or not isinstance(x, Tensor) or x.dtype is not self.weight.dtype:
            return self.leaf.forward(weights, layout, *args, **kwargs)
        self.require_lanes(layout, x)
        return rms_norm(x, weights.whole(self.owned["weight"]), self.epsilon, self.offset)


class LaneAdapted(LaneModule):
    """A linear layer with an adapter: the base product is shared by all lanes, the low-rank term is each lane's own."""

    def __init__(self, name: str, module: nn.Module, arithmetic: Arithmetic) -> None:
        super().__init__(name, module, {})
        self.arithmetic = arithmetic

    def acts(self, perturbed: Set[str], layout: LaneLayout) -> bool:
        return True

    @abstractmethod
    def change(self, weights: LaneWeights, layout: LaneLayout, rows: Tensor) -> tuple[Tensor, Tensor, float] | None:
        """What is added to the product of ``rows`` [lanes, rows, in]: x [lanes, rows, r], B^T [lanes or 1, r, out], a factor; None: nothing."""

    @phase("linear")
    def forward(self, weights: LaneWeights, layout: LaneLayout, x: Tensor) -> Tensor:
        rows = self.split(layout, x)
        return self.changed(weights, layout, rows, self._base(weights, x, rows))

    def changed(self, weights: LaneWeights, layout: LaneLayout, rows: Tensor, y: Tensor) -> Tensor:
        """The product ``y`` [..., out] of ``rows`` [lanes, rows, in] and what the adapter adds to it; ``y`` may be written to."""
        change = self.change(weights, layout, rows)
        if change is None:
            return y
        down, up, scale = change
        if layout.active_from:
            down.view(-1, layout.rows, down.shape[-1])[:, : layout.active_from] = 0
        up = up.expand(len(down), -1, -1)
        if y.dtype is down.dtype:
            y.view(layout.lanes, -1, y.shape[-1]).baddbmm_(down, up, alpha=scale)
            return y
        return y + (torch.bmm(down, up) * scale).view(y.shape).to(y.dtype)

    def _base(self, weights: LaneWeights, x: Tensor, rows: Tensor) -> Tensor:
        if not is_linear(self.module):
            own: Tensor = self.original(x)
            return own
        bias = self.module.bias
        own_bias = bias.detach() if isinstance(bias, Tensor) else None
        return self.arithmetic.fixed(weights.lanes, self.module, rows, own_bias).view(*x.shape[:-1], -1)


def _in_registers(rows: Tensor, a: Tensor, b: Tensor, y: Tensor) -> bool:
    """Whether :mod:`twinpass.perturb.gemm.low_rank` can add the term of a [lanes, rank, in] and b [lanes, out, rank] to ``y``."""
    here = all(part.dtype is torch.float32 and part.device.type == "cpu" for part in (rows, a, b, y))
    own = here and y.is_contiguous() and not torch.is_grad_enabled() and rows.numel() > 0
    return own and low_rank.suits(rows.shape[-1], *b.shape[1:])


class LaneLora(LaneAdapted):
    """LoRA: both factors are trained."""

    def __init__(self, name: str, module: nn.Module, lora: LoraWeights, arithmetic: Arithmetic) -> None:
        super().__init__(name, module, arithmetic)
        self.lora = lora

    def changed(self, weights: LaneWeights, layout: LaneLayout, rows: Tensor, y: Tensor) -> Tensor:
        a, b = weights.whole(self.lora.a), weights.whole(self.lora.b)
        if layout.active_from or not _in_registers(rows, a, b, y):
            return super().changed(weights, layout, rows, y)
        target = y.view(layout.lanes, -1, y.shape[-1])
        low_rank.add(rows.contiguous().numpy(), a.numpy(), b.numpy(), target.numpy(), self.lora.scale)
        return y

    def change(self, weights: LaneWeights, layout: LaneLayout, rows: Tensor) -> tuple[Tensor, Tensor, float] | None:
        a, b = weights.whole(self.lora.a), weights.whole(self.lora.b)
        return torch.bmm(rows.to(a.dtype), a.transpose(1, 2)), b.transpose(1, 2), self.lora.scale


class LaneInformed(LaneAdapted):
    """Directions are given, and the same for all lanes; each lane has a gain of its own."""

    def __init__(self, name: str, module: nn.Module, own: InformedWeights, arithmetic: Arithmetic) -> None:
        super().__init__(name, module, arithmetic)
        self.own = own

    def change(self, weights: LaneWeights, layout: LaneLayout, rows: Tensor) -> tuple[Tensor, Tensor, float] | None:
        gain = weights.whole(self.own.gain)
        base, direction, outputs = self.own.base, self.own.direction, self.own.outputs
        if base is None or direction is None or outputs is None:
            return None
        x = rows.to(gain.dtype)
        down = torch.matmul(x, base.t()) + gain[:, :, None] * torch.matmul(x, direction.t())
        return down, outputs[None], 1.0
