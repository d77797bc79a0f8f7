"""Where an activated adapter begins to act in a request that does not say so: its invocation tokens tell, as in PEFT.

``adapter_config.json`` of such an adapter holds ``alora_invocation_tokens`` (Greenewald et al. 2025, arXiv 2504.12397; PEFT 0.17). It acts
from the last place on where they stand in the prompt, and a prompt that does not hold them is the base model's.
"""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

_managers: WeakSet[Any] = WeakSet()
"""What holds adapters in this process."""


def hooks() -> list[tuple[str, Callable[..., Any], str]]:
    """What is hooked, by what, and how."""
    return [("sglang.srt.lora.lora_manager.LoRAManager.init_state", _know, "BEFORE")]


def tokens_of(adapter: str | None) -> list[int] | None:
    """The invocation tokens of an adapter by SGLang's id of it; None: it acts on every token, or is not known."""
    configs = [manager.configs[adapter] for manager in _managers if adapter in manager.configs]
    return tokens_in(configs[0]) if configs else None


def tokens_in(config: Any) -> list[int] | None:
    """Those in SGLang's copy of an ``adapter_config.json``."""
    return config.hf_config.get("alora_invocation_tokens") or None


def last(tokens: Sequence[int], prompt: Sequence[int]) -> int | None:
    """Where ``tokens`` begin for the last time in ``prompt``; None: nowhere."""
    wanted, whole = list(tokens), list(prompt)
    starts = range(len(whole) - len(wanted), -1, -1)
    return next((i for i in starts if whole[i] == wanted[0] and whole[i : i + len(wanted)] == wanted), None)


def _know(manager: Any, *args: Any, **kwargs: Any) -> None:
    _managers.add(manager)
