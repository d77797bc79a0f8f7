"""twinpass's own step in float32, beside one whose products are in bfloat16."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from twinpass.config.compose import Session, build_embedded
from twinpass.config.engines import TorchSettings
from twinpass.config.schema import Config
from twinpass.core import StepReport
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.reuse.plan import Situation
from twinpass.task.example import Example
from twinpass.train.step import Draw, Method, apply, measure


def in_own_dtype(config: Config) -> Config:
    """The same, with products in the dtype of the weights."""
    assert isinstance(config.engine, TorchSettings)
    return replace(config, engine=replace(config.engine, compute_dtype=None))


def multiplies_lower(config: Config) -> bool:
    """Whether products are in another dtype than float32 weights are."""
    return isinstance(config.engine, TorchSettings) and config.engine.compute_dtype == "bfloat16"


@dataclass
class OwnFloat32:
    """Steps in float32 along the probes of others, and the ``seconds`` they took."""

    session: Session[TorchEngine]
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, config: Config) -> "OwnFloat32":
        """From the configuration of the others."""
        return cls(build_embedded(in_own_dtype(config)))

    def step(self, examples: Sequence[Example], report: StepReport) -> None:
        """A step on the same examples, along the same directions."""
        plan, engine = self.session.plan, self.session.engine
        started = time.perf_counter()
        method = Method(plan.estimator, plan.objective, plan.planner)
        draw = Draw(report.step, examples, report.estimate.probes, report.estimate.eps, report.lr)
        own = measure(engine, method, draw, Situation(engine.layers, [], 1.0))
        apply(engine, own)
        self.seconds.append(time.perf_counter() - started)
