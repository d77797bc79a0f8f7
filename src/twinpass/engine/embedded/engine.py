"""The embedded engine: a Hugging Face model in this process, on the CPU."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from twinpass.core import BASE, Lane, Probe, Request, Score, Scores, Term, Work
from twinpass.engine.base import Engine
from twinpass.engine.embedded.attention import AttentionPlan
from twinpass.engine.embedded.forward import packable, score_packed, score_plain
from twinpass.engine.embedded.lanes import LaneLayout, LaneWeights
from twinpass.engine.embedded.packing import chunks, pack
from twinpass.engine.embedded.tandem import Tandem
from twinpass.engine.embedded.trainable import Trainable, Trained
from twinpass.errors import ModelError
from twinpass.perturb.inplace import InPlaceWeights
from twinpass.perturb.lattice import Lattice, power_of_two
from twinpass.perturb.noise import Distribution
from twinpass.perturb.parameters import flat_view

Perturbation = Literal["tandem", "inplace"]

CHUNK_ROWS = 4096
"""Rows of one lane that run at once; larger batches are cut, so that memory does not grow with them."""


class TorchEngine(Engine):
    """Score and train a causal language model with forward passes only.

    Args:
        model: any ``AutoModelForCausalLM`` on the CPU. It is trained in place (or stays untouched, with adapters).
        trainable: which weights are trained.
        noise: distribution of ``z``.
        perturbation: ``tandem`` runs both signs together and never writes weights while scoring; ``inplace`` walks
            the weights from lane to lane on an exact lattice, for modules that the tandem forward does not know.
        seed: where new adapter weights come from.
        reload: returns the base checkpoint's tensors by name, for :meth:`reset`; adapters do not need it.

    Raises:
        ModelError: the model or its trainable weights cannot be used; the message says which and why.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trainable: Trainable,
        *,
        noise: Distribution = "binomial",
        perturbation: Perturbation = "tandem",
        seed: int = 0,
        reload: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.model = model
        model.train(False)
        self.noise: Distribution = noise
        _require_finite(model)
        self._trained: Trained = trainable.attach(model, seed)
        self.parameters = self._trained.parameters
        self._reload = reload
        self._perturbation = perturbation
        self._tandem = Tandem(model, self.parameters if perturbation == "tandem" else None, self._trained.adapters)
        self._inplace = self._place()
        self._base_hash = _hash(model)
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        self._rehearsed = False
        self.packs = packable(model)
        if not self.packs:
            warnings.warn(
                f"{type(model).__name__} does not give the same scores when its batch is packed; "
                "sequences run by its own forward instead: exact, but slower",
                stacklevel=2,
            )

    @property
    def base_hash(self) -> str:
        return self._base_hash

    @property
    def trained(self) -> int:
        return self.parameters.numel

    @property
    def window(self) -> int | None:
        """The longest input the model takes, where its configuration says."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def effective_eps(self, eps: float) -> float:
        return eps if self._inplace is None else power_of_two(eps)

    def score(self, requests: Sequence[Request], lanes: Sequence[Lane]) -> Scores:
        self._require_fit(requests)
        if not requests or not lanes:
            return Scores([[] for _ in lanes], Work())
        layers = int(self.model.config.get_text_config().num_hidden_layers)
        demand = sum(len(request.inputs) for request in requests) * len(lanes) * layers
        values: list[list[Score]] = []
        rows = 0
        if self._inplace is None:
            values, rows = self._pass(requests, lanes)
        else:
            for lane in lanes:
                self._inplace.move_to(lane)
                part, count = self._pass(requests, [BASE])
                values += part
                rows += count
        return Scores(values, Work(demand, rows * layers))

    def _pass(self, requests: Sequence[Request], lanes: Sequence[Lane]) -> tuple[list[list[Score]], int]:
        """``[lane][request]`` scores, and how many rows ran for them."""
        if not self.packs:
            plain = [score_plain(self.model, requests, self._running([lane])) for lane in lanes]
            return plain, len(lanes) * sum(len(request.inputs) for request in requests)
        self._rehearse(lanes)
        values: list[list[Score]] = [[] for _ in lanes]
        rows = 0
        for part in chunks(requests, max(1, CHUNK_ROWS // len(lanes))):
            packed = pack([requests[i] for i in part])
            scores = score_packed(self.model, packed, AttentionPlan(packed, len(lanes)), self._running(lanes))
            for lane, own in zip(values, scores, strict=True):
                lane.extend(own)
            rows += packed.rows * len(lanes)
        return values, rows

    def _rehearse(self, lanes: Sequence[Lane]) -> None:
        """Run two lanes once with a number of rows like no other size in the model, so that modules learn their axes."""
        if self._rehearsed or len(lanes) == 1 or self._perturbation == "inplace":
            return
        self._rehearsed = True
        sizes = {size for tensor in self.model.state_dict().values() for size in tensor.shape}
        sizes |= {value for value in self.model.config.get_text_config().to_dict().values() if isinstance(value, int)}
        rows = next(n for n in range(11, len(sizes) + 12) if not sizes & {n, 2 * n})
        packed = pack([Request((0,), tuple(i % self._vocabulary for i in range(rows)))])
        probe = Probe(0)
        pair = [Lane(probe, sign, 1e-3) for sign in (1, -1)]
        score_packed(self.model, packed, AttentionPlan(packed, 2), self._running(pair))

    def _running(self, lanes: Sequence[Lane]) -> Callable[[Callable[[], LaneLayout]], AbstractContextManager[None]]:
        weights = LaneWeights(self.parameters, self.noise, lanes)
        return lambda layout: self._tandem.running(weights, layout)

    def update(self, terms: Sequence[Term]) -> None:
        if self._inplace is None:
            self.parameters.add(terms, self.noise)
        else:
            self._inplace.update(terms)

    def settle(self) -> None:
        """Bring the weights in memory to ``theta``, with every update applied (they wait in in-place mode)."""
        if self._inplace is not None:
            self._inplace.settle()

    def reset(self) -> None:
        if self._trained.adapter is not None:
            self._trained.adapter.reset()
        elif self._reload is not None:
            self.parameters.copy_from(self._reload())
        else:
            raise ModelError("the base weights are not at hand: give the engine a 'reload' function, or a model path")
        self._inplace = self._place()

    def _place(self) -> InPlaceWeights | None:
        return InPlaceWeights(Lattice(self.parameters, self.noise)) if self._perturbation == "inplace" else None

    def save(self, run: Path) -> Path:
        self.settle()
        return self._trained.save(self.model, run)

    def _require_fit(self, requests: Sequence[Request]) -> None:
        for i, request in enumerate(requests):
            if not request.prompt or not request.completion:
                raise ModelError(f"request {i} has an empty prompt or completion; both need at least one token")
            if self.window is not None and len(request.inputs) > self.window:
                count = len(request.inputs)
                raise ModelError(f"request {i} has {count} tokens; the model's window holds {self.window}")
            tokens = request.prompt + request.completion
            for token in (min(tokens), max(tokens)):
                if not 0 <= token < self._vocabulary:
                    raise ModelError(
                        f"request {i} has token {token}, the model's vocabulary is 0 to {self._vocabulary - 1}; "
                        "the tokenizer belongs to another model"
                    )


def _require_finite(model: PreTrainedModel) -> None:
    for name, tensor in model.named_parameters():
        if tensor.device.type != "cpu":
            raise ModelError(f"{name} is on {tensor.device}; the torch engine runs on the CPU for now: use model.cpu()")
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{name} holds NaN or infinite weights; the checkpoint is damaged, load it again from its source"
            )


def _hash(model: PreTrainedModel) -> str:
    """SHA-256 over names, shapes and bits of all parameters."""
    digest = hashlib.sha256()
    for name, tensor in model.named_parameters():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(flat_view(tensor.contiguous()).data)
    return digest.hexdigest()
