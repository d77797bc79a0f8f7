"""What the GPU benchmark runs: random Llamas on a device, random batches, plain LoRA beside a model."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from twinpass.model.patching import forward_of
from twinpass.task.example import Example

RANK, ALPHA = 8, 16.0
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Shape:
    """A Llama: hidden size, layers, heads, inner size of the MLP, vocabulary."""

    hidden: int
    layers: int
    heads: int
    inner: int
    vocabulary: int = 32000

    def build(self, device: torch.device, dtype: torch.dtype, window: int) -> PreTrainedModel:
        """Random weights, made where they stay."""
        make: Any = AutoModelForCausalLM
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=window,
            tie_word_embeddings=False,
        )
        torch.manual_seed(0)
        with device:
            model: Any = make.from_config(config, dtype=dtype)
        model.requires_grad_(False)
        built: PreTrainedModel = model
        return built

    def slot_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of a token's keys and values."""
        return 2 * self.layers * self.hidden * dtype.itemsize


SHAPES = {"1.3B": Shape(2048, 24, 16, 5504), "7B": Shape(4096, 32, 32, 11008)}
TINY = {"tiny": Shape(32, 1, 2, 48, 128)}


@dataclass(frozen=True)
class Batch:
    """``count`` prompts of ``length`` tokens that end in ``suffix`` equal ones, after ``shared`` tokens that all have in common.

    Each has two options of one token to choose from; or a text of ``text`` tokens to write.
    """

    count: int
    length: int
    shared: int = 0
    text: int = 0
    suffix: int = 4

    def examples(self, vocabulary: int, seed: int) -> list[Example]:
        """The batch number ``seed``."""
        same, own = np.random.default_rng(0), np.random.default_rng(1 + seed)
        head, suffix = (same.integers(vocabulary, size=n).tolist() for n in (self.shared, self.suffix))
        found = []
        for _ in range(self.count):
            body = own.integers(vocabulary, size=self.length - self.suffix).tolist()
            prompt = (*head, *body, *suffix)
            options = (tuple(own.integers(vocabulary, size=self.text).tolist()),) if self.text else ((5,), (7,))
            found.append(Example(prompt, options, int(own.integers(len(options))), len(prompt) - self.suffix))
        return found


class PlainLora(nn.Module):
    """A model with ordinary LoRA on its attention's projections, float32 as PEFT holds it, acting on all tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.adapters = nn.ParameterList()
        self._sites: list[tuple[nn.Linear, Tensor, Tensor]] = []
        for path, module in model.named_modules():
            if path.rsplit(".", 1)[-1] in TARGETS and isinstance(module, nn.Linear):
                like: dict[str, Any] = {"dtype": torch.float32, "device": module.weight.device}
                a = torch.randn(RANK, module.in_features, **like) * module.in_features**-0.5
                b = torch.zeros(module.out_features, RANK, **like)
                pair = nn.Parameter(a, requires_grad=False), nn.Parameter(b, requires_grad=False)
                self.adapters.extend(pair)
                self._sites.append((module, *pair))

    def forward(self, **inputs: Any) -> Any:
        """What the model returns."""
        with ExitStack() as stack:
            for module, a, b in self._sites:
                stack.enter_context(forward_of(module, _adapted(module.forward, a, b)))
            return self.model(**inputs)


def _adapted(original: Any, a: Tensor, b: Tensor) -> Any:
    def forward(x: Tensor) -> Tensor:
        y: Tensor = original(x)
        change = (x.to(a.dtype) @ a.t()) @ b.t() * (ALPHA / RANK)
        return y + change.to(y.dtype)

    return forward
