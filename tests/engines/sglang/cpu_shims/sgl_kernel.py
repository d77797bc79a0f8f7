"""Stands in for SGLang's CUDA kernels, which it imports by name on any machine; nothing in these tests may call one."""

from collections.abc import Callable
from typing import Any


def _absent(name: str) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"sgl_kernel.{name} is a CUDA or AMX kernel, and this is a stand-in for tests without them"
        )

    return kernel


copy_all_layer_kv_cache_cpu = _absent("copy_all_layer_kv_cache_cpu")
assign_req_to_token_pool_cpu = _absent("assign_req_to_token_pool_cpu")
rotate_input_ids_cpu = _absent("rotate_input_ids_cpu")
fill_accept_out_cache_loc_cpu = _absent("fill_accept_out_cache_loc_cpu")
fill_bonus_tokens_cpu = _absent("fill_bonus_tokens_cpu")
assign_draft_cache_locs_contiguous_cpu = _absent("assign_draft_cache_locs_contiguous_cpu")
assign_extend_cache_locs_cpu = _absent("assign_extend_cache_locs_cpu")
build_tree_kernel_efficient_cpu = _absent("build_tree_kernel_efficient_cpu")
verify_tree_greedy_cpu = _absent("verify_tree_greedy_cpu")
