"""What a run has trained, as a folder that others load: PEFT's, a model of its own, or one for llama.cpp's converter."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.errors import ModelError
from twinpass.model.save import without_progress
from twinpass.model.source import TOKENIZERS
from twinpass.paths import expand
from twinpass.report.files import put, storing
from twinpass.train.folder import making
from twinpass.use.card import base_name, card
from twinpass.use.settings import settings_of, weights_of

Format = Literal["peft", "hf", "gguf-ready"]

SETUP = "adapter_config.json"
PREFIX = "base_model.model."


Facts = Sequence[tuple[str, str]]
"""Names and values, for the model card."""


def export(
    run: Path,
    out: Path,
    kind: Format,
    *,
    merge: bool = False,
    step: int | None = None,
    everywhere: Callable[[PreTrainedModel], Facts] | None = None,
) -> Path:
    """Write weights, tokenizer, generation configuration and model card into the new folder ``out``.

    Args:
        everywhere: says for the model card what comes of an activated adapter that is merged, and so acts on all tokens; without it, none is.

    Raises:
        TwinpassError: the run cannot be exported so, or the folder is not empty. Nothing has been written then.
    """
    settings = settings_of(run)
    weights = weights_of(settings, step)
    adapter = settings.trainable.adapter
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} is not an empty folder; give a new one")
    merge = merge or (adapter and kind == "gguf-ready")
    activated = adapter and bool(_setup(weights).get("alora_invocation_tokens"))
    _require_possible(adapter, kind, merge)
    _require_place(merge, activated=activated, everywhere=everywhere is not None)
    model, tokenizer = settings.base()
    facts: Facts = ()
    if kind != "peft":
        model = merged(model, weights) if adapter else type(model).from_pretrained(str(weights), dtype=model.dtype)
        facts = () if everywhere is None else everywhere(model)
    if kind == "gguf-ready":
        _require_room(model, tokenizer)
    with making(out.parent, "--out"), _new(out) as folder:
        tokenizer.save_pretrained(folder)
        if kind == "peft":
            _copy_adapter(weights, folder, settings.path)
        else:
            with without_progress():
                model.save_pretrained(folder)
        if kind == "gguf-ready":
            _complete_tokenizer(settings.path, folder)
        (folder / "README.md").write_text(card(run, settings, kind, merge, step, facts), encoding="utf-8")
    return out


@contextmanager
def _new(out: Path) -> Iterator[Path]:
    """An empty folder that is ``out`` once it is whole and on the disk.

    Raises:
        StorageError: it cannot be written; nothing is left then.
    """
    with storing(out), tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as place:
        folder = Path(place) / "new"
        folder.mkdir()
        yield folder
        put(folder, out)


def _require_possible(adapter: bool, kind: Format, merge: bool) -> None:
    if kind == "gguf-ready" and merge and not adapter:
        raise ModelError("the run has trained the model's own weights, there is nothing to merge: leave --merge out")
    if kind == "peft" and not adapter:
        raise ModelError("the run has trained the model's own weights, and PEFT holds adapters: use --format hf")
    if kind == "peft" and merge:
        raise ModelError("--merge makes a model without an adapter: use --format hf with it, or leave it out")
    if kind == "hf" and adapter and not merge:
        raise ModelError(
            "the run has trained an adapter: use --format peft, or --merge to add it to the model's own weights"
        )
    if merge and not adapter:
        raise ModelError("the run has trained the model's own weights, there is nothing to merge: leave --merge out")


def _require_place(merge: bool, *, activated: bool, everywhere: bool) -> None:
    if everywhere and not (merge and activated):
        raise ModelError("--everywhere is for an activated adapter that is merged: leave it out")
    if merge and activated and not everywhere:
        raise ModelError(
            "an activated adapter acts on the tokens after its activation point only, and weights act on all: it cannot be merged as it "
            "was trained. Use --format peft: PEFT 0.17 and later, and SGLang with twinpass's plugin, run it as it was trained; "
            'add --everywhere to merge it all the same and see what held-out rows make of it; or train [trainable] kind = "lora", which merges'
        )


def merged(model: PreTrainedModel, weights: Path) -> PreTrainedModel:
    """``model`` with an adapter added to its weights, in float32 at least: ``W += alpha / r * B A``."""
    setup = _setup(weights)
    tensors = load_file(weights / "adapter_model.safetensors")
    scale = setup["lora_alpha"] / setup["r"]
    for name, a in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        path = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        b = tensors[name.replace(".lora_A.", ".lora_B.")]
        weight = cast(Tensor, model.get_submodule(path).weight)
        wide = torch.promote_types(weight.dtype, torch.float32)
        change = scale * (b.to(wide) @ a.to(wide))
        transposed = change if isinstance(model.get_submodule(path), nn.Linear) else change.T
        with torch.no_grad():
            weight.copy_(weight.to(wide) + transposed)
    return model


def _require_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer of more tokens than the model has."""
    size, tokens = int(model.config.get_text_config().vocab_size), max(tokenizer.get_vocab().values(), default=0) + 1
    if tokens > size:
        raise ModelError(
            f"the tokenizer has {tokens:,} tokens and the model {size:,}, which GGUF files cannot hold; take the tokenizer that the "
            "model was made with"
        )


def _complete_tokenizer(path: str, folder: Path) -> None:
    """Put the tokenizer's original files beside those that transformers writes: converters read SentencePiece models from there."""
    base = expand(path)
    for name in TOKENIZERS:
        for file in sorted(base.glob(name)) if base.is_dir() else ():
            if not (folder / file.name).exists():
                shutil.copy(file, folder)


def _copy_adapter(weights: Path, folder: Path, path: str) -> None:
    shutil.copy(weights / "adapter_model.safetensors", folder)
    setup = {**_setup(weights), "base_model_name_or_path": base_name(path)}
    (folder / SETUP).write_text(json.dumps(setup, indent=2) + "\n", encoding="utf-8")


def _setup(weights: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((weights / SETUP).read_text(encoding="utf-8"))
    return found
