"""All weights of a model, moved inside SGLang's own processes: only seeds and scalars travel there.

A command is a JSON object in the ``load_format`` of SGLang's ``update_weights_from_tensor``, which reaches every process, in
process or over HTTP, and carries no tensors here; a hook (:mod:`twinpass.engine.sglang.inside.plugin`) hands it to :func:`answer`.
Weights move only while SGLang is idle, and its cache is flushed in the same call, so that no key or value outlives its weights.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twinpass.core import BASE, Lane, Probe, Term
from twinpass.engine.sglang.inside.places import Place, Places
from twinpass.errors import EngineError, TwinpassError
from twinpass.perturb.backend import backend_for
from twinpass.perturb.copied import CopiedWeights
from twinpass.perturb.inplace import InPlaceWeights
from twinpass.perturb.lattice import Lattice
from twinpass.perturb.layout import flat_view
from twinpass.perturb.moving import MovingWeights
from twinpass.perturb.noise import ALGORITHM, Distribution
from twinpass.perturb.parameters import Parameters

COMMAND = "twinpass:"
"""What a ``load_format`` begins with that is a command."""

Checkpoint = Callable[[], Mapping[str, Tensor]]
"""Reads SGLang's checkpoint: tensors by the names they have there."""


class WorkerWeights:
    """The trained weights in one of SGLang's processes.

    Args:
        model: SGLang's model.
        checkpoint: where it was loaded from.
        begin: what the client says of the run (see :meth:`twinpass.engine.sglang.weights.WeightVariants`).

    Raises:
        EngineError: a parameter is not where it should be, or does not hold what the checkpoint has.
    """

    def __init__(self, model: nn.Module, checkpoint: Checkpoint, begin: Mapping[str, Any]) -> None:
        if begin["algorithm"] != ALGORITHM:
            raise EngineError(
                f"twinpass beside SGLang draws noise by {ALGORITHM}, the client by {begin['algorithm']}: install the same version"
            )
        self.session, self.moves = str(begin["session"]), 0
        self._checkpoint, self._begin = checkpoint, begin
        self._noise: Distribution = begin["noise"]
        places, trained = Places(model), begin["trained"]
        whole = checkpoint()
        self._places = {name: places.find(name, entry["shape"]) for name, entry in trained.items()}
        for name, entry in trained.items():
            _require_tied(name, self._places[name], [places.find(other, entry["shape"]) for other in entry["tied"]])
        if begin["all"]:
            _require_reached(model, self._places)
        self.base = self._hash(whole)
        for name, place in self._places.items():
            if not torch.equal(place.tensor.cpu(), self._cut(whole, name)):
                raise EngineError(
                    f"{name}: what SGLang computes with is not what its checkpoint has; it has been changed, quantised or repacked. "
                    "Start it again from its checkpoint, in the dtype of the configuration"
                )
        self._weights = self._start(whole)

    def _cut(self, whole: Mapping[str, Tensor], name: str) -> Tensor:
        """The part of a checkpoint's tensor that belongs here, in the dtype that SGLang computes in."""
        place = self._places[name]
        tensor, shard = whole[name].contiguous(), place.shard
        if tensor.numel() == 0:
            return tensor.to(place.tensor.dtype)
        runs = place.tensor.numel() // shard.width
        part = torch.as_strided(tensor, (runs, shard.width), (shard.stride, 1), tensor.storage_offset() + shard.start)
        return part.to(place.tensor.dtype).reshape(place.tensor.shape)

    def _hash(self, whole: Mapping[str, Tensor]) -> str:
        """What :func:`twinpass.model.identity.hash_of` gives for the same model."""
        dtype = next(iter(self._places.values())).tensor.dtype
        digest = hashlib.sha256()
        for name, shape in self._begin["model"]:
            if name not in whole or list(whole[name].shape) != shape:
                found = list(whole[name].shape) if name in whole else "no such parameter"
                raise EngineError(
                    f"SGLang runs another model than the configuration's: {name} should be {shape}, its checkpoint has {found}"
                )
            digest.update(f"{name} {dtype} {tuple(shape)}\n".encode())
            digest.update(flat_view(whole[name].to(dtype).contiguous()).data)
        return digest.hexdigest()

    def _start(self, whole: Mapping[str, Tensor]) -> MovingWeights:
        blocks = {name: entry["block"] for name, entry in self._begin["trained"].items() if entry["block"] is not None}
        shards = {name: place.shard for name, place in self._places.items()}
        live = {name: place.tensor for name, place in self._places.items()}
        if self._begin["perturbation"] == "inplace":
            quanta = {name: entry["quantum"] for name, entry in self._begin["trained"].items()}
            backend = backend_for(next(iter(live.values())))
            return InPlaceWeights(
                Lattice(Parameters(live, blocks, shards=shards, backend=backend), self._noise, quanta)
            )
        theta = {name: self._cut(whole, name).clone() for name in live}
        return CopiedWeights(Parameters(theta, blocks, shards=shards), live, self._noise)

    def move(self, lane: Lane, terms: Sequence[Term]) -> None:
        """Update by ``terms``, and bring the weights to ``lane``; a move that fails is counted, as nobody knows how far it came."""
        self.moves += 1
        self._weights.update(terms)
        self._weights.move_to(lane)

    def reset(self) -> None:
        """Return to the checkpoint's weights."""
        whole = self._checkpoint()
        for name, place in self._places.items():
            place.tensor.copy_(self._cut(whole, name))
        self._weights = self._start(whole)
        self.moves += 1

    def end(self) -> None:
        """Leave the checkpoint's own weights behind."""
        whole = self._checkpoint()
        for name, place in self._places.items():
            place.tensor.copy_(self._cut(whole, name))

    def digest(self) -> str | None:
        """SHA-256 over the weights as they are now, parameter after parameter; None where only a part of them is here."""
        shapes = {name: entry["shape"] for name, entry in self._begin["trained"].items()}
        if any(list(place.tensor.shape) != shapes[name] for name, place in self._places.items()):
            return None
        digest = hashlib.sha256()
        for place in self._places.values():
            digest.update(flat_view(place.tensor.cpu().contiguous()).data)
        return digest.hexdigest()


def _require_tied(name: str, place: Place, others: Sequence[Place]) -> None:
    if any(other.tensor.data_ptr() != place.tensor.data_ptr() for other in others):
        raise EngineError(
            f"{name} is tied to other parameters in the model, but SGLang holds a copy of it; train others, or adapters"
        )


def _require_reached(model: nn.Module, places: Mapping[str, Place]) -> None:
    """Every weight that SGLang computes with is some parameter of the model's (padding of the vocabulary aside)."""
    reached = {place.tensor.untyped_storage().data_ptr() for place in places.values()}
    missed = [name for name, each in model.named_parameters() if each.untyped_storage().data_ptr() not in reached]
    if missed:
        raise EngineError(
            f"SGLang has {len(missed)} parameters that are none of the model's ({', '.join(missed[:4])}): they would silently stay as "
            "they are; train a part with trainable.kind = 'pattern', or adapters"
        )


def answer(state: Any, command: Mapping[str, Any], model: nn.Module, checkpoint: Checkpoint) -> dict[str, Any]:
    """Carry a command out in this process.

    Args:
        state: an object that keeps the :class:`WorkerWeights` between commands, as its attribute ``twinpass_weights``.
        command: ``do`` is "begin", "move", "reset", "end", "where" or "digest", of a session; or "untouched", of none.
        model: SGLang's.
        checkpoint: where it was loaded from.

    Raises:
        EngineError: it cannot be done. After a move that failed, only "reset" and "end" can.
    """
    held: WorkerWeights | None = getattr(state, "twinpass_weights", None)
    if command["do"] == "begin":
        if held is not None:
            held.end()  # a client that went away without a word
            state.twinpass_weights = None
        held = state.twinpass_weights = WorkerWeights(model, checkpoint, command)
        return {"base": held.base, "moves": held.moves}
    if command["do"] == "untouched":
        return _untouched(held)
    known = held is not None and held.session == command["session"]
    if held is None or not known or (held.moves != command["moves"] and command["do"] not in ("reset", "end")):
        raise EngineError(
            "SGLang's weights are not where this run left them: it was started again, or another run uses it. "
            "Continue with 'twinpass train --resume RUN'"
        )
    if command["do"] == "move":
        held.move(lane_of(command["lane"]), [Term(seed, scale, block) for seed, scale, block in command["terms"]])
    elif command["do"] == "reset":
        held.reset()
    elif command["do"] == "end":
        held.end()
        state.twinpass_weights = None
    elif command["do"] == "digest":
        return {"moves": held.moves, "digest": held.digest()}
    return {"moves": held.moves}


def _untouched(held: WorkerWeights | None) -> dict[str, Any]:
    if held is not None:
        raise EngineError(
            "a run trains the weights of this SGLang, or died while it did: its scores are those of perturbed weights. "
            "Continue that run, or start SGLang again"
        )
    return {}


def lane_of(given: Sequence[Any] | None) -> Lane:
    """A lane from (seed, block, sign, eps), or None for the base lane."""
    if given is None:
        return BASE
    seed, block, sign, eps = given
    return Lane(Probe(seed, block), sign, eps)


def carry_out(
    text: str, *, idle: Callable[[], bool], flush: Callable[[], bool], run: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Carry a command out if SGLang is idle, and flush its cache if weights may have moved.

    Returns:
        What to tell the client: the answer, or ``error``; ``busy`` is true if it may be asked again later, as nothing has changed.
    """
    command = json.loads(text)
    moves = command["do"] in ("begin", "move", "reset", "end")
    if moves and not idle():
        return {"error": "SGLang is busy with other requests", "busy": True}
    try:
        found = run(command)
    except TwinpassError as error:
        found = {"error": str(error)}
    except Exception as error:  # told to the client, as SGLang would only write it to its log
        found = {"error": f"{type(error).__name__}: {error}"}
    if moves and not flush():
        return {"error": "SGLang refused to flush its cache after its weights had moved; start it again"}
    return found
