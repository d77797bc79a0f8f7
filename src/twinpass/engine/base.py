"""The contract of an engine: score requests under lanes, apply updates, return to theta_0."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpass.core import Continuations, Decode, Lane, Probe, Prompt, Request, Sampling, Score, Scores, Term
from twinpass.errors import ModelError
from twinpass.reuse.plan import Spans

if TYPE_CHECKING:
    from torch import Tensor

    from twinpass.model.space import Observed, Space

Slopes = Callable[[Sequence[Score]], Sequence[Score]]
"""A loss's derivative with respect to scores, in their shapes, at given scores."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """The gradient of a loss at the weights as they are: ``tensors`` by name, in the engine's own kind, and their ``norm`` together.

    ``scores`` are those of the base lane that it was taken at.
    """

    scores: Scores
    norm: float
    tensors: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AdamStep:
    """Step ``number`` (from 1) of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) along a gradient.

    The gradient is first scaled down to a norm of ``clip`` (0: never). ``lr`` is this step's, ``decay`` the share of a weight that it
    takes away, times lr.
    """

    number: int
    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    decay: float = 0.0
    clip: float = 0.0


@dataclass(frozen=True, slots=True)
class RelativeStep:
    """A step of every weight along its own gradient, of ``length`` times that weight's own norm.

    The gradient is first divided by its inputs' second moments, to which ``damping`` times their mean is added.
    """

    length: float
    damping: float = 1.0


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
    def window(self) -> int | None:
        """The longest input the model takes, where that is known."""
        return None

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

    def generate(
        self, prompts: Sequence[Prompt], lanes: Sequence[Lane], sampling: Sampling, decode: Decode
    ) -> Continuations:
        """Continue every prompt under every lane; ``decode`` turns a continuation's tokens into text.

        Raises:
            ModelError: a prompt and ``max_tokens`` do not fit the model's window, or the engine has no such lanes.
        """
        raise ModelError(f"{type(self).__name__} scores texts and writes none; use [engine] kind = 'torch'")

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

    def warm_prompts(self, prompts: Sequence[Prompt], since: Set[int | None]) -> None:
        """The same for what :meth:`generate` leaves, of these prompts."""
        return

    def forget(self) -> None:
        """Let go of whatever is kept from step to step, so that what comes next does not depend on what was before, not to a bit."""
        return

    @abstractmethod
    def update(self, terms: Sequence[Term]) -> None:
        """``theta += scale * z(seed)`` for each term, in order."""

    def gradient(self, requests: Sequence[Request], slopes: Slopes) -> Gradient:
        """The gradient, by reverse mode, of a loss of the base lane's scores whose derivatives are ``slopes``.

        Raises:
            ModelError: this engine has none, or the requests do not fit the model.
        """
        raise ModelError(
            f"{type(self).__name__} takes no gradients; set [engine] kind = 'torch', or [estimator] kind = 'spsa'"
        )

    def feedback(self, requests: Sequence[Request], slopes: Slopes) -> Gradient:
        """An estimate of :meth:`gradient` by forward passes alone (:mod:`twinpass.estimate.feedback`).

        Raises:
            ModelError: as :meth:`gradient`.
        """
        raise ModelError(
            f"{type(self).__name__} does not tell what enters a module; set [engine] kind = 'torch', or [estimator] kind = 'spsa'"
        )

    def reference(self, requests: Sequence[Request]) -> Scores:
        """Scores under ``theta_0``, whatever updates were made since.

        Raises:
            ModelError: those weights are not at hand.
        """
        raise ModelError(
            f"{type(self).__name__} has no other weights at hand than those as they stand; set task.beta = 0"
        )

    def unfit_for_feedback(self) -> str | None:
        """Why :meth:`feedback` has no meaning for what is trained; None if it has."""
        return f"{type(self).__name__} does not tell what enters a module; set [engine] kind = 'torch'"

    def observe(self, requests: Sequence[Request], slopes: Slopes) -> "Observed":
        """What enters the modules that are trained, and the error at the last layer, where the base lane reads its answers.

        ``slopes`` are the loss's derivatives by the scores. Nothing is differentiated but the final norm and the head.

        Raises:
            ModelError: this engine does not tell, or the requests do not fit the model.
        """
        raise ModelError(f"{type(self).__name__} does not tell what enters a module; set [engine] kind = 'torch'")

    @property
    def outputs(self) -> "Tensor | None":
        """The directions [r, size] in which those taken up so far move the residual stream; None before the first."""
        return None

    def use(self, space: "Space") -> None:
        """Keep what was gained along the directions so far, and train gains along those of ``space`` from now on.

        Raises:
            ModelError: what is trained has no such directions.
        """
        raise ModelError(f"{type(self).__name__} has no directions to take up; set [engine] kind = 'torch'")

    def graph_bytes(self, requests: Sequence[Request]) -> int:
        """About how many bytes :meth:`gradient` takes for these requests, besides what scoring them takes."""
        raise ModelError(f"{type(self).__name__} takes no gradients")

    def descend(self, gradient: Gradient, step: AdamStep | RelativeStep) -> None:
        """One step along a gradient. AdamW's moments are the engine's until it is reset; a relative one has none.

        Raises:
            ModelError: steps of this kind are not along such a gradient.
        """
        raise ModelError(f"{type(self).__name__} takes no steps along gradients")

    def store(self, file: Path) -> str:
        """Write what is trained, and AdamW's moments where there are any, to a new file; returns a hash of both."""
        raise ModelError(f"{type(self).__name__} takes no steps along gradients")

    def restore(self, file: Path) -> str:
        """Bring back what :meth:`store` wrote; returns its hash."""
        raise ModelError(f"{type(self).__name__} takes no steps along gradients")

    @abstractmethod
    def reset(self) -> None:
        """Return to ``theta_0``, to the bit."""

    def fault(self) -> str | None:
        """What makes the weights, as they stand, of no use: the name of one that holds NaN or infinity; None if there is none.

        An engine that cannot look at them answers None.
        """
        return None

    @abstractmethod
    def save(self, run: Path) -> Path:
        """Write what was trained into the run folder (``adapter/`` or ``model/``); returns the folder written."""

    def close(self) -> None:
        """Give back what the engine holds: keys and values in memory, and what is outside this process."""
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


def require_sense(sampling: Sampling) -> None:
    """Refuse numbers that are out of range, and a stop string that every text begins with.

    Raises:
        ModelError: saying what is expected.
    """
    if sampling.max_tokens < 1 or sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.top_k < 0:
        raise ModelError(
            f"{sampling}: max_tokens has to be 1 or more, temperature and top_k 0 or more, and top_p above 0 and at most 1"
        )
    if "" in sampling.stop:
        raise ModelError("a stop string is empty, so that every text would end before it begins; leave it out")


def require_room(
    prompts: Sequence[Prompt], sampling: Sampling, window: int | None, vocabulary: int, *, activated: bool
) -> None:
    """Refuse prompts that a model of ``vocabulary`` tokens and this ``window`` (None: no limit known) cannot continue.

    Raises:
        ModelError: naming the first prompt that does not fit, and why.
    """
    require_sense(sampling)
    require_fit(
        [Request(prompt.tokens, (0,), prompt.active_from) for prompt in prompts], None, vocabulary, activated=activated
    )
    for i, prompt in enumerate(prompts):
        count = len(prompt.tokens)
        if window is not None and count + sampling.max_tokens - 1 > window:
            raise ModelError(
                f"request {i} has {count} tokens and may be continued by {sampling.max_tokens}; the model's window holds {window}: "
                f"shorten it, or set max_tokens to {max(0, window + 1 - count)} or less"
            )
