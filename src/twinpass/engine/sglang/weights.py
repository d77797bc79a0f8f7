"""Lanes as the weights that SGLang computes with, moved inside its processes from one to the next."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.core import BASE, Lane, Term
from twinpass.engine.sglang.server import Server, Variant
from twinpass.engine.sglang.variants import Variants
from twinpass.errors import EngineError
from twinpass.model.trainable import Trained
from twinpass.perturb.inplace import InPlaceWeights
from twinpass.perturb.lattice import Lattice, power_of_two
from twinpass.perturb.noise import ALGORITHM, Distribution
from twinpass.perturb.parameters import Parameters


class WeightVariants(Variants):
    """Trains weights of the model itself, where they are; only seeds and scalars are sent.

    Lanes are scored one after another. An update waits for the next lane, so that it, the way back from the last lane and the
    next perturbation are one pass over the weights. Every move has a number and the one before is named with it: a server
    that was started again, or is used by another run, is noticed, and no score is taken from it.

    Args:
        server: a running SGLang.
        model: the model at ``theta_0``, with its weights, which end up on the lattice if they are to move in place.
        checkpoint: the model's hash.
        trained: which of its weights are trained.
        again: loads the model again, and picks the same weights of it, to save it together with the ``tokenizer``.
        noise: distribution of ``z``.
        inplace: move the weights on a lattice, without a copy of them; otherwise ``theta`` stays in a copy in main memory.

    Raises:
        LatticeError: the weights or the noise do not fit a lattice.
        EngineError: SGLang has other weights than the model, or holds them in a way that is not known.
    """

    def __init__(
        self,
        server: Server,
        model: PreTrainedModel,
        checkpoint: str,
        trained: Trained,
        *,
        again: Callable[[], tuple[PreTrainedModel, Trained]],
        noise: Distribution,
        inplace: bool,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self._server, self._noise, self._inplace = server, noise, inplace
        self._again, self._tokenizer = again, tokenizer
        self._numel = trained.parameters.numel
        self._terms: list[Term] = []
        self._waiting: list[Term] = []
        self._at: Lane | None = BASE
        self._session, self._moves = uuid4().hex, 0
        answer = self._server.command("begin", session=self._session, **self._description(model, trained.parameters))
        self._moves = int(answer["moves"])
        if answer["base"] != checkpoint:
            self.close()
            raise EngineError(
                "SGLang runs another model than the configuration's: their weights differ. Start it with the model of [model] path, "
                "in the dtype of [model] dtype"
            )

    def _description(self, model: PreTrainedModel, parameters: Parameters) -> dict[str, Any]:
        """What SGLang's processes have to know of the run."""
        names: dict[int, list[str]] = {}
        for name, tensor in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(tensor), []).append(name)
        tied = {group[0]: group[1:] for group in names.values()}
        shapes = [[name, list(tensor.shape)] for name, tensor in model.named_parameters()]
        quanta = Lattice(parameters, self._noise).quantum if self._inplace else {}
        trained = {
            name: {
                "shape": list(tensor.shape),
                "tied": tied[name],
                "block": parameters.block_of(name),
                "quantum": quanta.get(name),
            }
            for name, tensor in parameters.items()
        }
        return {
            "algorithm": ALGORITHM,
            "model": shapes,
            "trained": trained,
            "all": len(trained) == len(shapes),
            "noise": self._noise,
            "perturbation": "inplace" if self._inplace else "tandem",
        }

    @property
    def trained(self) -> int:
        return self._numel

    @property
    def activated(self) -> bool:
        return False

    def effective_eps(self, eps: float) -> float:
        return power_of_two(eps) if self._inplace else eps

    def groups(self, lanes: Sequence[Lane]) -> Iterator[list[Variant]]:
        for lane in lanes:
            self._move_to(lane)
            yield [Variant(salt=f"{self._session}-{self._moves}")]
        self._command("where")

    def _move_to(self, lane: Lane) -> None:
        if lane == self._at and not self._waiting:
            return
        probe = lane.probe
        place = None if probe is None else [probe.seed, probe.block, lane.sign, lane.eps]
        self._at = None  # unknown, should the command fail
        self._command("move", lane=place, terms=[[term.seed, term.scale, term.block] for term in self._waiting])
        self._at, self._waiting = lane, []

    def _command(self, do: str, **arguments: Any) -> dict[str, Any]:
        answer = self._server.command(do, session=self._session, moves=self._moves, **arguments)
        self._moves = int(answer["moves"])
        return answer

    def update(self, terms: Sequence[Term]) -> None:
        self._terms += terms
        self._waiting += terms

    def reset(self) -> None:
        self._at = None
        self._command("reset")
        self._terms, self._waiting = [], []

    def save(self, run: Path) -> Path:
        """The model, rebuilt here from the updates as ``twinpass replay`` does, and compared with SGLang's to the bit."""
        model, trained = self._again()
        if self._inplace:
            weights = InPlaceWeights(Lattice(trained.parameters, self._noise))
            weights.update(self._terms)
            weights.settle()
        else:
            trained.parameters.add(self._terms, self._noise)
        self._move_to(BASE)
        theirs = self._command("digest")["digest"]
        if theirs is not None and theirs != _digest(trained.parameters):
            raise EngineError(
                "SGLang's weights are not those that the journal leads to; rebuild them with 'twinpass replay RUN', and do not trust this run"
            )
        return trained.save(model, run, self._tokenizer)

    def close(self) -> None:
        try:
            self._server.command("end", session=self._session, moves=self._moves)
        except EngineError as error:
            warnings.warn(
                f"SGLang has not taken its own weights back ({error}); start it again before it is used for anything else",
                stacklevel=2,
            )


def _digest(parameters: Parameters) -> str:
    digest = hashlib.sha256()
    for flat in parameters.flat.values():
        digest.update(flat.data)
    return digest.hexdigest()
