"""Trackers of experiments, told through callbacks: TensorBoard, Weights & Biases, Trackio."""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from twinpass.report.callbacks import Callbacks

TrackerName = Literal["tensorboard", "wandb", "trackio"]
PROJECT = "twinpass"
"""The project that runs are filed under, where a tracker has such a thing."""


class Tracker(ABC):
    """Where numbers go: what happened after ``step`` steps, by name."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take in some numbers."""

    @abstractmethod
    def close(self) -> None:
        """The run is over, or has failed."""

    @property
    def callbacks(self) -> Callbacks:
        """What tells it of a run."""

        def told(event: Mapping[str, Any]) -> None:
            self.log(*scalars(event))

        return Callbacks(told, told, told)


class TensorBoard(Tracker):
    """Event files in ``RUN/tensorboard``, for ``tensorboard --logdir RUN``."""

    def __init__(self, run: Path, values: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Tracker):
    """A run in ``RUN/wandb``, offline unless ``WANDB_MODE`` says otherwise; ``wandb sync`` uploads it."""

    def __init__(self, run: Path, values: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=PROJECT,
            name=run.resolve().name,
            id=_digest(run),
            resume="allow",
            dir=str(run),
            config=dict(values),
            mode=os.environ.get("WANDB_MODE") or "offline",
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class Trackio(Tracker):
    """A run in Trackio's own local store, for ``trackio show``."""

    def __init__(self, run: Path, values: Mapping[str, Any]) -> None:
        import trackio

        self._trackio = trackio
        trackio.init(project=PROJECT, name=distinct(run), config=dict(values), resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        self._trackio.finish()


TRACKERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def distinct(run: Path) -> str:
    """A name that no run in another folder has: one that is known by name alone goes on where an earlier one of that name ended."""
    return f"{run.resolve().name}-{_digest(run)[:8]}"


def _digest(run: Path) -> str:
    return sha256(str(run.resolve()).encode()).hexdigest()[:16]


def scalars(event: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """The step after which an event happened, and its numbers by the names that trackers group by."""
    kind = "eval" if event["event"] == "evaluation" else "train"
    numbers = {
        f"{kind}/{name}": value
        for name, value in event.items()
        if isinstance(value, int | float) and name not in ("step", "to", "metric", "norm", "examples")
    }
    if kind == "eval":
        return event["step"], {**numbers, f"eval/{event['metric_name']}": event["metric"]}
    if event["event"] == "rollback":
        return event["to"], numbers
    gradients = [abs(each) for each in event["gradients"]]
    size = sum(gradients) / len(gradients) if gradients else event.get("norm")
    return event["step"] + 1, numbers | ({} if size is None else {"train/gradient": size})


def several(given: Any) -> Any:
    """Trackers, of which one may be named alone; "none" of them, as transformers has it."""
    return (() if given == "none" else (given,)) if isinstance(given, str) else given


def unusable(names: Sequence[str]) -> list[str]:
    """What is wrong with a choice of trackers: there is no such, or its package is not installed."""
    found = []
    for name in names:
        if name not in get_args(TrackerName):
            found.append(f"report_to: there is no tracker {name!r}; there are {', '.join(get_args(TrackerName))}")
        elif find_spec(name) is None:
            found.append(f"report_to: {name!r} is not installed: pip install {name}, or leave it out")
    return found


@contextmanager
def tracking(names: Sequence[str], run: Path, values: Mapping[str, Any]) -> Iterator[list[Callbacks]]:
    """Callbacks that tell the trackers of a run in this folder, of this configuration; they are closed at the end."""
    with ExitStack() as stack:
        found = []
        for name in dict.fromkeys(names):
            with redirect_stdout(sys.stderr):  # what they print themselves is no result
                tracker = TRACKERS[name](run, values)
            stack.callback(_closed, tracker)
            found.append(tracker.callbacks)
        yield found


def _closed(tracker: Tracker) -> None:
    with redirect_stdout(sys.stderr):
        tracker.close()
