"""What can be done with a model, found out by doing it on a few made-up tokens."""

import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from transformers import PreTrainedModel

from twinpass.config.checks import conflicts
from twinpass.config.engines import TorchSettings
from twinpass.config.learner import OWN, reached
from twinpass.config.schema import SECTIONS, ModelSettings
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.scoring.ledger import Ledger
from twinpass.engine.embedded.scoring.packing_check import Difference, PackingCheck
from twinpass.engine.embedded.scoring.sharing import SharingByBlock
from twinpass.errors import ModelError, TwinpassError
from twinpass.estimate.base import Estimator
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Trainable, Trained
from twinpass.report.environment import memory_bytes
from twinpass.reuse.base import Policy
from twinpass.reuse.frozen import Frozen
from twinpass.schedule.epsilon import ConstantEpsilon
from twinpass.train.optimizer import Sgd
from twinpass.use.probe import SUFFIX, MadeUp, StepTime, stepper, timed
from twinpass.use.tiles import share_of_float32

FEW, SHORT = 4, 12
"""Rows, and tokens of each, of a step that is tried."""

CHOSEN = ("layers", "pattern")
"""Kinds that have no defaults."""

TANGENTS = 0.25
"""The share of the memory that tangents of a tried step may take."""


@dataclass(frozen=True)
class Packing:
    """Whether a batch is packed into one pass, and why not if so.

    ``off`` and ``allowed`` (nats) are how far scores are from the model's own in float64, and how far they may be; None where they
    could not be compared.
    """

    packs: bool
    reason: str
    off: float | None = None
    allowed: float | None = None


@dataclass(frozen=True)
class KindFound:
    """A kind of trainable weights: whether it ``works``, by one estimator at least, and the ``reason`` if not.

    ``estimators`` and ``policies`` map names to why they do not go with it; an empty text says that they do.
    """

    works: bool
    reason: str
    trained: int = 0
    kv_bytes_per_1000_tokens: int = 0
    estimators: Mapping[str, str] = field(default_factory=dict)
    policies: Mapping[str, str] = field(default_factory=dict)
    step: StepTime | None = None


@dataclass(frozen=True)
class Diagnosis:
    """What was found. ``kv_bytes_per_1000_tokens`` are those of all layers; a kind that keeps less says so.

    ``bfloat16_share``: as :func:`twinpass.use.tiles.share_of_float32` has it.
    """

    model: str
    architecture: str
    dtype: str
    parameters: int
    layers: int
    vocabulary: int
    window: int | None
    weights_bytes: int
    kv_bytes_per_1000_tokens: int
    bfloat16_share: float | None
    packing: Packing
    trainables: Mapping[str, KindFound]


@dataclass
class Budget:
    """Seconds that are left, and how many more want some of them."""

    seconds: float
    takers: int

    @contextmanager
    def share(self) -> Iterator[float]:
        """An equal part of what is left; what is not used goes to those that come after."""
        began = time.perf_counter()
        try:
            yield self.seconds / max(1, self.takers)
        finally:
            self.seconds = max(0.0, self.seconds - (time.perf_counter() - began))
            self.takers -= 1


def diagnose(
    name: str,
    model: PreTrainedModel,
    *,
    tokens: int = 64,
    seconds: float = 10.0,
    told: Callable[[str], None] = lambda part: None,
) -> Diagnosis:
    """Look at a model on the CPU, which is left as it was.

    ``seconds`` go to timing steps on prompts of ``tokens`` tokens, 0: none is timed; ``told`` hears what is being tried.
    """
    causal = CausalModel(model)
    weights = {id(each): each for each in model.parameters()}.values()
    dtype = str(model.dtype).removeprefix("torch.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what engines warn of is in the diagnosis
        told("packing")
        check = PackingCheck.of(causal, 0)
        kinds = SECTIONS["trainable"].kinds
        own = {kind: _default(kinds, kind, _chosen(kind, causal)) for kind in kinds}
        by_default = [kind for kind in own if kind not in CHOSEN]
        room = min(tokens, (causal.window or tokens + 1) - 1)
        left = Budget(seconds, len(by_default))
        found = {}
        for kind in sorted(own, key=lambda kind: not getattr(own[kind], "adapter", False)):
            trainable = own[kind]
            told(kind)
            if isinstance(trainable, str):
                found[kind] = KindFound(False, trainable)
            else:
                found[kind] = _kind(causal, dtype, trainable, room, left if kind in by_default else None)
    return Diagnosis(
        name,
        type(model).__name__,
        dtype,
        sum(each.numel() for each in weights),
        causal.depth,
        causal.vocabulary,
        causal.window,
        sum(each.numel() * each.element_size() for each in weights),
        1000 * sum(check.layer_bytes),
        share_of_float32(model),
        _packing(causal, check),
        {kind: found[kind] for kind in own},
    )


def _packing(causal: CausalModel, check: PackingCheck) -> Packing:
    if not check.packs:
        return Packing(False, check.reason)
    difference = Difference.of(causal)
    return Packing(True, "", difference.off, difference.allowed)


def _chosen(kind: str, causal: CausalModel) -> dict[str, Any]:
    """Settings for kinds that have no defaults: the upper half of the layers, or the last one's weights."""
    if kind == "layers":
        return {"first": causal.depth // 2, "last": causal.depth}
    if kind == "pattern":
        try:
            return {"pattern": re.escape(f"{causal.layers_path}.{causal.depth - 1}.")}
        except ModelError:
            return {"pattern": re.escape(next(iter(causal.model.state_dict())))}
    return {}


def _default(kinds: Mapping[str, type[Any]], kind: str, settings: Mapping[str, Any]) -> Any:
    """A kind by its defaults, or why it has none."""
    try:
        return kinds[kind](**settings)
    except (ValidationError, TypeError, TwinpassError) as error:
        if isinstance(error, TwinpassError):
            return str(error)
        return "it has settings of its own without defaults; try it in a configuration"


def _kind(causal: CausalModel, dtype: str, trainable: Trainable, tokens: int, left: Budget | None) -> KindFound:
    try:
        engine = TorchEngine(causal.model, trainable)
    except Exception as error:  # any model's own code runs here
        return KindFound(False, _said(error))
    made_up = MadeUp(engine, trainable, causal.vocabulary)
    kinds = SECTIONS["estimator"].kinds
    learners = {name: _default(kinds, name, {}) for name in kinds}
    estimators = {
        name: learner if isinstance(learner, str) else _tried(made_up, learner, dtype)
        for name, learner in learners.items()
    }
    works = "" in estimators.values()
    usual = _usual(trainable, estimators)
    step = None
    if left is not None and left.seconds and not estimators[usual]:
        engine.prepack()
        try:
            with left.share() as limit:
                step = timed(_telling(made_up, learners[usual]), usual, learners[usual], max(tokens, SUFFIX + 1), limit)
        finally:
            engine.unpack()
    return KindFound(
        works,
        "" if works else next(iter(dict.fromkeys(estimators.values()))),
        engine.trained,
        1000 * engine.cache_slot_bytes,
        estimators,
        _policies(causal, trainable, engine, learners[trainable.defaults.estimator], dtype) if engine.packs else {},
        step,
    )


def _telling(made_up: MadeUp, estimator: Estimator) -> MadeUp:
    """The same on an engine that trains only what this estimator can move, where that is not all: feedback reaches output projections alone."""
    moved = reached(made_up.trainable, estimator)
    if moved is made_up.trainable:
        return made_up
    return MadeUp(TorchEngine(made_up.engine.model, moved), moved, made_up.vocabulary)


def _usual(trainable: Trainable, found: Mapping[str, str]) -> str:
    """The estimator that such weights learn by where none is named, by what was ``found`` of each."""
    if trainable.adapter and trainable.fitting is None and not found["backprop"]:
        return "backprop"
    if type(trainable).__name__.lower() in OWN and not found["feedback"]:
        return "feedback"
    return trainable.defaults.estimator


def _tried(made_up: MadeUp, estimator: Estimator, dtype: str) -> str:
    """Why an estimator does not go with what is trained; nothing if a step could be made."""
    try:
        made_up = _telling(made_up, estimator)
    except Exception as error:  # any model's own code runs here
        return _said(error)
    trainable, engine = made_up.trainable, made_up.engine
    if problems := _conflicts(trainable, estimator, dtype):
        return "; ".join(problems)
    if estimator.fed_back and (unfit := engine.unfit_for_feedback()):
        return unfit
    size = 8 * engine.trained
    if estimator.differentiates and not estimator.whole and size > TANGENTS * memory_bytes():
        return f"not tried: tangents of all that is trained take about {size / 2**30:,.1f} GiB"
    window = engine.window or SHORT + 1
    try:
        made_up.step(estimator, made_up.examples(FEW, max(SUFFIX + 1, min(SHORT, window - 1))))
    except Exception as error:  # any model's own code runs here
        return _said(error)
    return ""


def _conflicts(trainable: Trainable, estimator: Estimator, dtype: str, policy: Policy | None = None) -> list[str]:
    defaults = trainable.defaults
    built = {
        "model": ModelSettings(path="model", dtype=dtype),  # type: ignore[arg-type]
        "trainable": trainable,
        "estimator": estimator,
        "optimizer": stepper(estimator, trainable) if estimator.whole else Sgd(lr=defaults.lr, steps=defaults.steps),
        "epsilon": ConstantEpsilon(value=defaults.eps),
        "engine": TorchSettings(),
        **({} if policy is None else {"reuse": policy}),
    }
    return conflicts(built)


def _policies(
    causal: CausalModel, trainable: Trainable, engine: TorchEngine, estimator: Estimator, dtype: str
) -> dict[str, str]:
    found = {}
    kinds = SECTIONS["reuse"].kinds
    trained: Trained = trainable.attach(causal.model, 0)
    ledger = Ledger.of("", causal, trained)
    for name in kinds:
        policy = _default(kinds, name, {"inner": Frozen()} if name == "debiased" else {})
        if isinstance(policy, str):
            found[name] = policy
            continue
        found[name] = "; ".join(_conflicts(trainable, estimator, dtype, policy))
        try:
            SharingByBlock(policy, ledger, causal.depth, trained.activated).all  # noqa: B018
        except ModelError as error:
            found[name] = found[name] or str(error)
    return found


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, TwinpassError) else f"{type(error).__name__}: {error}"
