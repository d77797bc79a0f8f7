"""What real SGLang needs to run without a GPU, done as its modules are imported, in every process that has this folder on PYTHONPATH.

- torchvision's wheel is a CUDA build: beside a CPU build of torch its operators have to be declared before it is imported.
- SGLang's LoRA layers pin host memory, for which torch asks CUDA: their own ``torch`` leaves that out. Only theirs: without pinned
  memory everywhere, transformers' rotary frequencies were corrupted.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any

PINNING = ("sglang.srt.lora.layers", "sglang.srt.lora.backend.torch_backend")


class _Unpinned(types.ModuleType):
    """``torch``, whose constructors take ``pin_memory`` and leave it out."""

    def __init__(self, torch: types.ModuleType) -> None:
        super().__init__("torch")
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._torch, name)
        if name not in ("tensor", "zeros", "empty", "ones", "arange"):
            return value

        def make(*args: Any, **kwargs: Any) -> Any:
            kwargs.pop("pin_memory", None)
            return value(*args, **kwargs)

        return make


class _Loader(importlib.abc.Loader):
    def __init__(self, own: importlib.abc.Loader) -> None:
        self._own = own

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "torchvision":
            _declare_operators()
        self._own.exec_module(module)
        if module.__name__ in PINNING:
            import torch

            if not torch.cuda.is_available():
                torch.Tensor.pin_memory = lambda self, *args: self  # type: ignore[method-assign]
                module.__dict__["torch"] = _Unpinned(torch)


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    globals()["_kept"] = library


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torchvision" and name not in PINNING:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
