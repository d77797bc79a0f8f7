"""Lanes as adapters, loaded from memory and mixed in one batch."""

from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from transformers import PreTrainedModel

from twinpass.core import Lane, Term
from twinpass.engine.embedded.linear.lanes import LaneWeights
from twinpass.engine.sglang.server import Server, Variant
from twinpass.engine.sglang.variants import Variants
from twinpass.errors import EngineError, ModelError
from twinpass.model.informed import InformedAdapter
from twinpass.model.space import Space
from twinpass.model.trainable import Trained
from twinpass.perturb.noise import Distribution


class AdapterVariants(Variants):
    """Trains an adapter, which is here; SGLang gets each lane's under a name that is never used again.

    SGLang keeps the keys and values of every adapter apart, so that none is ever read under other weights.

    Args:
        server: a running SGLang with adapters enabled.
        model: the model's shapes and configuration; its tensors may be on the meta device.
        trained: an adapter.
        noise: distribution of ``z``.

    Raises:
        EngineError: another run trains the weights of this SGLang.
    """

    def __init__(self, server: Server, model: PreTrainedModel, trained: Trained, noise: Distribution) -> None:
        if trained.adapter is None:
            raise ModelError("these weights are no adapter")
        self._server, self._model, self._trained, self._noise = server, model, trained, noise
        self._adapter = trained.adapter
        server.command("untouched")
        self._loaded: dict[Lane, str] = {}

    @property
    def trained(self) -> int:
        return self._trained.parameters.numel

    @property
    def activated(self) -> bool:
        return self._trained.activated

    def effective_eps(self, eps: float) -> float:
        return eps

    def groups(self, lanes: Sequence[Lane]) -> Iterator[list[Variant]]:
        self._unload(set(self._loaded) - set(lanes))
        new = [lane for lane in lanes if lane not in self._loaded]
        weights = LaneWeights(self._trained.parameters, self._noise, new)
        whole = {name: weights.whole(name) for name in self._trained.parameters} if new else {}
        parts = [self._adapter.peft_tensors({name: own[i] for name, own in whole.items()}) for i in range(len(new))]
        config = self._adapter.peft_config("")
        config.pop("alora_invocation_tokens", None)
        for lane, part in zip(new, parts, strict=True):
            tensors = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in part.items()}
            self._loaded[lane] = f"twinpass-{uuid4().hex}"
            self._server.load(self._loaded[lane], tensors, config)
        together = (
            self._server.slots - 1 if self.activated else len(lanes)
        )  # one slot stays free for rows of the base model
        for i in range(0, len(lanes), together):
            yield [Variant(self._loaded[lane]) for lane in lanes[i : i + together]]
        self._server.command("untouched")

    def _unload(self, lanes: Set[Lane]) -> None:
        for lane in lanes:
            self._server.unload(self._loaded[lane])
            del self._loaded[lane]

    def update(self, terms: Sequence[Term]) -> None:
        self._unload(set(self._loaded))
        self._trained.parameters.add(terms, self._noise)

    def use(self, space: Space) -> None:
        if not isinstance(self._adapter, InformedAdapter):
            super().use(space)
        else:
            self._unload(set(self._loaded))
            self._adapter.use(space)

    def reset(self) -> None:
        self._unload(set(self._loaded))
        self._adapter.reset()

    def save(self, run: Path) -> Path:
        return self._trained.save(self._model, run)

    def close(self) -> None:
        for lane in list(self._loaded):
            with suppress(EngineError):  # a server that is gone, or never had it
                self._unload({lane})
