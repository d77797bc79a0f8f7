"""Activated adapters in SGLang, exactly: hooks on how it finds prefixes and lays out adapters.

SGLang keeps the keys and values of every adapter apart from the base model's. An activated adapter leaves the tokens before its
activation point A to the base model, so their keys and values are the base model's own. For requests that carry :data:`MARK`, and those of
adapters that are activated by tokens (:mod:`twinpass.engine.sglang.inside.invocation`):

1. the request looks up its prefix among the base model's, and its own keys and values from A on never enter the cache;
2. no more than A tokens are taken from there, as those from A on have to run under the adapter;
3. where fewer than A are there (evicted, or never sent), the rows up to A run without the adapter, and are kept as the base model's;
4. a batch leaves one of its adapters' slots to those rows.

Other requests are not touched. SGLang only logs a hook that fails to apply, so :func:`check` makes sure before anything is scored, and no adapter
that is activated by tokens is taken in where one is missing.
"""

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from twinpass.engine.sglang.inside import invocation

MARK = "twinpass_active_from"
"""Key in a request's ``custom_params``: the activation point, counted in tokens."""

_REQUEST = "sglang.srt.managers.schedule_batch.Req"
_CACHE = "sglang.srt.mem_cache.common"
_MANAGER = "sglang.srt.lora.lora_manager.LoRAManager"
_BACKENDS = (
    "torch_backend.TorchNativeLoRABackend",
    "triton_backend.TritonLoRABackend",
    "chunked_backend.ChunkedSgmvLoRABackend",
)

_marked: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""Requests of activated adapters that this process holds, by their id."""


def hooks() -> list[tuple[str, Callable[..., Any], str]]:
    """What is hooked, by what, and how."""
    backends = [f"sglang.srt.lora.backend.{backend}.prepare_lora_batch" for backend in _BACKENDS]
    return [
        (f"{_REQUEST}.__init__", _take_mark, "AFTER"),
        (f"{_REQUEST}._compute_max_prefix_len", _stop_at_activation, "AFTER"),
        (f"{_CACHE}.checkpoint_kv_cache", _keep_base, "BEFORE"),
        (f"{_CACHE}.release_kv_cache", _keep_base_at_the_end, "BEFORE"),
        (f"{_MANAGER}.validate_new_adapter", _admit, "AFTER"),
        (f"{_MANAGER}.validate_lora_batch", _leave_a_slot, "AROUND"),
        *((backend, _base_before_activation, "AROUND") for backend in backends),
        *invocation.hooks(),
    ]


def check(scheduler: Any, *, adapters: bool) -> None:
    """Raise unless every hook is in place, and the adapter backend in use (if ``adapters`` are) is one of those hooked."""
    _require_applied()
    if adapters:
        _require_hooked(scheduler.tp_worker.model_runner.lora_manager)


def _require_applied() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    missing = [target for target in HookRegistry._hooks if target not in HookRegistry._patched]
    if missing:
        raise RuntimeError(f"twinpass: the hooks on {', '.join(missing)} did not apply")


def _require_hooked(manager: Any) -> None:
    backend = type(manager.lora_backend)
    if not f"{backend.__module__}.{backend.__name__}".endswith(_BACKENDS):
        raise RuntimeError(f"twinpass: activated adapters are not hooked into {backend.__name__}")


def _admit(result: None, manager: Any, config: Any, adapter: Any) -> None:
    """Refuse an activated adapter that would act on every token, or whose batches would never have room for rows without it."""
    if invocation.tokens_in(config) is None:
        return
    _require_applied()
    _require_hooked(manager)
    if manager.max_loras_per_batch < 2:
        raise RuntimeError(
            f"twinpass: {adapter.lora_name} is an activated adapter, and what comes before it runs without one: set max_loras_per_batch to 2 or more"
        )


def _take_mark(result: None, request: Any, *args: Any, **kwargs: Any) -> None:
    told = (request.sampling_params.custom_params or {}).get(MARK)
    tokens = invocation.tokens_of(request.lora_id) if told is None else None
    if told is None and tokens is None:
        return
    if request.lora_id is not None:
        request.extra_key = request.extra_key.removesuffix(request.lora_id) or None
    start = invocation.last(tokens, request.origin_input_ids) if tokens is not None else int(told or 0)
    if start is None:
        request.lora_id = None
        return
    request.skip_radix_cache_insert = True
    request.twinpass_active_from = start
    _marked[request.rid] = request


def _stop_at_activation(result: int, request: Any, *args: Any, **kwargs: Any) -> int:
    return min(result, getattr(request, "twinpass_active_from", result))


def _keep_base(request: Any, cache: Any) -> None:
    """Give the cache what ran without the adapter; SGLang itself gives nothing of such a request."""
    _keep(request, cache, request.extend_end)


def _keep_base_at_the_end(request: Any, cache: Any, *, checkpoint: bool) -> None:
    if checkpoint and request.kv.holds_kv:
        _keep(request, cache, request.owned_kv_len())


def _keep(request: Any, cache: Any, there: int) -> None:
    base = min(getattr(request, "twinpass_active_from", 0), there)
    if request.kv.cache_protected_len < base and not cache.supports_mamba():
        cache.checkpoint(request, up_to=base)


def _leave_a_slot(original: Callable[..., bool], manager: Any, adapters: set[str | None]) -> bool:
    """Whether a batch of these adapters fits, with rows of activated ones that run without."""
    activated = any(request.lora_id in adapters for request in list(_marked.values()))
    return original(manager, adapters | {None} if activated else adapters)


def _base_before_activation(
    original: Callable[..., None],
    backend: Any,
    batch: Any,
    weight_indices: list[int],
    lora_ranks: list[int],
    *args: Any,
    **kwargs: Any,
) -> None:
    """Cut the rows of marked requests at their activation points, as if they were two requests."""
    if not _marked or not batch.forward_mode.is_extend():
        return original(backend, batch, weight_indices, lora_ranks, *args, **kwargs)
    lengths, indices = split(
        [getattr(_marked.get(rid), "twinpass_active_from", 0) for rid in batch.rids],
        batch.extend_prefix_lens_cpu,
        batch.extend_seq_lens_cpu,
        weight_indices,
        lora_ranks,
    )
    if len(lengths) > len(weight_indices):
        batch = copy.copy(batch)
        batch.batch_size, batch.extend_seq_lens_cpu = len(lengths), lengths
        batch.extend_seq_lens = batch.extend_seq_lens.new_tensor(lengths)
    return original(backend, batch, indices, lora_ranks, *args, **kwargs)


def split(
    starts: list[int], prefixes: list[int], lengths: list[int], slots: list[int], ranks: list[int]
) -> tuple[list[int], list[int]]:
    """Runs of rows and the adapter slot of each, so that rows before an activation point get a slot of rank 0.

    Args:
        starts: activation points by request; 0 where the adapter acts everywhere.
        prefixes: how many tokens of a request are there already; its rows come after them.
        lengths: rows of each request.
        slots: its adapter's slot.
        ranks: by slot, the rank of what is in it.

    Raises:
        RuntimeError: there is no slot of rank 0; scoring on would be silently wrong.
    """
    runs: list[tuple[int, int]] = []
    for start, prefix, length, slot in zip(starts, prefixes, lengths, slots, strict=True):
        before = min(max(start - prefix, 0), length)
        if before and 0 not in ranks:
            raise RuntimeError("twinpass: no adapter slot is left for the base model; raise max_loras_per_batch by one")
        if before:
            runs.append((before, ranks.index(0)))
        if length > before:
            runs.append((length - before, slot))
    return [length for length, _ in runs], [slot for _, slot in runs]
