"""How tests start SGLang, and what they ask it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.core import Continuations, Lane, Probe, Prompt, Request, Sampling, Score
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.sglang.adapters import AdapterVariants
from twinpass.engine.sglang.engine import SglangEngine
from twinpass.engine.sglang.in_process import CPU
from twinpass.engine.sglang.server import Server
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Activated, Informed, Lora
from twinpass.perturb.race import gumbel

LAYERS = 8
"""Of the 30 that SmolLM2-135M has."""

HOOKS = Path(__file__).parent / "engines" / "sglang" / "hooks"
ARGUMENTS: dict[str, Any] = {
    **CPU,
    "dtype": "float32",
    "log_level": "warning",
    "enable_lora": True,
    "max_total_tokens": 8192,
    "context_length": 1024,
    "max_lora_rank": 8,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"],
    "max_loras_per_batch": 6,
}

TEXTS = (
    "A fine film, moving and warm, with two actors at the height of their powers.",
    "A fine film for those who like to sleep.",
    "Dull, slow, and far too long for what little it has to say about anything at all.",
)
OPTIONS = (" terrible", " great", " very good indeed")
SIGNS = [Lane(Probe(7), 1, 2e-2), Lane(Probe(7), -1, 2e-2)]
TOLERANCE = 5e-5
"""Nats between scores of SGLang and of the embedded engine, in float32."""
SHOTS = "Review: It lifts the heart.\nSentiment: great\nReview: A waste of an evening.\nSentiment: terrible\n"

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def requests_of(tokenizer: PreTrainedTokenizerBase, shots: str = "") -> list[Request]:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text)["input_ids"])

    suffix = len(ids("Sentiment:"))
    prompts = [ids(f"{shots}Review: {text}\nSentiment:") for text in TEXTS]
    return [Request(prompt, ids(option), len(prompt) - suffix) for prompt in prompts for option in OPTIONS]


def worst(ours: Sequence[Sequence[Score]], theirs: Sequence[Sequence[Score]]) -> float:
    differences = [np.abs(a - b).max() for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    return float(np.max(differences))


def require_same_texts(
    embedded: TorchEngine,
    prompts: Sequence[Prompt],
    lanes: Sequence[Lane],
    sampling: Sampling,
    found: Continuations,
    expected: Continuations,
) -> None:
    """Texts are the embedded engine's, up to where two tokens are nearer to each other than scores are to that engine's."""
    same, near = 0, TOLERANCE / (sampling.temperature or 1.0)
    for lane, own, others in zip(lanes, found.values, expected.values, strict=True):
        for prompt, one, other in zip(prompts, own, others, strict=True):
            pairs = list(zip(one.tokens, other.tokens, strict=False))
            until = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
            assert max(map(abs, one.logprobs[:until] - other.logprobs[:until]), default=0.0) < TOLERANCE
            same += until == len(pairs)
            if until < len(pairs):
                context = prompt.tokens + other.tokens[:until]
                ties = [Request(context, (token,), prompt.active_from) for token in pairs[until]]
                a, b = (float(score[0]) for score in embedded.score(ties, [lane]).values[0])
                if sampling.temperature:
                    name = f"{prompt.row}/{prompt.sample}/{until}"
                    (noise,) = gumbel(sampling.seed, [name], max(pairs[until]) + 1)
                    a, b = (
                        value / sampling.temperature + noise[token]
                        for value, token in zip((a, b), pairs[until], strict=True)
                    )
                assert abs(a - b) < near
    assert same > len(prompts) * len(lanes) / 2


def engines(loaded: Loaded, server: Server, *, activated: bool, first: int = 0) -> tuple[TorchEngine, SglangEngine]:
    model, tokenizer = loaded
    invocation = tuple(tokenizer("Sentiment:")["input_ids"]) if activated else ()
    trainable = Activated(first=first) if activated else Lora(first=first)
    embedded = TorchEngine(model, trainable, invocation=invocation, seed=3)
    variants = AdapterVariants(server, model, trainable.attach(model, 3, invocation), "binomial")
    return embedded, SglangEngine(CausalModel(model), embedded.base_hash, server, variants)


def informed(loaded: Loaded, server: Server, rank: int) -> tuple[TorchEngine, SglangEngine]:
    """Both engines along directions that are yet to be fitted; SGLang's asks a third for what enters modules."""
    model, tokenizer = loaded
    invocation, trainable = tuple(tokenizer(":")["input_ids"]), Informed(layers=LAYERS // 2, rank=rank)
    embedded, beside = (TorchEngine(model, trainable, invocation=invocation) for _ in range(2))
    variants = AdapterVariants(server, model, trainable.attach(model, 0, invocation), "binomial")
    return embedded, SglangEngine(CausalModel(model), embedded.base_hash, server, variants, beside=beside)


SECRET = "a-key-that-nobody-may-see"
START_SECONDS = 600
"""More than a busy machine needs."""
SERVER = [
    "--dtype",
    "float32",
    "--device",
    "cpu",
    "--attention-backend",
    "torch_native",
    "--sampling-backend",
    "pytorch",
    "--disable-cuda-graph",
    "--grammar-backend",
    "none",
    "--max-total-tokens",
    "16384",
    "--context-length",
    "1024",
    "--skip-server-warmup",
    "--sleep-on-idle",
    "--log-level",
    "warning",
    "--enable-lora",
    "--lora-backend",
    "torch_native",
    "--max-lora-rank",
    "8",
    "--max-loras-per-batch",
    "6",
    "--lora-target-modules",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
]


def free_port() -> int:
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return int(it.getsockname()[1])


class RunningServer:
    """``python -m sglang.launch_server``, which can be killed and started again at the same address."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self._log, self._port = folder, log, free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["--model-path", str(self.folder), "--port", str(self._port), "--api-key", SECRET, *SERVER]
        environment = {**os.environ, "SGLANG_USE_CPU_ENGINE": "1"}
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "sglang.launch_server", *words]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK:
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        raise AssertionError(f"no server: {self._log.read_text()[-3000:]}")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
