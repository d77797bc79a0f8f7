"""Where a step's time goes: clocks around the functions that make up its phases."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.linear import modules, products
from twinpass.engine.embedded.linear.mixed import Paired
from twinpass.engine.embedded.scoring import attention, passes, scorer, shared
from twinpass.engine.embedded.scoring.prefixes import Prefixes
from twinpass.model.causal import CausalModel
from twinpass.perturb import kernels
from twinpass.perturb.gemm import multiply, pairs

PARTS: tuple[tuple[str, Any, str], ...] = (
    ("noise", kernels, "perturb"),
    ("noise", kernels, "perturb_each"),
    ("noise", kernels, "gather"),
    ("noise", kernels, "fill"),
    ("update", TorchEngine, "update"),
    ("linear", modules.LaneLinear, "forward"),
    ("linear", modules.LaneConv1D, "forward"),
    ("linear", modules.LaneAdapted, "forward"),
    ("linear", products, "of_linear"),
    ("linear", Paired, "alone"),
    ("logits", CausalModel, "head"),
    ("logits", passes, "log_softmax"),
    ("cache", scorer, "pack"),
    ("cache", shared, "pack"),
    ("cache", shared.SharedPrefixes, "lease"),
    ("cache", Prefixes, "_reflect"),
)
"""Phase, and where the function lies that does its work. What none of them does is ``other``: norms, activations, Python."""

ATTENTION = "attention"
PHASES = ("noise", "linear", ATTENTION, "logits", "update", "cache", "other")


class Clock:
    """Seconds by phase; a phase inside another one takes its time from it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._inside = ["other"]
        self._since = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what runs inside the block for ``name``."""
        self._switch()
        self._inside.append(name)
        try:
            yield
        finally:
            self._switch()
            self._inside.pop()

    def _switch(self) -> None:
        now = time.perf_counter()
        self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted."""

        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return counted

    @contextmanager
    def running(self) -> Iterator["Clock"]:
        """Count everything that runs inside the block."""
        attend = attention.NAME
        registered = ALL_ATTENTION_FUNCTIONS[attend]
        with ExitStack() as stack:
            wrapped = [
                (owner, function, self.around(name, getattr(owner, function))) for name, owner, function in PARTS
            ]
            wrapped.append((multiply, "multiply", self._forming_apart(multiply.multiply, 3)))
            wrapped.append((pairs, "multiply", self._forming_apart(pairs.multiply, 5)))
            for owner, function, counted in wrapped:
                stack.callback(setattr, owner, function, getattr(owner, function))
                setattr(owner, function, counted)
            stack.callback(ALL_ATTENTION_FUNCTIONS.register, attend, registered)
            ALL_ATTENTION_FUNCTIONS.register(attend, self.around(ATTENTION, registered))
            self._since = time.perf_counter()
            yield self
            self._switch()

    def _forming_apart(self, function: Callable[..., Any], target: int) -> Callable[..., Any]:
        """The product, counted where it is called, but for what forming its weights takes: that is done once more, for no rows, to know it.

        Rows are in argument 0, the product goes to argument ``target``.
        """

        @wraps(function)
        def counted(x: Any, *others: Any) -> None:
            none = list(others)
            none[target - 1] = none[target - 1][:, :0]
            self._switch()
            function(x[:, :0], *none)
            started, self._since = self._since, time.perf_counter()
            formed = self._since - started
            function(x, *others)
            formed = min(formed, time.perf_counter() - self._since)
            self.seconds["noise"] += formed
            self.seconds[self._inside[-1]] -= formed

        return counted

    def shares(self) -> dict[str, float]:
        """Of the whole, by phase."""
        total = sum(self.seconds.values())
        return {name: seconds / total for name, seconds in self.seconds.items()}
