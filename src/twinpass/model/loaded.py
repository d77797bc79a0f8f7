"""The loader's own report of what it found: whether every weight of the model came from the checkpoint."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from twinpass.errors import ModelError
from twinpass.model.causal import CausalModel

_OTHER_PARTS = ("vision", "visual", "audio", "projector")
_BLOCK = re.compile(r"blk\.(\d+)\.")
_CONVERSION = re.compile(r"^(\S+)\s*\|.*CONVERSION", re.MULTILINE)


def require_complete(
    model: PreTrainedModel, config: PreTrainedConfig, report: Mapping[str, Any], gguf: Mapping[str, int], path: str
) -> None:
    """Refuse a model some of whose weights are not the checkpoint's, or the other way round.

    Args:
        config: the checkpoint's; the model's own is a part of it where the checkpoint is of more than a language model.
        report: what ``output_loading_info`` gives. Tied weights that are there once are not missing in it, nor are names that
            transformers knows to be left over.
        gguf: sizes of the tensors in a GGUF file, of which transformers reads those that it looks for and says nothing of the rest.

    Raises:
        ModelError: naming missing, mismatched and left-over tensors.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"model.path: {path} holds an adapter beside a model, and transformers would train both as one; "
            "merge the adapter first (merge_and_unload of PEFT), or take adapter_config.json away"
        )
    problems = []
    if missing := sorted(report["missing_keys"]):
        problems.append(f"{_some(missing)} {_are(missing)} not in it, and would be random")
    if mismatched := sorted(report["mismatched_keys"]):
        shapes = [f"{name} is {list(found)} in it and {list(own)} in the model" for name, found, own in mismatched]
        problems.append(_some(shapes))
    left = sorted(name for name in report["unexpected_keys"] if not _of_another_part(name, model, config))
    left += _later_blocks(gguf, CausalModel(model).depth)
    if left:
        problems.append(
            f"{_some(left)} {_are(left)} in it, and {'has' if len(left) == 1 else 'have'} no place in the model"
        )
    elif (rest := _beyond(gguf, model)) > 0:
        problems.append(f"{rest:,} weights are in it that have no place in the model")
    problems += report["error_msgs"]
    if problems:
        raise ModelError(
            f"model.path: the weights of {path} do not fit its config.json, which describes a {type(model).__name__}: {'; '.join(problems)}. "
            "The checkpoint is incomplete, damaged, or of another model"
        )


def unconverted(warnings: Sequence[str]) -> str:
    """The names that the loader could not convert to this model's layout, from what it logged."""
    return _some([name for text in warnings for name in _CONVERSION.findall(text)])


def _of_another_part(name: str, model: PreTrainedModel, config: PreTrainedConfig) -> bool:
    """Whether a tensor belongs to a part that the language model of a larger one has no need of."""
    if type(model.config) is type(config):
        return False
    parts = [part.removesuffix("_config") for part in getattr(config, "sub_configs", {}) if part != "text_config"]
    return any(part in name for part in (*parts, *_OTHER_PARTS))


def _later_blocks(names: Collection[str], depth: int) -> list[str]:
    return sorted(name for name in names if (block := _BLOCK.match(name)) and int(block[1]) >= depth)


def _beyond(gguf: Mapping[str, int], model: PreTrainedModel) -> int:
    """How many more weights a GGUF file has than the model, tables of rotary frequencies aside."""
    state: Mapping[str, Tensor] = model.state_dict()
    own = {tensor.data_ptr(): tensor.numel() for tensor in state.values()}
    held = sum(size for name, size in gguf.items() if not name.startswith("rope_"))
    return held - sum(own.values())


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + _more(names, most)


def _more(names: Sequence[Any], most: int) -> str:
    return f" and {len(names) - most} more" if len(names) > most else ""


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
