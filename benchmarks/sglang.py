"""What RadixAttention shares between perturbed lanes, and what a step costs there: ``python benchmarks/sglang.py --json FILE``.

Runs where SGLang is installed (``make bench-sglang``). A step loads its adapters, sends shared prefixes ahead, scores and updates.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from twinpass.config.build import build
from twinpass.config.load import load_config
from twinpass.core import Probe, Work
from twinpass.engine.sglang.engine import SglangEngine
from twinpass.engine.sglang.server import Server
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json
from twinpass.train.batches import batch
from twinpass.train.journal import History
from twinpass.train.step import apply, measure
from twinpass.reuse.plan import Situation

EXAMPLES = Path(__file__).parent.parent / "examples"
COMMON = ["engine.kind=sglang", "reuse.policy=auto", "reuse.budget=1GiB", "estimator.probes=1", "estimator.noise=gaussian", "epsilon.value=1e-2"]
LORA = "trainable={kind='lora',rank=8,alpha=16.0,targets=['q_proj','k_proj','v_proj','o_proj']}"
BATCHES = 2


class Clock:
    """Seconds spent in some of a server's calls."""

    def __init__(self, server: Server) -> None:
        self.seconds: dict[str, float] = {}
        for name in ("load", "unload", "fill", "score"):
            self.seconds[name] = 0.0
            setattr(server, name, self._around(name, getattr(server, name)))

    def _around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args)
            finally:
                self.seconds[name] += time.perf_counter() - started

        return timed
