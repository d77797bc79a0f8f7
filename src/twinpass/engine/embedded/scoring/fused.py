"""Attention of a bucket as one operator of PyTorch's, which picks a kernel that never writes the scores to memory."""

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

ALIGNED = 16
"""Rows of a mask begin at multiples of so many elements: otherwise the operator copies it, layer by layer."""


def mask(bias: Tensor, share: int) -> Tensor:
    """An additive mask [S, 1, 1, n, m] for ``share`` query heads folded into rows: [S, 1, share * n, m], in aligned memory."""
    count, _, _, n, m = bias.shape
    room = bias.new_empty((count, 1, share, n, -(-m // ALIGNED) * ALIGNED))
    room[..., :m] = bias
    return room.view(count, 1, share * n, -1)[..., :m]


def attend(queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Queries [S, groups, rows, width] over keys and values [S, groups, m, width]: [S, groups, rows, width of values]."""
    result: Tensor = scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, scale=scale)
    return result
