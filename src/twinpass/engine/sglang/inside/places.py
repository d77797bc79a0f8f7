"""Where a model's own parameters lie in SGLang, which fuses some of them and cuts most of them up among GPUs.

    q_proj  ┐ rows of qkv_proj      gate_proj ┐ rows of gate_up_proj      o_proj, down_proj: columns
    k_proj  │                       up_proj   ┘                           embed_tokens, lm_head: rows, padded below
    v_proj  ┘                                                             norms: whole

Runs inside SGLang's processes. Nothing here is believed: :mod:`twinpass.engine.sglang.inside.worker` compares every place with the checkpoint.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from twinpass.errors import EngineError
from twinpass.perturb.shard import Shard

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""SGLang's name of a module, and the model's own names for its rows, from the first down."""


@dataclass(frozen=True, slots=True)
class Place:
    """A contiguous ``tensor`` of SGLang's, and the elements of the model's parameter that it holds."""

    tensor: Tensor
    shard: Shard


class Places:
    """Finds parameters by the names that they have in the model itself.

    Args:
        model: SGLang's model, in one of its processes.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = {path.replace(".base_layer", ""): module for path, module in _innermost(model)}

    def find(self, name: str, shape: Sequence[int]) -> Place:
        """The place of parameter ``name``, which is of this shape as a whole.

        Raises:
            EngineError: SGLang has no such parameter, or holds it in another way than any known here.
        """
        path, _, leaf = name.rpartition(".")
        module, part = self._module(path)
        tensor = getattr(module, leaf, None)
        if not isinstance(tensor, Tensor):
            raise EngineError(
                f"SGLang's {type(module).__name__} has no parameter for {name}; train others with trainable.kind = 'pattern', or adapters"
            )
        place = _place(module, leaf, tensor.detach(), tuple(shape), part)
        if place is None or not place.tensor.is_contiguous():
            raise EngineError(
                f"{name} {tuple(shape)} is held as {tuple(tensor.shape)} by SGLang's {type(module).__name__}, in a way that is not "
                "known here (quantised or repacked, perhaps); train others with trainable.kind = 'pattern', or adapters"
            )
        return place

    def _module(self, path: str) -> tuple[nn.Module, int | None]:
        if path in self._modules:
            return self._modules[path], None
        parent, _, last = path.rpartition(".")
        for fused, parts in FUSED.items():
            if last in parts and (module := self._modules.get(f"{parent}.{fused}" if parent else fused)) is not None:
                return module, parts.index(last)
        raise EngineError(
            f"SGLang has no module {path}: its model is built otherwise than the one of the configuration; train adapters instead"
        )


def _innermost(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules by path; of one with adapters beside it, the one within."""
    for path, module in model.named_modules(remove_duplicate=False):
        if not hasattr(module, "base_layer"):
            yield path, module


def _place(module: Any, leaf: str, tensor: Tensor, shape: tuple[int, ...], part: int | None) -> Place | None:
    width = 1
    for size in shape[1:]:
        width *= size
    if (indices := getattr(module, "shard_indices", None)) is not None:
        first, count = indices.org_vocab_start_index, indices.num_org_elements
        return (
            Place(tensor[:count], Shard.contiguous(first * width, count * width))
            if tensor.shape[1:] == shape[1:]
            else None
        )
    if part is not None:
        return _fused_rows(module, tensor, shape, width, part)
    if tensor.shape == shape:
        return Place(tensor, Shard.whole(tensor.numel()))
    if tensor.dim() != len(shape):
        return None
    if tensor.shape[1:] == shape[1:] and shape[0] % tensor.shape[0] == 0:
        first = _rank(module.tp_group) * tensor.shape[0]
        return Place(tensor, Shard.contiguous(first * width, tensor.numel()))
    if leaf == "weight" and tensor.shape[0] == shape[0] and tensor.dim() == 2 and shape[1] % tensor.shape[1] == 0:
        first = _rank(module.tp_group) * tensor.shape[1]
        return Place(tensor, Shard(first, tensor.shape[1], shape[1]))
    return None


def _fused_rows(module: Any, tensor: Tensor, shape: tuple[int, ...], width: int, part: int) -> Place | None:
    sizes = list(module.output_partition_sizes)
    begin, size = [0, *accumulate(sizes)][part], sizes[part]
    if tensor.shape[0] != sum(sizes) or tensor.shape[1:] != shape[1:] or shape[0] % size:
        return None
    group, replicas = module.tp_group, 1
    if part and hasattr(module, "num_kv_head_replicas"):
        group, replicas = module.kv_tp_group, module.num_kv_head_replicas
    first = _rank(group) // replicas * size
    return Place(tensor[begin : begin + size], Shard.contiguous(first * width, size * width))


def _rank(group: Any) -> int:
    return 0 if group is None else int(group.rank_in_group)
