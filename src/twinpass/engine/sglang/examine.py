"""Is it the model, the tokenizer and the kind of server that the configuration means?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.core import Request
from twinpass.engine.base import require_fit
from twinpass.engine.sglang.server import Server
from twinpass.errors import EngineError
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Informed, Lora, Trainable

TEXT = "The 3 quick brown foxes didn't jump; they re-read the café's menu twice."
"""Read by the model here and by SGLang."""


@dataclass(frozen=True)
class Expected:
    """What SGLang should answer to :data:`TEXT`: tokens, and log-probabilities [tokens - 1] of all but the first."""

    tokens: list[int]
    values: NDArray[np.float64]
    tolerance: NDArray[np.float64]

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "Expected":
        """Read the text with the model itself.

        Raises:
            ModelError: the tokenizer belongs to another model.
        """
        tokens, causal = list(tokenizer(TEXT)["input_ids"]), CausalModel(model)
        request = Request(tuple(tokens[:-1]), tuple(tokens[-1:]))
        require_fit([request], causal.window, causal.vocabulary, activated=False)
        with torch.inference_mode():
            logits = causal.logits(torch.tensor([tokens]))[0, :-1].double()
        values = logits.log_softmax(-1).gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()
        exact = model.dtype in (torch.float32, torch.float64)
        tolerance = np.full(len(values), 2e-3) if exact else 0.25 + np.abs(values) / 32
        return cls(tokens, values, tolerance)

    def require(self, server: Server) -> None:
        """Let SGLang read it, too.

        Raises:
            EngineError: it reads other tokens, or gives them other probabilities.
        """
        tokens, values = server.read(TEXT)
        if tokens != self.tokens:
            raise EngineError(
                f"SGLang has another tokenizer than the configuration's model: it makes {len(tokens)} tokens of a text of "
                f"{len(self.tokens)}, or others; start it with the model of [model] path"
            )
        worst = float(np.max(np.abs(np.array(values) - self.values)))
        if not bool(np.all(np.abs(np.array(values) - self.values) <= self.tolerance)):
            raise EngineError(
                f"SGLang runs another model than the configuration's, or has changed its weights: log-probabilities of a text differ "
                f"by up to {worst:.3g}; start it with the model of [model] path, in the dtype of [model] dtype"
            )


def require_fitting_arguments(
    facts: Mapping[str, Any], dtype: str, trainable: Trainable, targets: Sequence[str]
) -> None:
    """Whether a server was started with what training needs, adapters on modules of the names ``targets``, if it is adapters.

    Raises:
        EngineError: naming every argument that it was not, and what to start it with.
    """
    problems = []
    if facts.get("dtype") not in (dtype, "auto"):
        problems.append(f"--dtype {dtype} (it has {facts.get('dtype')})")
    if int(facts.get("dp_size") or 1) != 1:
        problems.append("--dp-size 1 (weights and adapters cannot be changed in several replicas)")
    if facts.get("disable_radix_cache"):
        problems.append("no --disable-radix-cache (prefixes come from it)")
    if facts.get("speculative_algorithm"):
        problems.append("no --speculative-algorithm (its drafts pass by the sampler that twinpass draws in)")
    if isinstance(trainable, Lora | Informed):
        problems += _adapter_problems(facts, trainable, targets)
    if problems:
        raise EngineError("the SGLang server was not started for this; it needs " + "; ".join(problems))


def _adapter_problems(facts: Mapping[str, Any], trainable: Lora | Informed, names: Sequence[str]) -> list[str]:
    if not facts.get("enable_lora"):
        return [f"--enable-lora --max-lora-rank {trainable.rank} --lora-target-modules {' '.join(names)}"]
    problems = []
    if int(facts.get("max_lora_rank") or 0) < trainable.rank:
        problems.append(
            f"--max-lora-rank {trainable.rank} (it has {facts.get('max_lora_rank')}; or set [trainable] rank to that)"
        )
    targets = set(facts.get("lora_target_modules") or ())
    if "all" not in targets and not set(names) <= targets:
        problems.append(f"--lora-target-modules {' '.join(names)} (it has {' '.join(sorted(targets))})")
    least = 2 if trainable.activated else 1
    if int(facts.get("max_loras_per_batch") or 0) < least:
        problems.append(f"--max-loras-per-batch {least}, better two more than lanes")
    return problems
