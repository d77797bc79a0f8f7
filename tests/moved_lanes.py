"""Engines on real SGLang that train weights of the model itself, and the embedded engine at the same weights."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

from transformers import PreTrainedModel

from twinpass.core import Lane, Probe
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.sglang.engine import SglangEngine
from twinpass.engine.sglang.server import Server
from twinpass.engine.sglang.weights import WeightVariants
from twinpass.model.causal import CausalModel
from twinpass.model.identity import hash_of
from twinpass.model.trainable import Trainable, Trained
from twinpass.perturb.noise import Distribution

EPS = 2.0**-10


def lanes_of(seed: int, block: int | None = None, eps: float = EPS) -> list[Lane]:
    return [Lane(Probe(seed, block), sign, eps) for sign in (1, -1)]


@contextmanager
def engine_of(
    model: PreTrainedModel, server: Server, trainable: Trainable, *, noise: Distribution, inplace: bool
) -> Iterator[SglangEngine]:
    """An SGLang engine on a model that stays as it is; SGLang's weights are put back at the end."""
    own = deepcopy(model)

    def again() -> tuple[PreTrainedModel, Trained]:
        fresh = deepcopy(model)
        return fresh, trainable.attach(fresh, 0)

    variants = WeightVariants(
        server,
        own,
        hash_of(own),
        trainable.attach(own, 0),
        again=again,
        noise=noise,
        inplace=inplace,
    )
    try:
        yield SglangEngine(CausalModel(model), hash_of(model), server, variants)
    finally:
        with warnings.catch_warnings(action="ignore"):  # where a test has closed them
            variants.close()


def embedded_of(model: PreTrainedModel, trainable: Trainable, *, noise: Distribution, inplace: bool) -> TorchEngine:
    return TorchEngine(
        deepcopy(model),
        trainable,
        noise=noise,
        perturbation="inplace" if inplace else "tandem",
        reload=lambda: dict(model.named_parameters()),
    )
