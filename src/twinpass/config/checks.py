"""What sections of a configuration cannot do together: the same for a file and for ``finetune``."""

from collections.abc import Mapping
from typing import Any

from twinpass.config.automatic import unwatched
from twinpass.config.engines import LANES
from twinpass.config.idle import idle
from twinpass.config.learner import stepping
from twinpass.config.named import TaskByName
from twinpass.model.defaults import Defaults
from twinpass.reuse.base import Circumstances
from twinpass.task.template import TextTemplate


def conflicts(built: Mapping[str, Any], suited: Defaults | None = None, *, begun: bool = False) -> list[str]:
    """Every problem of sections with each other. ``built`` holds those that are valid in themselves; others may be missing or None.

    ``suited`` is what settings follow that are left out, where that is known. A run that has ``begun`` may hold what has no effect.
    """
    engine = built.get("engine")
    found = [
        *_restoring(built),
        *_reuse(built),
        *_descent(built),
        *_activation(built),
        *_objective(built),
        *_curvature(built),
        *_decay(built),
        *_writing(built),
        *([] if begun else idle(built, suited)),
        *unwatched(built),
    ]
    return found + ([] if engine is None else engine.problems(built))


def _walks(built: Mapping[str, Any]) -> bool:
    """Whether the weights walk from lane to lane."""
    engine = built.get("engine")
    return engine is not None and bool(engine.perturbation == "inplace")


def _restoring(built: Mapping[str, Any]) -> list[str]:
    trainable, model = built.get("trainable"), built.get("model")
    if trainable is None or model is None or trainable.adapter:
        return []
    if not _walks(built) or model.dtype != "bfloat16":
        return []
    return [
        "[engine] perturbation: 'inplace' cannot restore bfloat16 weights exactly; "
        "use 'tandem', or [model] dtype = \"float32\""
    ]


def _reuse(built: Mapping[str, Any]) -> list[str]:
    trainable, estimator, policy = built.get("trainable"), built.get("estimator"), built.get("reuse")
    if trainable is None or estimator is None or policy is None:
        return []
    circumstances = Circumstances(
        trainable.activated,
        trainable.upper,
        estimator.probes,
        estimator.two_sided,
        estimator.differentiates,
        not _walks(built),
    )
    return [f"[reuse] policy: {problem}" for problem in policy.objections(circumstances)]


def _curvature(built: Mapping[str, Any]) -> list[str]:
    trainable, estimator, policy = built.get("trainable"), built.get("estimator"), built.get("reuse")
    objective, found = built.get("objective"), list[str]()
    if estimator is not None and estimator.measures_length and policy is not None and policy.approximate:
        found.append("[reuse] policy: this estimator takes curvatures, which an approximation spoils; use 'auto'")
    if (
        estimator is not None
        and estimator.curved
        and objective is not None
        and objective.differentiable
        and not objective.curved
    ):
        found.append(
            "[estimator] kind: 'gauss_newton' needs an objective with a curvature; use 'spsa', which needs none"
        )
    if trainable is None or trainable.fitting is None or estimator is None:
        return found
    if estimator.differentiates or _walks(built):
        found.append(
            "[trainable] kind: 'informed' moves along fitted directions, lane by lane in one pass; set [estimator] kind to "
            "'gauss_newton', 'spsa' or 'one_sided', and [engine] perturbation to 'tandem'"
        )
    return found


def _descent(built: Mapping[str, Any]) -> list[str]:
    """Whole gradients go with AdamW, or with relative steps, and are taken of adapters and of upper layers."""
    names = ("estimator", "optimizer", "trainable", "model")
    estimator, optimizer, trainable, model = (built.get(name) for name in names)
    if estimator is None or optimizer is None:
        return []
    if estimator.whole and optimizer.along_probes:
        return [
            f'[optimizer] kind: whole gradients have no probes to step along; set "{stepping(estimator, trainable)}"'
        ]
    if estimator.whole:
        return _whole(estimator, optimizer, trainable, model)
    if estimator.measures_length and optimizer.scale_free:
        return [
            '[optimizer] kind: this estimator says itself how far to go along each direction; set "sgd", or [estimator] kind = "spsa"'
        ]
    if optimizer.along_probes:
        return []
    name = type(optimizer).__name__.lower()
    if asking := _asking_for_probes(built):
        return [
            f'{place}: it is for random directions, and [optimizer] kind "{name}" steps along whole gradients; leave one of the two out'
            for place in asking
        ]
    return [
        f'[optimizer] kind: "{name}" steps along whole gradients; set [estimator] kind = "backprop" or "feedback", or "sgd" here'
    ]


def _asking_for_probes(built: Mapping[str, Any]) -> list[str]:
    """Settings that only probes can have, and an estimator is taken for that is not named."""
    engine, policy, objective = (built.get(name) for name in ("engine", "reuse", "objective"))
    found = [f"[engine] {key}" for key, usual in LANES.items() if engine and getattr(engine, key) != usual]
    found += ["[reuse] policy"] if policy is not None and policy.approximate else []
    return found + (["[objective] kind"] if objective is not None and not objective.differentiable else [])


def _whole(estimator: Any, optimizer: Any, trainable: Any, model: Any) -> list[str]:
    if trainable is None:
        return []
    if estimator.fed_back and trainable.fed_back() is None:
        return [
            '[trainable] kind: "feedback" is for adapters, with targets such as o_proj and down_proj, and for output projections themselves; '
            'set "activated", "lora" or "projections"'
        ]
    found, suits = [], stepping(estimator, trainable)
    if optimizer.relative != (suits == "relative"):
        found.append(
            f'[optimizer] kind: "{type(optimizer).__name__.lower()}" does not go with such a gradient: "relative" is for feedback to the model\'s own '
            f'weights, "adamw" for all others; set "{suits}"'
        )
    if trainable.adapter:
        return found
    if not estimator.fed_back and (trainable.upper is not True or bool(getattr(trainable, "block", False))):
        found.append(
            '[trainable] kind: "backprop" is for adapters, and for upper layers as a whole: set "activated", "lora", or "layers" '
            'with first above 0 and without block; for every weight take [estimator] kind = "spsa"'
        )
    elif model is not None and model.dtype not in ("float32", "float64"):
        found.append(
            f'[model] dtype: steps along gradients are lost on {model.dtype} weights; set "float32", or train adapters, which are float32'
        )
    return found


def _decay(built: Mapping[str, Any]) -> list[str]:
    """What is pulled back has to know where to: adapters do nothing at 0."""
    estimator, optimizer, trainable = (built.get(name) for name in ("estimator", "optimizer", "trainable"))
    if optimizer is None or estimator is None or trainable is None or not optimizer.decay:
        return []
    if optimizer.lr * optimizer.decay >= 1:
        return [
            f"[optimizer] decay: lr times decay is {optimizer.lr * optimizer.decay:g}, and takes all; set it below 1"
        ]
    if not optimizer.along_probes:
        return []
    if not trainable.adapter or trainable.fitting is not None:
        return [
            '[optimizer] decay: it pulls adapters back to the base model; leave it out, or set [trainable] kind = "activated" or "lora"'
        ]
    if _walks(built):
        return [
            '[optimizer] decay: weights that move in place can only be added to; set [engine] perturbation = "tandem"'
        ]
    if optimizer.scale_free:
        return ['[optimizer] decay: lr counts in eps here, and decay in lr; leave it out, or set kind = "sgd"']
    return []


def _activation(built: Mapping[str, Any]) -> list[str]:
    trainable, task = built.get("trainable"), built.get("task")
    if trainable is None or not trainable.activated or task is None or task.writes:
        return []
    if getattr(trainable, "invocation", ()):
        return []
    if isinstance(task, TaskByName) and not task.ends_alike:
        return [
            f"[trainable] kind: adapters that act on the answer alone need prompts that end alike, and those of {task.name!r} do not; "
            'set "lora", "full" or "layers"'
        ]
    if trainable.late or not isinstance(task, TextTemplate) or task.suffix:
        return []
    return ['[task] suffix: activated adapters act from it on; set it, such as "Sentiment:", or [trainable] invocation']


def _objective(built: Mapping[str, Any]) -> list[str]:
    objective, task = built.get("objective"), built.get("task")
    if objective is None or task is None:
        return []
    if task.writes:
        return ["[objective] kind: this task goes by rewards alone; leave the section out"]
    estimator, trainable = built.get("estimator"), built.get("trainable")
    fits = trainable is not None and trainable.fitting is not None
    derives = estimator is not None and (estimator.whole or estimator.curved or estimator.differentiates)
    if not objective.differentiable and (fits or derives):
        return [
            '[objective] kind: this one has no derivative, which what is trained here goes by; set [trainable] kind = "activated" '
            'or "lora", and [estimator] kind = "spsa"'
        ]
    if not objective.compares or task.chooses:
        return []
    return [
        "[objective] kind: it compares options, and rows of this task have none; leave the section out, or use 'completion'"
    ]


def _writing(built: Mapping[str, Any]) -> list[str]:
    """What a task needs whose lanes write texts, and what is of no use to others."""
    task, generation = built.get("task"), built.get("generation")
    if task is None:
        return []
    if not task.writes:
        return (
            [] if generation is None else ["[generation]: this task writes nothing while it is trained; leave it out"]
        )
    estimator, policy, epsilon, trainable = (built.get(name) for name in ("estimator", "reuse", "epsilon", "trainable"))
    found = []
    greedy, whole = generation is not None and not generation.temperature, estimator is not None and estimator.whole
    if greedy and (task.samples or 1) > 1:
        found.append(
            f"[task] samples: {task.samples} greedy texts are all the same; set 1, or [generation] temperature above 0"
        )
    if whole and greedy:
        found.append(
            f"[generation] temperature: {type(estimator).__name__.lower()!r} learns from how texts of one prompt differ, and greedy ones do not; "
            'set it above 0, or [estimator] kind = "one_sided"'
        )
    elif whole and task.samples == 1:
        found.append(
            f'[task] samples: {type(estimator).__name__.lower()!r} learns from how texts of one prompt differ; set 4 or more, or [estimator] kind = "one_sided"'
        )
    elif estimator is not None and not estimator.whole and (estimator.measures_length or estimator.differentiates):
        found.append(
            '[estimator] kind: rewards have no derivative; set "spsa" or "one_sided", or learn from sampled texts by "feedback" or "backprop"'
        )
    if estimator is not None and not estimator.whole:
        found += [
            f'[task] {key}: lanes are held against each other, and no text is learned from; leave it out, or set [estimator] kind = "backprop"'
            for key, given in (
                ("beta", bool(task.beta)),
                ("steps_per_generation", (task.steps_per_generation or 1) > 1),
            )
            if given
        ]
    elif estimator is not None and trainable is not None and not trainable.adapter and task.beta != 0:
        found.append(
            "[task] beta: the weights are trained themselves, so that the model as it was is not at hand; set 0"
        )
    if whole and task.shaping not in (None, "prompt"):
        found.append(
            f"[task] shaping: {task.shaping!r} is of lanes, and texts are learned from by how they differ from others of their prompt; leave it out"
        )
    if policy is not None and policy.approximate:
        found.append('[reuse] policy: texts are written under exact lanes; set "auto"')
    if epsilon is not None and epsilon.measures:
        found.append(
            '[epsilon] kind: rewards of sampled texts say nothing of rounding and curvature, which "adaptive" goes by; set "constant"'
        )
    if trainable is not None and trainable.fitting is not None:
        found.append(
            '[trainable] kind: "informed" fits directions to right answers, and rewards know none; set "lora" or "activated"'
        )
    return found
