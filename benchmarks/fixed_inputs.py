"""Adapters whose input directions stay as they are and whose output factor alone is trained: for comparison.

Along probes that is a low-rank z: ``U V^T`` with a V that stays and a U of every probe's own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from twinpass.model.causal import CausalModel
from twinpass.model.defaults import ADAPTERS, Defaults
from twinpass.model.lora import LoraAdapter
from twinpass.model.trainable import Trainable, Trained
from twinpass.perturb.parameters import Parameters
from twinpass.settings import STRICT

RANK, ALPHA = 8, 16.0
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
LAST = 4
"""So many tokens of a prompt's end are looked at, as adapters act from the suffix on."""
MOST = 128
"""Prompts whose inputs are looked at."""


@dataclass(frozen=True, config=STRICT)
class FixedInputs(Trainable):
    """An activated adapter of which B alone is trained; A is drawn at random, or is what ``file`` says of each module."""

    defaults: ClassVar[Defaults] = ADAPTERS
    adapter: ClassVar[bool] = True
    activated: ClassVar[bool] = True

    file: str = ""

    def block_at(self, step: int) -> int:
        return 0

    def attach(self, model: PreTrainedModel, seed: int, invocation: tuple[int, ...] = ()) -> Trained:
        adapter = _Adapter(model, seed, invocation, load_file(self.file) if self.file else {})
        outputs = {own.b: 0 for own in adapter.modules.values()}
        return Trained(Parameters(adapter.tensors, outputs), adapter, activated=True)


class _Adapter(LoraAdapter):
    def __init__(
        self, model: PreTrainedModel, seed: int, invocation: tuple[int, ...], inputs: Mapping[str, Tensor]
    ) -> None:
        self._inputs = inputs
        super().__init__(model, RANK, ALPHA, TARGETS, seed, invocation)

    def reset(self) -> None:
        super().reset()
        for path, rows in self._inputs.items():
            self.tensors[self.modules[path].a].copy_(rows)


def principal(model: PreTrainedModel, prompts: Sequence[Sequence[int]], file: Path) -> None:
    """Write the leading right singular vectors [RANK, in] of what enters each module at the ends of prompts."""
    found: dict[str, list[Tensor]] = {}

    def watching(path: str) -> Any:
        def watch(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            found.setdefault(path, []).append(given[0][0, -LAST:])

        return watch

    causal = CausalModel(model)
    hooks = [
        module.register_forward_pre_hook(watching(path))
        for path, module in model.named_modules()
        if path.rsplit(".", 1)[-1] in TARGETS and causal.reads_text(path)
    ]
    try:
        with torch.no_grad():
            for prompt in prompts[:MOST]:
                model(input_ids=torch.tensor([list(prompt)]))
    finally:
        for hook in hooks:
            hook.remove()
    vectors = {
        path: torch.linalg.svd(torch.cat(rows).float(), full_matrices=False).Vh[:RANK] for path, rows in found.items()
    }
    save_file({path: rows.contiguous() for path, rows in vectors.items()}, file)
