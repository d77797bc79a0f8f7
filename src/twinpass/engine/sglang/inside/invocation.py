"""Where an activated adapter begins to act in a request that does not say so: its invocation tokens tell, as in PEFT.

``adapter_config.json`` of such an adapter holds ``alora_invocation_tokens`` (Greenewald et al. 2025, arXiv 2504.12397; PEFT 0.17). It acts
from the last place on where they stand in the prompt, and a prompt that does not hold them is the base model's.
"""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

_MANAGER = "sglang.srt.lora.lora_manager.LoRAManager"

_managers: WeakSet[Any] = WeakSet()
"""What holds adapters in this process."""


def hooks() -> list[tuple[str, Callable[..., Any], str]]:
    """What is hooked, by what, and how."""
    return [
        (f"{_MANAGER}.init_state", _know, "BEFORE"),
        (f"{_MANAGER}.validate_new_adapter", _require_room, "AFTER"),
    ]


def invocation_of(adapter: str | None) -> list[int] | None:
    """The invocation tokens of an adapter by SGLang's id of it; None: it acts on every token, or is not known."""
    configs = [manager.configs[adapter] for manager in _managers if adapter in manager.configs]
    return _tokens(configs[0]) if configs else None


def last(tokens: Sequence[int], prompt: Sequence[int]) -> int | None:
    """Where ``tokens`` begin for the last time in ``prompt``; None: nowhere."""
    wanted, whole = list(tokens), list(prompt)
    starts = range(len(whole) - len(wanted), -1, -1)
    return next((i for i in starts if whole[i] == wanted[0] and whole[i : i + len(wanted)] == wanted), None)


def _tokens(config: Any) -> list[int] | None:
    return config.hf_config.get("alora_invocation_tokens") or None


def _know(manager: Any, *args: Any, **kwargs: Any) -> None:
    _managers.add(manager)


def _require_room(result: None, manager: Any, config: Any, adapter: Any) -> None:
    """Refuse what could not be served: rows before the activation point need a slot beside the adapter's."""
    if _tokens(config) and manager.max_loras_per_batch < 2:
        raise ValueError(
            f"twinpass: {adapter.lora_name} is an activated adapter, and what comes before it runs without one: set max_loras_per_batch to 2 or more"
        )
