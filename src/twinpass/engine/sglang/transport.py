"""The contract of a way to a running SGLang."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor


class Transport(ABC):
    """What SGLang offers in this process and over HTTP alike.

    Every method raises EngineError if SGLang died, cannot be reached, or fails.
    """

    outlives: ClassVar[bool]
    """Whether SGLang goes on after :meth:`close`."""

    place: str = "SGLang"
    """Where it runs, for messages."""

    @abstractmethod
    def generate(self, **arguments: Any) -> list[dict[str, Any]]:
        """Answers to a batch of requests; arguments are those of ``sgl.Engine.generate``."""

    @abstractmethod
    def load_adapter(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
        """Load an adapter from tensors under PEFT's names; what SGLang has against it, or None."""

    @abstractmethod
    def unload_adapter(self, name: str) -> str | None:
        """Forget an adapter; what SGLang has against it, or None."""

    @abstractmethod
    def command(self, text: str) -> tuple[bool, str]:
        """Hand a command to every process (see :mod:`twinpass.engine.sglang.inside.worker`); whether it was carried out, and the answer."""

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """SGLang's own arguments, and its ``version``."""

    @abstractmethod
    def close(self) -> None:
        """Stop SGLang if it was started here; leave it otherwise."""
