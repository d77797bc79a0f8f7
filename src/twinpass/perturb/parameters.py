"""The trainable tensors, under the names that the noise is addressed by."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinpass.core import Term
from twinpass.errors import ModelError
from twinpass.perturb.backend import Backend, backend_for
from twinpass.perturb.noise import Distribution, name_key
from twinpass.perturb.shard import Shard


@dataclass(frozen=True, slots=True)
class Arena:
    """Small parameters that lie back to back in memory, so that one kernel call serves them all.

    ``flat`` [n] is that memory, as the kernels take it; parameter ``p`` is ``flat[bounds[p] : bounds[p + 1]]`` and draws by ``keys[p]``.
    """

    flat: Any
    bounds: NDArray[np.int64]
    keys: NDArray[np.uint64]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], backend: Backend) -> "Arena":
        """The arena of float32 or float64 parameters that are views of one tensor, one after the other.

        Raises:
            ValueError: they are not.
        """
        first, *_ = tensors.values()
        bounds = np.cumsum([0, *(tensor.numel() for tensor in tensors.values())])
        for tensor, start in zip(tensors.values(), bounds[:-1], strict=True):
            place = (first.untyped_storage().data_ptr(), first.dtype, first.storage_offset() + int(start))
            if (tensor.untyped_storage().data_ptr(), tensor.dtype, tensor.storage_offset()) != place:
                raise ValueError("the parameters do not lie back to back in one tensor")
        memory = torch.as_strided(first.detach(), (int(bounds[-1]),), (1,), first.storage_offset())
        return cls(backend.view(memory), bounds, np.array([name_key(name) for name in tensors], np.uint64))


class Parameters(Mapping[str, Tensor]):
    """An ordered mapping of names to trainable tensors; a tied tensor appears once, under its first name.

    The values are detached aliases: they share the memory of the tensors given, not their identity.

    Args:
        tensors: contiguous tensors of float32, float64 or bfloat16, updated in place; on one device.
        blocks: the block that each tensor is in, for training block by block.
        together: the tensors are small and lie back to back (see :class:`Arena`).
        shards: what tensors hold that are not a whole parameter.
        backend: the kernels that update them; those for where they lie, if none are given.

    Raises:
        ModelError: nothing is trainable, or a tensor is elsewhere, oddly laid out or of another dtype.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        blocks: Mapping[str, int] | None = None,
        *,
        together: bool = False,
        shards: Mapping[str, Shard] | None = None,
        backend: Backend | None = None,
    ) -> None:
        if not tensors:
            raise ModelError("no parameter is selected for training; check [trainable] against the model's names")
        first, *_ = tensors.values()
        backend = backend or backend_for(first)
        seen: dict[int, str] = {}
        for name, tensor in tensors.items():
            if tensor.device.type not in backend.devices or tensor.device != first.device:
                raise ModelError(
                    f"{name} is on {tensor.device}: weights are trained on the CPU or on one CUDA device, all on the same; "
                    "use model.cpu() or model.cuda()"
                )
            if tensor.dtype not in backend.dtypes:
                raise ModelError(f"{name} is {tensor.dtype}: {_wanted(tensor, backend)}")
            if not tensor.is_contiguous():
                raise ModelError(f"{name} is not contiguous in memory; replace it by its .contiguous() copy")
            seen.setdefault(id(tensor), name)
        places: dict[int, str] = {}
        for name in seen.values():
            if tensors[name].numel() and (other := places.setdefault(tensors[name].data_ptr(), name)) != name:
                raise ModelError(f"{name} and {other} share memory but are not one tensor; tie them as one parameter")
        self._owners = [tensors[name] for name in seen.values()]
        self._tensors = {name: tensors[name].detach() for name in seen.values()}
        self._name_of = seen
        self._blocks = blocks or {}
        self.arena = Arena.of(self._tensors, backend) if together else None
        self.backend = backend
        self.flat = {name: backend.view(tensor) for name, tensor in self._tensors.items()}
        self.keys_of = {name: (name_key(name), name_key(name, "round")) for name in self._tensors}
        given = shards or {}
        self.shards = {name: given.get(name) or Shard.whole(tensor.numel()) for name, tensor in self._tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def name_of(self, tensor: Tensor) -> str | None:
        """The name of a trainable tensor, or None for one that is not trained."""
        return self._name_of.get(id(tensor))

    @property
    def blocks(self) -> tuple[int | None, ...]:
        """The blocks that can be perturbed on their own; (None,) if there is one only."""
        return tuple(sorted(set(self._blocks.values()))) or (None,)

    def block_of(self, name: str) -> int | None:
        """The block that a tensor is in, if it is in one."""
        return self._blocks.get(name)

    def moves(self, name: str, block: int | None) -> bool:
        """Whether a direction of ``block`` is other than zero in a tensor."""
        return block is None or self._blocks.get(name) == block

    @property
    def numel(self) -> int:
        """How many numbers are trained."""
        return sum(tensor.numel() for tensor in self._tensors.values())

    def add(self, terms: Sequence[Term], distribution: Distribution) -> None:
        """``theta = keep_t * theta + scale_t * z_t``, term after term, in one pass as long as all is kept: the order decides the last bits.

        float32 and float64 round to nearest; bfloat16 stochastically, from each term's seed, so that updates
        smaller than half a step are not lost on average.
        """
        if not terms:
            return
        if any(term.keep != 1.0 for term in terms):
            for keep, part in _apart(terms):
                for tensor in self._tensors.values() if keep != 1.0 else ():
                    tensor.mul_(keep)
                self.add(part, distribution)
            return
        if self.arena is not None:
            seeds = np.array([term.seed for term in terms], np.uint64)
            scales = np.array([term.scale for term in terms], np.float64)
            arena, kernels = self.arena, self.backend.kernels
            kernels.accumulate_each(arena.flat, arena.bounds, seeds, scales, arena.keys, distribution)
            return
        for name, flat in self.flat.items():
            own = [term for term in terms if self.moves(name, term.block)]
            seeds = np.array([term.seed for term in own], np.uint64)
            scales = np.array([term.scale for term in own], np.float64)
            if own:
                self.backend.kernels.accumulate(
                    flat, seeds, scales, *self.keys_of[name], distribution, self.shards[name]
                )

    def copy_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite every tensor in place.

        Raises:
            ModelError: a tensor is missing or has another shape.
        """
        for name, tensor in self._tensors.items():
            source = tensors.get(name)
            if source is None or source.shape != tensor.shape:
                found = "missing" if source is None else f"of shape {tuple(source.shape)}"
                raise ModelError(f"base weights: {name} is {found}, expected shape {tuple(tensor.shape)}")
        for name, tensor in self._tensors.items():
            tensor.copy_(tensors[name])


def _apart(terms: Sequence[Term]) -> Iterator[tuple[float, list[Term]]]:
    """Terms that keep all, and what of the weights is kept before them."""
    part: list[Term] = []
    keep = 1.0
    for term in terms:
        if term.keep != 1.0 and part:
            yield keep, part
            keep, part = 1.0, []
        keep *= term.keep
        part.append(replace(term, keep=1.0))
    yield keep, part


def _wanted(tensor: Tensor, backend: Backend) -> str:
    if tensor.dtype is torch.float64:
        return (
            "trainable weights on a CUDA device must be float32 or bfloat16; load the model in one of them (model.dtype), "
            "or keep it on the CPU ([engine] device = 'cpu')"
        )
    *others, last = (str(dtype).removeprefix("torch.") for dtype in backend.dtypes)
    return f"trainable weights must be {', '.join(others)} or {last}"
