"""Scores to first order in the perturbation, by forward-mode differentiation: the reference that estimates are held against.

Slow, and ``z`` exists as a whole here: for tests and analysis, not for training on the memory one has.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad as untyped_forward_ad
from torch.func import functional_call

from twinpass.core import Lane, Probe, Request, Score
from twinpass.engine.embedded.scoring.plain import equally_long
from twinpass.errors import ModelError
from twinpass.model.causal import CausalModel, log_softmax
from twinpass.model.lora import LoraWeights
from twinpass.model.patching import forward_of
from twinpass.perturb import kernels
from twinpass.perturb.noise import Distribution
from twinpass.perturb.parameters import Parameters

forward_ad: Any = untyped_forward_ad

BATCH_TOKENS = 2048
"""Tokens that run at once; dual numbers take twice the memory, and nothing is packed."""

Tangents = list[tuple[Score, Score]]
"""By request: log-probabilities [len(completion)], and their derivatives along ``z``."""


def score_linear(
    causal: CausalModel,
    parameters: Parameters,
    adapters: Mapping[str, LoraWeights],
    noise: Distribution,
    requests: Sequence[Request],
    starts: Sequence[int],
    lanes: Sequence[Lane],
) -> list[list[Score]]:
    """``[lane][request]`` log-probabilities to first order, of lanes that have a probe."""
    probes = {lane.probe: None for lane in lanes if lane.probe is not None}
    known = {probe: tangents(causal, parameters, adapters, noise, requests, starts, probe) for probe in probes}
    return [
        [value + lane.scale * slope for value, slope in known[lane.probe]] for lane in lanes if lane.probe is not None
    ]


def tangents(
    causal: CausalModel,
    parameters: Parameters,
    adapters: Mapping[str, LoraWeights],
    noise: Distribution,
    requests: Sequence[Request],
    starts: Sequence[int],
    probe: Probe,
) -> Tangents:
    """Log-probabilities and their directional derivatives along a probe's ``z``; ``starts`` are activation points."""
    found: dict[int, tuple[Score, Score]] = {}
    with torch.no_grad(), _dual_level(), _eager(causal):
        duals = _duals(parameters, noise, probe)
        for _, start, part in equally_long(requests, starts, BATCH_TOKENS):
            logits = _logits(causal, duals, adapters, [requests[i].inputs for i in part], start)
            for i, row in zip(part, logits, strict=True):
                found[i] = _read(row, requests[i])
    return [found[i] for i in range(len(requests))]


@contextmanager
def _dual_level() -> Iterator[None]:
    """Tensors may carry a derivative inside the block. PyTorch warns of its own old code when it first loads this; that is kept from the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is", DeprecationWarning)
        with forward_ad.dual_level():
            yield


def _duals(parameters: Parameters, noise: Distribution, probe: Probe) -> dict[str, Tensor]:
    duals = {}
    for name, tensor in parameters.items():
        z = np.zeros(tensor.numel(), np.float32)
        if parameters.moves(name, probe.block):
            kernels.fill(z, probe.seed, parameters.keys_of[name][0], 0, noise)
        along = torch.from_numpy(z).view(tensor.shape).to(tensor.device, tensor.dtype)
        duals[name] = forward_ad.make_dual(tensor, along)
    return duals


def _logits(
    causal: CausalModel,
    duals: Mapping[str, Tensor],
    adapters: Mapping[str, LoraWeights],
    inputs: Sequence[Sequence[int]],
    start: int,
) -> Tensor:
    model = causal.model
    with ExitStack() as stack:
        for path, lora in adapters.items():
            module = model.get_submodule(path)
            acts = (torch.arange(len(inputs[0]), device=model.device) >= start).repeat(len(inputs))[:, None]
            stack.enter_context(forward_of(module, _adapted(module.forward, duals, lora, acts)))
        own = {} if adapters else dict(duals)
        (ids,) = causal.device.send(np.array(inputs, np.int64))
        arguments = {"input_ids": ids, "use_cache": False}
        try:
            logits: Tensor = functional_call(model, own, (), arguments).logits
        except NotImplementedError as error:
            raise ModelError(
                f"{type(model).__name__} has a part without a forward-mode derivative, so that jvp cannot be taken "
                f"({str(error).splitlines()[0]}); use estimator.kind = 'spsa'"
            ) from error
    return logits


def _adapted(
    original: Callable[[Tensor], Tensor], duals: Mapping[str, Tensor], lora: LoraWeights, acts: Tensor
) -> Callable[[Tensor], Tensor]:
    """The module with its adapter, on those of all tokens [B * N, 1] where it ``acts``."""

    def forward(x: Tensor) -> Tensor:
        a, b = duals[lora.a], duals[lora.b]
        y = original(x)
        rows = x.reshape(len(acts), -1).to(a.dtype)
        change = (rows @ a.t()) @ b.t() * (acts.to(a.dtype) * lora.scale)
        return y + change.view(y.shape).to(y.dtype)

    return forward


def _read(row: Tensor, request: Request) -> tuple[Score, Score]:
    logprobs = log_softmax(row[len(request.prompt) - 1 :])[range(len(request.completion)), request.completion]
    value, tangent = forward_ad.unpack_dual(logprobs)
    slope = torch.zeros_like(value) if tangent is None else tangent
    return value.double().cpu().numpy(), slope.double().cpu().numpy()


@contextmanager
def _eager(causal: CausalModel) -> Iterator[None]:
    """Fused attention kernels have no forward-mode derivative."""
    config: Any = causal.model.config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before
