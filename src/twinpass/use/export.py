"""What a run has trained, as a folder that others load: PEFT's, a model of its own, or one for llama.cpp's converter."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.errors import ModelError
from twinpass.model.causal import output_layer
from twinpass.model.load import load_like
from twinpass.model.save import without_progress
from twinpass.model.source import TOKENIZERS
from twinpass.paths import expand
from twinpass.report.files import put, storing
from twinpass.train.folder import making
from twinpass.use.card import base_name, card
from twinpass.use.settings import settings_of, weights_of
from twinpass.use.weights import PREFIX, SETUP, TENSORS, A, B, require_as_written, setup_of, tensors_of

Format = Literal["peft", "hf", "gguf-ready"]

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
    invocation = setup_of(weights).get("alora_invocation_tokens") or [] if adapter else []
    _require_possible(adapter, kind, merge)
    _require_place(merge, activated=bool(invocation), everywhere=everywhere is not None)
    require_as_written(weights, settings.rewriting(step))
    model, tokenizer = settings.base()
    facts = _acts_from(tokenizer, invocation) if invocation else ()
    if kind != "peft":
        model = merged(model, weights) if adapter else load_like(model, weights)
        facts = () if everywhere is None else everywhere(model)
    if kind == "gguf-ready":
        _require_room(model, tokenizer)
    texts = {"README.md": card(run, settings, kind, merge, step, facts)}
    if kind == "peft":
        texts[SETUP] = (
            json.dumps({**setup_of(weights), "base_model_name_or_path": base_name(settings.path)}, indent=2) + "\n"
        )
        tensors = {f"{PREFIX}{name}": tensor for name, tensor in tensors_of(weights).items()}
    originals = _originals(settings.path) if kind == "gguf-ready" else {}
    with making(out.parent, "--out"), _new(out) as folder:  # whatever is read has been read
        tokenizer.save_pretrained(folder)
        if kind == "peft":
            save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
        else:
            with without_progress():
                model.save_pretrained(folder)
        for name, data in originals.items():
            if not (folder / name).exists():
                (folder / name).write_bytes(data)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    return out


def _acts_from(tokenizer: PreTrainedTokenizerBase, invocation: Sequence[int]) -> Facts:
    text = json.dumps(tokenizer.decode(list(invocation)), ensure_ascii=False).replace("|", "\\|")
    where = f"the last place of `{text}`, tokens {list(invocation)}, in a prompt"
    who = "PEFT (0.17 and later) sees to it, and SGLang with twinpass's plugin; an engine that knows no such adapters lets it act on every token"
    return [("acts from", f"{where}, and not without them. {who}")]


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
    setup, tensors = setup_of(weights), tensors_of(weights)
    scale = setup["lora_alpha"] / setup["r"]
    for name, a in tensors.items():
        if not name.endswith(A):
            continue
        path, b = name.removesuffix(A), tensors[name.replace(A, B)]
        weight = _own_weight(model, path)
        wide = torch.promote_types(weight.dtype, torch.float32)
        change = scale * (b.to(wide) @ a.to(wide))
        transposed = change if isinstance(model.get_submodule(path), nn.Linear) else change.T
        with torch.no_grad():
            weight.copy_(weight.to(wide) + transposed)
    return model


def _own_weight(model: PreTrainedModel, path: str) -> Tensor:
    """The weight of a module that an adapter stands beside; one that others share, such as a tied head, becomes its own.

    The adapter changes what this module computes, and nothing of theirs.
    """
    module = model.get_submodule(path)
    weight = module.get_parameter("weight")
    if sum(own is weight for each in model.modules() for own in each._parameters.values()) > 1:
        weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        module.weight = weight
        if module is output_layer(model):
            model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    return weight


def _require_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer of more tokens than the model has."""
    size, tokens = int(model.config.get_text_config().vocab_size), max(tokenizer.get_vocab().values(), default=0) + 1
    if tokens > size:
        raise ModelError(
            f"the tokenizer has {tokens:,} tokens and the model {size:,}, which GGUF files cannot hold; take the tokenizer that the "
            "model was made with"
        )


def _originals(path: str) -> dict[str, bytes]:
    """A tokenizer's original files, by name: converters read SentencePiece models, which transformers does not write."""
    base, found = expand(path), dict[str, bytes]()
    for name in TOKENIZERS:
        for file in sorted(base.glob(name)) if base.is_dir() else ():
            with storing(file, "read"):
                found[file.name] = file.read_bytes()
    return found
