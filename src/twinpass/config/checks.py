"""What sections of a configuration cannot do together: the same for a file and for ``finetune``."""

from collections.abc import Mapping
from typing import Any

from twinpass.estimate.jvp import Jvp
from twinpass.estimate.one_sided import OneSided
from twinpass.estimate.spsa import Spsa
from twinpass.model.trainable import Activated, Lora, Pattern
from twinpass.reuse.activated import Activated as ActivatedPolicy
from twinpass.reuse.debiased import Debiased
from twinpass.reuse.invariant import Invariant
from twinpass.reuse.reflected import Reflected
from twinpass.schedule.adaptive import AdaptiveEpsilon


def conflicts(built: Mapping[str, Any]) -> list[str]:
    """Every problem of sections with each other. ``built`` holds those that are valid in themselves; others may be missing or None."""
    problems = []
    trainable, estimator, model = built.get("trainable"), built.get("estimator"), built.get("model")
    inplace = estimator is not None and estimator.perturbation == "inplace"
    whole = trainable is not None and not isinstance(trainable, Lora)
    if inplace and whole and model is not None and model.dtype == "bfloat16":
        problems.append(
            "[estimator] perturbation: 'inplace' cannot restore bfloat16 weights exactly; "
            "use 'tandem', or [model] dtype = \"float32\""
        )
    engine = built.get("engine")
    return problems + _reuse(built) + ([] if engine is None else engine.problems(built))


def _reuse(built: Mapping[str, Any]) -> list[str]:
    trainable, policy, task = built.get("trainable"), built.get("reuse"), built.get("task")
    activated = isinstance(trainable, Activated)
    problems = []
    if trainable is not None and isinstance(policy, ActivatedPolicy) and not activated:
        problems.append(
            "[reuse] policy: 'activated' needs [trainable] kind = \"activated\"; other weights act on every token, "
            "so use 'auto', 'exact' or 'invariant'"
        )
    upper = getattr(trainable, "first", 0) > 0 or getattr(trainable, "block", 0) > 0 or isinstance(trainable, Pattern)
    if activated and isinstance(policy, Invariant):
        problems.append("[reuse] policy: activated adapters share more than layers; use 'activated', or 'auto'")
    elif trainable is not None and isinstance(policy, Invariant) and not upper:
        problems.append(
            "[reuse] policy: 'invariant' shares the layers below the first trained one, and there are none; "
            "train upper layers ([trainable] kind = \"layers\", or first above 0), or use 'auto'"
        )
    problems += _approximations(built)
    if isinstance(built.get("estimator"), Jvp) and _tries(built.get("epsilon")):
        problems.append("[epsilon] kind: 'jvp' takes no differences, so that there is no eps to adapt; use 'constant'")
    if isinstance(trainable, Activated) and task is not None and not task.suffix and not trainable.invocation:
        problems.append(
            '[task] suffix: activated adapters act from it on; set it, such as "Sentiment:", or [trainable] invocation'
        )
    return problems


def _tries(epsilon: Any) -> bool:
    """Whether a schedule measures at several eps."""
    return isinstance(epsilon, AdaptiveEpsilon) or any(map(_tries, getattr(epsilon, "schedules", ())))


def _approximations(built: Mapping[str, Any]) -> list[str]:
    """Where an approximate policy could not work, or would gain nothing."""
    trainable, policy, estimator = built.get("trainable"), built.get("reuse"), built.get("estimator")
    if policy is None or not policy.approximate:
        return []
    problems, name = [], type(policy).__name__.lower()
    if isinstance(trainable, Activated) or getattr(trainable, "first", 0) > 0 or getattr(trainable, "block", 0) > 0:
        problems.append(
            f"[reuse] policy: {name!r} approximates what these weights let share exactly; use 'auto', which does"
        )
    if estimator is not None and estimator.perturbation == "inplace":
        problems.append(
            f"[reuse] policy: {name!r} needs all lanes in one pass; set [estimator] perturbation = \"tandem\", or use 'exact'"
        )
    if isinstance(estimator, Jvp):
        problems.append("[reuse] policy: the 'jvp' estimator differentiates, and reuses nothing; use 'exact'")
    inner = policy.inner if isinstance(policy, Debiased) else policy
    if isinstance(inner, Reflected) and isinstance(estimator, Spsa) and estimator.probes < 2:
        problems.append(
            "[reuse] policy: 'reflected' runs one base lane for all probes, and saves nothing with one; "
            "set [estimator] probes to 2 or more, or use 'transported'"
        )
    if isinstance(inner, Reflected) and isinstance(estimator, OneSided):
        problems.append(
            "[reuse] policy: 'reflected' has no minus lanes to reflect with a one-sided estimator; use 'exact'"
        )
    return problems
