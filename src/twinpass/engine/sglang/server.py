"""A running SGLang: asked in batches, told what to load, and never believed without a look."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import uuid4

from torch import Tensor

from twinpass.core import Prompt, Sampling, Tokens
from twinpass.engine.sglang.calls import Call, count_of, number, reading
from twinpass.engine.sglang.inside.activated import MARK
from twinpass.engine.sglang.inside.drawing import MARK as DRAW
from twinpass.engine.sglang.inside.drawing import draw_of
from twinpass.engine.sglang.inside.worker import COMMAND
from twinpass.engine.sglang.transport import Transport
from twinpass.errors import EngineError

NOTHING = {"max_new_tokens": 0, "temperature": 0}
PATIENCE = 20.0
"""Seconds to wait for SGLang to be idle, before its weights are moved."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Weights that SGLang has: an ``adapter`` by name (None: none), and the ``salt`` that keeps their keys and values apart."""

    adapter: str | None = None
    salt: str | None = None


class Server:
    """A running SGLang.

    Args:
        transport: the way to it.
        patience: seconds to wait for it to be idle, before its weights are moved.
    """

    def __init__(self, transport: Transport, patience: float = PATIENCE) -> None:
        self._transport, self._patience, self._kept = transport, patience, ExitStack()

    def keeps(self, stack: ExitStack) -> None:
        """Close ``stack`` after the server."""
        self._kept = stack

    def require_hooks(self, *, adapters: bool) -> None:
        """Make sure that twinpass's hooks are in place in every process.

        Raises:
            EngineError: they are not.
        """
        self.command("check", adapters=adapters)

    @property
    def place(self) -> str:
        """Where SGLang runs, for messages."""
        return self._transport.place

    @property
    def outlives(self) -> bool:
        """Whether SGLang goes on after :meth:`close`."""
        return self._transport.outlives

    @cached_property
    def slots(self) -> int:
        """How many adapters, the base model counted as one, SGLang can mix in a batch."""
        return self._fact("max_loras_per_batch")

    @cached_property
    def page_size(self) -> int:
        """Tokens that SGLang's cache holds, finds and evicts together."""
        return self._fact("page_size")

    def score(self, calls: Sequence[Call], variants: Sequence[Variant]) -> list[dict[str, Any]]:
        """SGLang's ``meta_info`` for each call under its variant.

        Raises:
            EngineError: SGLang failed.
        """
        return self._ask(
            variants,
            input_ids=[list(call.tokens) for call in calls],
            sampling_params=[_marked(call.active_from) for call in calls],
            return_logprob=[True] * len(calls),
            logprob_start_len=[call.start for call in calls],
            token_ids_logprob=[call.last for call in calls],
        )

    def write(
        self, calls: Sequence[Call], variants: Sequence[Variant], prompts: Sequence[Prompt], sampling: Sampling
    ) -> list[dict[str, Any]]:
        """SGLang's ``meta_info`` of a continuation of each call's tokens, which are a prompt's, under its variant.

        Raises:
            EngineError: SGLang failed.
        """
        how = {
            "max_new_tokens": sampling.max_tokens,
            "temperature": 0,
            "stop": list(sampling.stop),
            "stop_token_ids": list(sampling.stop_tokens),
            "ignore_eos": not sampling.stop_tokens,  # SGLang would stop at the model's own, asked or not
        }
        return self._ask(
            variants,
            input_ids=[list(call.tokens) for call in calls],
            sampling_params=[
                {**_marked(call.active_from, draw_of(prompt, sampling) if sampling.temperature else None), **how}
                for call, prompt in zip(calls, prompts, strict=True)
            ],
            return_logprob=[True] * len(calls),
        )

    def fill(self, prefixes: Sequence[Tokens], variants: Sequence[Variant]) -> int:
        """Bring prefixes into the cache under every one of the variants; the rows that it took."""
        pairs = [(prefix, variant) for prefix in prefixes for variant in variants]
        if not pairs:
            return 0
        metas = self._ask(
            [variant for _, variant in pairs],
            input_ids=[list(prefix) for prefix, _ in pairs],
            sampling_params=[NOTHING] * len(pairs),
        )
        return sum(
            count_of(meta, "prompt_tokens", self.place) - count_of(meta, "cached_tokens", self.place) for meta in metas
        )

    def read(self, text: str) -> tuple[list[int], list[float]]:
        """SGLang's own tokens of a text, and the log-probabilities of all but the first; nothing of it stays in the cache's way."""
        apart = [Variant(salt=uuid4().hex)]
        (meta,) = self._ask(
            apart, prompt=[text], sampling_params=[NOTHING], return_logprob=[True], logprob_start_len=[0]
        )
        with reading("meta_info.input_token_logprobs", self.place):
            entries = meta["input_token_logprobs"]
            return [int(entry[1]) for entry in entries], [number(entry[0]) for entry in entries[1:]]

    def load(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        """Load an adapter from tensors under PEFT's names; no adapter may have had its ``name`` before."""
        if objection := self._transport.load_adapter(name, tensors, config):
            raise EngineError(f"SGLang refuses an adapter: {objection}")

    def unload(self, name: str) -> None:
        """Forget an adapter."""
        if objection := self._transport.unload_adapter(name):
            raise EngineError(f"SGLang does not unload adapter {name}: {objection}")

    def command(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have a command carried out in every process (see :mod:`twinpass.engine.sglang.inside.worker`).

        Raises:
            EngineError: it cannot be, or SGLang stays busy.
        """
        text, began = COMMAND + json.dumps({"do": do, **arguments}), time.monotonic()
        while True:
            done, message = self._transport.command(text)
            try:
                answer: dict[str, Any] = json.loads(message)
            except ValueError:
                raise EngineError(
                    f"SGLang runs without twinpass's hooks ({message}); install twinpass beside it, and leave SGLANG_PLUGINS alone"
                ) from None
            if done:
                return answer
            if not answer.get("busy") or time.monotonic() - began > self._patience:
                raise EngineError(str(answer["error"]) + self._waited(answer))
            time.sleep(0.05)

    def _fact(self, name: str) -> int:
        with reading(f"server_info.{name}", self.place):
            return int(self._transport.facts()[name])

    def _waited(self, answer: Mapping[str, Any]) -> str:
        if not answer.get("busy"):
            return ""
        return (
            f", and was for {self._patience:g} s: its weights and its cache cannot be changed under them. Nothing was scored on old keys "
            "and values; give the server to this run alone, and continue with 'twinpass train --resume RUN'"
        )

    def close(self) -> None:
        """Stop SGLang, if it was started here."""
        with self._kept:
            self._transport.close()

    def _ask(self, variants: Sequence[Variant], **arguments: Any) -> list[dict[str, Any]]:
        if any(variant.adapter for variant in variants):
            arguments["lora_path"] = [variant.adapter for variant in variants]
        if any(variant.salt for variant in variants):
            arguments["cache_salt"] = [variant.salt or "" for variant in variants]
        answers = self._transport.generate(**arguments)
        with reading("the list of answers", self.place):
            if len(answers) != len(variants):
                raise EngineError(f"SGLang answered {len(answers)} of {len(variants)} requests")
        with reading("meta_info", self.place):
            metas = [dict(answer["meta_info"]) for answer in answers]
        with reading("meta_info.finish_reason", self.place):
            reasons = [meta.get("finish_reason") or {} for meta in metas]
            aborted = next((reason for reason in reasons if reason.get("type") == "abort"), None)
            if aborted is not None:
                raise EngineError(f"SGLang refused a request: {aborted.get('message', aborted)}")
        return metas


def _marked(active_from: int | None, draw: Mapping[str, Any] | None = None) -> dict[str, Any]:
    marks = {name: value for name, value in ((MARK, active_from), (DRAW, draw)) if value is not None}
    return {**NOTHING, "custom_params": marks} if marks else dict(NOTHING)
