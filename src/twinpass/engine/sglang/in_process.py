"""SGLang in this process: ``sgl.Engine`` and the processes that it starts."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from twinpass.engine.sglang.inside.plugin import TESTED
from twinpass.engine.sglang.transport import Transport
from twinpass.errors import EngineError

T = TypeVar("T")

CPU = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "lora_backend": "torch_native",
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
}
"""What SGLang has to be told on a machine without a GPU."""


def _fail(signum: int, frame: object) -> None:
    """SGLang's processes send this signal when they fail; its own handler would kill this process without a word."""
    raise EngineError(
        'SGLang\'s process failed; its own message stands above, or set [engine] arguments.log_level to "info"'
    )


DEFAULTS = {
    "grammar_backend": "none",
    "skip_server_warmup": True,
    "sleep_on_idle": True,
    "disable_overlap_schedule": True,
    "custom_sigquit_handler": _fail,
}

POLL = 0.5
"""Seconds between looks at whether SGLang's processes live, while waiting for an answer."""


class _Watched:
    """SGLang's event loop, which stops waiting for an answer once a process that would give it is dead."""

    def __init__(self, loop: asyncio.AbstractEventLoop, processes: Sequence[Any]) -> None:
        self._loop, self._processes = loop, processes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def run_until_complete(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(self._while_alive(coroutine))

    async def _while_alive(self, coroutine: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(coroutine)
        while not task.done():
            await asyncio.wait({task}, timeout=POLL)
            if not task.done() and (dead := [each for each in self._processes if not each.is_alive()]):
                task.cancel()
                raise EngineError(
                    f"SGLang's process {dead[0].pid} ended with exit status {dead[0].exitcode} (-9: killed, often for want of memory) "
                    "in the middle of a call. The journal is intact: continue with 'twinpass train --resume RUN'"
                )
        return task.result()


class InProcess(Transport):
    """A running ``sgl.Engine``.

    Args:
        model: a folder with the model, or a hub id.
        arguments: arguments of ``sgl.Engine``.

    Raises:
        EngineError: SGLang is not installed, of another version than tested, or does not start.
    """

    outlives = False

    def __init__(self, model: str, arguments: Mapping[str, Any]) -> None:
        if arguments.get("device") == "cpu":
            os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
        try:
            import sglang
        except ImportError as error:
            raise EngineError(
                f'[engine] kind = "sglang" needs SGLang ({error}): pip install sglang=={TESTED[-1]}, in an environment of its own'
            ) from error
        if sglang.__version__ not in TESTED:
            raise EngineError(
                f"SGLang {sglang.__version__} is installed; twinpass's hooks were made to fit {', '.join(TESTED)}: "
                f"pip install sglang=={TESTED[-1]}"
            )
        try:
            self._engine = sglang.Engine(model_path=model, tokenizer_path=model, **{**DEFAULTS, **arguments})
        except Exception as error:  # SGLang raises whatever its parts do
            raise EngineError(f"SGLang does not start: {type(error).__name__}: {error}") from error
        manager = self._engine.tokenizer_manager
        manager.signal_handler_class = _patient(manager.signal_handler_class)
        self._engine.loop = _Watched(self._engine.loop, manager._subprocess_watchdog._processes)

    def generate(self, **arguments: Any) -> list[dict[str, Any]]:
        return list(self._try(self._engine.generate, **arguments))

    def load_adapter(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
        result = self._try(self._engine.load_lora_adapter_from_tensors, name, dict(tensors), dict(config))
        return None if result.success else str(result.error_message)

    def unload_adapter(self, name: str) -> str | None:
        result = self._try(self._engine.unload_lora_adapter, name)
        return None if result.success else str(result.error_message)

    def command(self, text: str) -> tuple[bool, str]:
        success, message = self._try(self._engine.update_weights_from_tensor, [], load_format=text)
        return bool(success), str(message)

    def facts(self) -> Mapping[str, Any]:
        facts: Mapping[str, Any] = self._try(self._engine.get_server_info)
        return facts

    def close(self) -> None:
        self._engine.shutdown()

    def _try(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"SGLang failed: {type(error).__name__}: {error}") from error


def _patient(handler: type[Any]) -> type[Any]:
    """SGLang's handler of signals, which no longer kills this process when one of SGLang's fails: see :class:`_Watched`."""
    return type("PatientSignalHandler", (handler,), {"running_phase_sigquit_handler": lambda self, *args: None})
