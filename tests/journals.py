"""Records of a journal."""

from typing import Any

from twinpass.core import Estimate, Probe, StepReport

Record = dict[str, Any]


def report(step: int, seed: int = 7, loss: float = 1.0, lr: float = 1e-3) -> StepReport:
    estimate = Estimate((Probe(seed), Probe(2**64 - 1 - seed)), 1e-3, ((loss, 0.5), (0.25, loss)), (loss / 3, -0.1))
    return StepReport(step, estimate, (loss / 3, -0.05), lr)


def evaluation(step: int, metric: float) -> Record:
    return {"kind": "evaluation", "step": step, "metric": metric}


def rollback(to: int, lr_scale: float, discarded: int = 0) -> Record:
    return {"kind": "rollback", "to": to, "lr_scale": lr_scale, "discarded": discarded, "reason": "it “diverged”\n"}
