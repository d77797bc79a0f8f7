"""What SGD is told: bad values are refused by name, the rest reaches clip and guard."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from twinpass.config.engines import SglangSettings, TorchSettings
from twinpass.estimate.spsa import Spsa
from twinpass.schedule.epsilon import ConstantEpsilon
from twinpass.train.optimizer import Sgd
from twinpass.train.safeguards import SETTLED, DivergenceGuard, MedianClip

BAD: list[tuple[Callable[..., object], str, object]] = [
    (Sgd, "lr", 0.0),
    (Sgd, "lr", -1.0),
    (Sgd, "lr", math.inf),
    (Sgd, "lr", math.nan),
    (Sgd, "lr", "1"),
    (Sgd, "lr", True),
    (Sgd, "steps", 0),
    (Sgd, "steps", 1.0),
    (Sgd, "batch_size", 0),
    (Sgd, "schedule", "step"),
    (Sgd, "warmup", -1),
    (Sgd, "clip", -0.5),
    (Sgd, "clip_window", SETTLED - 1),
    (Sgd, "guard_loss", -1.0),
    (Sgd, "guard_metric", math.nan),
    (Sgd, "guard_window", 0),
    (Sgd, "guard_lr", 0.0),
    (Sgd, "guard_rollbacks", -1),
    (Sgd, "momentum", 0.9),
    (Spsa, "probes", 0),
    (Spsa, "probes", 1.5),
    (TorchSettings, "noise", "uniform"),
    (SglangSettings, "perturbation", "outplace"),
    (Spsa, "sides", 2),
    (MedianClip, "factor", -1.0),
    (MedianClip, "window", SETTLED - 1),
    (DivergenceGuard, "window", 0),
    (DivergenceGuard, "loss", math.inf),
    (ConstantEpsilon, "value", 0.0),
]


@pytest.mark.parametrize(("kind", "key", "value"), BAD)
def test_settings_refuse_bad_values_and_name_the_key(kind: Callable[..., object], key: str, value: object) -> None:
    needed: dict[str, Any] = {"lr": 1e-3, "steps": 10} if kind is Sgd else {}
    with pytest.raises(ValidationError) as caught:
        kind(**(needed | {key: value}))
    (fault,) = caught.value.errors()
    assert fault["loc"] == (key,)


@pytest.mark.parametrize("kind", [TorchSettings, SglangSettings])
def test_inplace_needs_noise_on_a_grid(kind: type[TorchSettings] | type[SglangSettings]) -> None:
    with pytest.raises(ValidationError, match="set noise to 'binomial' or 'rademacher'"):
        kind(noise="gaussian", perturbation="inplace")
    assert kind(noise="rademacher", perturbation="inplace").perturbation == "inplace"


def test_sgd_hands_its_settings_to_clip_and_guard() -> None:
    sgd = Sgd(
        lr=1.0, steps=1, clip=3.0, clip_window=7, guard_loss=2.0, guard_metric=0.3, guard_window=9
    )  # fmt: skip
    assert sgd.clipping == MedianClip(factor=3.0, window=7)
    assert sgd.guard == DivergenceGuard(window=9, loss=2.0, metric=0.3)
