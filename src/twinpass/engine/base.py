"""The contract of an engine: score requests under lanes, apply updates, return to theta_0."""

from abc import ABC, abstractmethod
from collections.abc import Sequence, Set
from pathlib import Path

from twinpass.core import Lane, Probe, Request, Scores, Term
from twinpass.errors import ModelError
from twinpass.reuse.plan import Spans


class Engine(ABC):
    """A model with trainable weights, wherever it lives.

    The weights are ``theta_0`` plus the updates made since :meth:`reset`; scoring never changes them.
    """

    @property
    @abstractmethod
    def base_hash(self) -> str:
        """Identifies the base checkpoint (hex digest), for the journal's header."""

    @property
    @abstractmethod
    def trained(self) -> int:
        """How many numbers are trained."""

    @abstractmethod
    def effective_eps(self, eps: float) -> float:
        """The eps that perturbations really use when ``eps`` is asked for."""

    @property
    @abstractmethod
    def takes_spans(self) -> bool:
        """Whether lanes can take prefixes from elsewhere; if not, steps are planned without."""

    @property
    @abstractmethod
    def resolution(self) -> float:
        """The relative spacing of the numbers that scores are computed with, 2**-23 for float32."""

    @property
    @abstractmethod
    def layers(self) -> int:
        """How many decoder layers the model has."""

    @abstractmethod
    def score(self, requests: Sequence[Request], lanes: Sequence[Lane], spans: Spans | None = None) -> Scores:
        """Log-probabilities of every request's completion under every lane.

        Lanes whose prefix is not their own take its keys and values from elsewhere over ``spans``.

        Raises:
            ModelError: a request does not fit the model's window or vocabulary, or the engine has no such lanes.

        What the model returns is passed on as it is, also where it is not a finite number.
        """

    @property
    @abstractmethod
    def keeps(self) -> bool:
        """Whether anything computed for a step outlasts it, so that a resumed run has to :meth:`warm`."""

    @abstractmethod
    def warm(self, requests: Sequence[Request], probes: Sequence[Probe], since: Set[int | None]) -> None:
        """Bring what is kept from step to step to where scoring ``requests`` under ``probes`` left it.

        ``since`` are the blocks updated after that; what they have made stale is not computed again.

        A run that is resumed asks for it, so that it continues with the same bits of keys and values.
        """

    @abstractmethod
    def update(self, terms: Sequence[Term]) -> None:
        """``theta += scale * z(seed)`` for each term, in order."""

    @abstractmethod
    def reset(self) -> None:
        """Return to ``theta_0``, to the bit."""

    @abstractmethod
    def save(self, run: Path) -> Path:
        """Write what was trained into the run folder (``adapter/`` or ``model/``); returns the folder written."""

    def close(self) -> None:
        """Give back what the engine holds outside this process."""
        return


def require_fit(requests: Sequence[Request], window: int | None, vocabulary: int, *, activated: bool) -> None:
    """Refuse requests that a model of ``vocabulary`` tokens and this ``window`` (None: no limit known) cannot score.

    Raises:
        ModelError: naming the first request that does not fit, and why.
    """
    for i, request in enumerate(requests):
        if not request.prompt or not request.completion:
            raise ModelError(f"request {i} has an empty prompt or completion; both need at least one token")
        if activated and not 0 <= request.active_from < len(request.prompt):
            raise ModelError(
                f"request {i} activates its adapter at token {request.active_from} of a prompt of {len(request.prompt)}; "
                "the last token of the prompt, at least, has to follow the activation point: give the task a suffix"
            )
        if window is not None and len(request.inputs) > window:
            raise ModelError(f"request {i} has {len(request.inputs)} tokens; the model's window holds {window}")
        tokens = request.prompt + request.completion
        for token in (min(tokens), max(tokens)):
            if not 0 <= token < vocabulary:
                raise ModelError(
                    f"request {i} has token {token}, the model's vocabulary is 0 to {vocabulary - 1}; "
                    "the tokenizer belongs to another model"
                )
