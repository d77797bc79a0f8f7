"""Adapters' terms on a CPU: hooks on the two products of SGLang's plain backend, which takes segments one after another in Python, slice by slice.

A population has as many segments as lanes, of few rows each. Here one kernel takes all segments (:mod:`twinpass.perturb.gemm.segments`), and a row's term
has the same bits beside any other rows. Rows without an adapter stay as they are. What the kernel cannot take is left to SGLang, and that is logged.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinpass.perturb.gemm.segments import Segments

_BACKEND = "sglang.srt.lora.backend.torch_backend"

OWN = "own"
"""In :data:`counts`: products of the kernel."""

counts: Counter[str] = Counter()
"""Products that this process made, by :data:`OWN` or by why they were left to SGLang."""


def hooks() -> list[tuple[str, Callable[..., Any], str]]:
    """What is hooked, by what, and how."""
    return [(f"{_BACKEND}.sgemm_lora_a_fwd", _down, "AROUND"), (f"{_BACKEND}.sgemm_lora_b_fwd", _up, "AROUND")]


def _down(original: Callable[..., Any], inputs: Any, weights: Any, batch_info: Any, num_slices: int = 1) -> Any:
    from twinpass.perturb.gemm import segments  # in SGLang's processes only when it is needed

    reason = _plain(inputs, weights, batch_info) or _outside(
        inputs, weights, batch_info, weights.shape[1] // num_slices
    )
    if not reason and not segments.suits_down(inputs.shape[1]):
        reason = f"rows of {inputs.shape[1]} numbers do not fill registers"
    if _left(reason):
        return original(inputs, weights, batch_info, num_slices)
    thin = inputs.new_zeros(len(inputs), weights.shape[1])
    scales = batch_info.scalings_cpu.numpy()
    segments.down(inputs.contiguous().numpy(), weights.numpy(), _parts(batch_info), scales, num_slices, thin.numpy())
    return thin


def _up(
    original: Callable[..., Any],
    inputs: Any,
    weights: Any,
    batch_info: Any,
    slice_offsets: Any,
    base_output: Any = None,
) -> Any:
    from twinpass.perturb.gemm import segments

    reason = _plain(inputs, weights, batch_info) or _outside(inputs, weights, batch_info, weights.shape[2])
    y = base_output
    if not reason and (y is None or str(y.dtype) != "torch.float32" or not y.is_contiguous() or len(y) != len(inputs)):
        reason = "outputs that are none yet, or lie otherwise"
    offsets = slice_offsets.numpy()
    if not reason and not segments.suits_up(offsets.tolist(), weights.shape[2]):
        reason = f"outputs cut at {offsets.tolist()} or room for {weights.shape[2]} ranks do not fill registers"
    if _left(reason):
        return original(inputs, weights, batch_info, slice_offsets, base_output)
    segments.up(inputs.contiguous().numpy(), weights.numpy(), _parts(batch_info), offsets.astype("int64"), y.numpy())
    return y


def _plain(inputs: Any, weights: Any, batch_info: Any) -> str:
    """Why these are not plain numbers in main memory; empty if they are."""
    if batch_info.use_cuda_graph:
        return "a captured graph"
    kinds = {f"{each.dtype} on {each.device.type}" for each in (inputs, weights)}
    if kinds != {"torch.float32 on cpu"}:
        return " and ".join(sorted(kinds))
    return "" if weights.is_contiguous() and weights.numel() else "factors that are none, or lie otherwise"


def _outside(inputs: Any, weights: Any, batch_info: Any, room: int) -> str:
    """Why segments would reach beyond what is there; empty if they do not."""
    parts = _parts(batch_info)
    here = parts.rows == len(inputs) and parts.slots <= len(weights) and parts.rank <= room
    return "" if here else "other rows than the batch has"


def _parts(batch_info: Any) -> "Segments":
    """The batch's segments, cut once for all modules."""
    found: Segments | None = getattr(batch_info, "twinpass_parts", None)
    if found is None:
        from twinpass.perturb.gemm import segments

        lists: Sequence[list[int]] = [
            part.tolist()
            for part in (batch_info.seg_lens_cpu, batch_info.weight_indices_cpu, batch_info.lora_ranks_cpu)
        ]
        found = batch_info.twinpass_parts = segments.parts_of(*lists)
    return found


def _left(reason: str) -> bool:
    if reason and not counts[reason]:
        logging.getLogger(__name__).warning(
            "twinpass: SGLang multiplies some adapters' terms itself, segment by segment: %s", reason
        )
    counts[reason or OWN] += 1
    return bool(reason)
