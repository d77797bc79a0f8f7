"""What products in bfloat16 would save on this machine."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from twinpass.config.engines import multiplies_tiles
from twinpass.engine.embedded.linear.products import halved, prepacked, product, rounded_product
from twinpass.model.causal import is_linear, output_layer

ROWS, TURNS = 512, 7


def share_of_float32(model: PreTrainedModel) -> float | None:
    """Seconds of a product with ``[engine] compute_dtype = "bfloat16"`` as a share of those in float32, by the model's largest layer.

    None: the processor multiplies no tiles of it, or the model is not for it (float32 on the CPU, of ``nn.Linear``).
    """
    head = output_layer(model)
    layers = [module for module in model.modules() if is_linear(module) and module is not head]
    if model.dtype is not torch.float32 or model.device.type != "cpu" or not layers or not multiplies_tiles():
        return None
    weight = max((_weight(layer) for layer in layers), key=Tensor.numel)
    x, whole, low = torch.ones(ROWS, weight.shape[1]), prepacked(weight), prepacked(halved(weight)[0])
    with torch.no_grad():
        turns = [(_seconds(lambda: product(x, whole)), _seconds(lambda: rounded_product(x, low))) for _ in range(TURNS)]
    in_float32, in_bfloat16 = (min(turn[place] for turn in turns[1:]) for place in (0, 1))
    return in_bfloat16 / in_float32


def _weight(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight").detach()


def _seconds(multiply: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    multiply()
    return time.perf_counter() - began
