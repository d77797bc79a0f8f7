"""SGLang in this process: ``sgl.Engine``, started for adapters from tensors, asked in batches."""

import os
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from torch import Tensor

from twinpass.core import Tokens
from twinpass.engine.sglang.calls import Call
from twinpass.engine.sglang.plugin import MARK, TESTED
from twinpass.errors import EngineError

NOTHING = {"max_new_tokens": 0, "temperature": 0}


def _fail(signum: int, frame: object) -> None:
    """SGLang's processes send this signal when they fail; its own handler would kill this process without a word."""
    raise EngineError(
        'SGLang\'s process failed; its own message stands above, or set [engine] arguments.log_level to "info"'
    )


CPU = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "lora_backend": "torch_native",
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
}
"""What SGLang has to be told on a machine without a GPU."""

DEFAULTS = {
    "enable_lora": True,
    "grammar_backend": "none",
    "skip_server_warmup": True,
    "sleep_on_idle": True,
    "disable_overlap_schedule": True,
    "custom_sigquit_handler": _fail,
}


class Server:
    """A running SGLang engine.

    Args:
        model: a folder with the model.
        arguments: arguments of ``sgl.Engine``.

    Raises:
        EngineError: SGLang is not installed, of another version than tested, or does not start; or its hooks do not fit.
    """

    def __init__(self, model: str, arguments: Mapping[str, Any]) -> None:
        if arguments.get("device") == "cpu":
            os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
        try:
            import sglang
        except ImportError as error:
            raise EngineError(
                f"[engine] kind = \"sglang\" needs SGLang ({error}): pip install 'twinpass[sglang]', in an environment of its own"
            ) from error
        if sglang.__version__ not in TESTED:
            raise EngineError(
                f"SGLang {sglang.__version__} is installed; adapters were made to fit {', '.join(TESTED)}: "
                f"pip install sglang=={TESTED[-1]}"
            )
        try:
            self._engine = sglang.Engine(model_path=model, tokenizer_path=model, **{**DEFAULTS, **arguments})
        except Exception as error:  # SGLang raises whatever its parts do
            raise EngineError(f"SGLang does not start: {type(error).__name__}: {error}") from error
        try:
            self._require_hooks()
        except EngineError:
            self.close()
            raise

    def _require_hooks(self) -> None:
        try:
            self._engine.collective_rpc("twinpass_check")
        except Exception as error:
            raise EngineError(
                f"SGLang runs without twinpass's hooks ({error}); install twinpass beside it, and leave SGLANG_PLUGINS alone"
            ) from error

    def score(self, calls: Sequence[Call], adapters: Sequence[str | None]) -> list[dict[str, Any]]:
        """SGLang's ``meta_info`` for each call under its adapter.

        Raises:
            EngineError: SGLang failed.
        """
        return self._ask(
            input_ids=[list(call.tokens) for call in calls],
            sampling_params=[_marked(call.active_from) for call in calls],
            return_logprob=[True] * len(calls),
            logprob_start_len=[call.start for call in calls],
            token_ids_logprob=[call.last for call in calls],
            lora_path=list(adapters),
        )

    def fill(self, prefixes: Sequence[Tokens], adapters: Sequence[str | None]) -> int:
        """Bring prefixes into the cache under every one of the adapters; the rows that it took."""
        pairs = [(prefix, adapter) for prefix in prefixes for adapter in adapters]
        if not pairs:
            return 0
        metas = self._ask(
            input_ids=[list(prefix) for prefix, _ in pairs],
            sampling_params=[NOTHING] * len(pairs),
            lora_path=[adapter for _, adapter in pairs],
        )
        return sum(int(meta["prompt_tokens"]) - int(meta["cached_tokens"]) for meta in metas)

    def load(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
        """Load an adapter from tensors under PEFT's names; returns its own name, which no adapter had before or will have again."""
        name = f"twinpass-{uuid4().hex}"
        result = self._engine.load_lora_adapter_from_tensors(name, dict(tensors), dict(config))
        if not result.success:
            raise EngineError(f"SGLang refuses an adapter: {result.error_message}")
        return name

    def unload(self, name: str) -> None:
        """Forget an adapter."""
        result = self._engine.unload_lora_adapter(name)
        if not result.success:
            raise EngineError(f"SGLang does not unload adapter {name}: {result.error_message}")

    def close(self) -> None:
        """Stop SGLang's processes."""
        self._engine.shutdown()

    def _ask(self, **arguments: Any) -> list[dict[str, Any]]:
        try:
            answers = self._engine.generate(**arguments)
        except Exception as error:
            raise EngineError(f"SGLang failed: {type(error).__name__}: {error}") from error
        metas = [dict(answer["meta_info"]) for answer in answers]
        for meta in metas:
            reason = meta.get("finish_reason") or {}
            if reason.get("type") == "abort":
                raise EngineError(f"SGLang refused a request: {reason.get('message', reason)}")
        return metas


def _marked(active_from: int | None) -> dict[str, Any]:
    return dict(NOTHING) if active_from is None else {**NOTHING, "custom_params": {MARK: active_from}}
