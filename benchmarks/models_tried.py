"""What users do with a model, tried on a tiny one: does it run, and do PEFT and transformers load what was trained to the same scores?"""

import io
import shutil
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import models_tiny
import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

import twinpass
from twinpass.core import BASE, Request
from twinpass.engine.embedded.scoring.packing_check import PackingCheck
from twinpass.errors import TwinpassError
from twinpass.model.causal import CausalModel

Found = dict[str, Any]
"""What came of a trial: ``works``; if not, ``why``, and whether that is twinpass's own message (``told``)."""

CHOOSE: Mapping[str, Any] = {"prompt": "Review: {text}", "suffix": " Sentiment:", "options": [" bad", " good"]}
WRITE: Mapping[str, Any] = {"prompt": "Review: {text} Sentiment:", "completion": " {answer}", "end": False}
ASKED = (
    Request((2, 9, 7, 6, 3), (4,), active_from=4),
    Request((2, 9, 7, 6, 3), (5,), active_from=4),
    Request((2, 8, 11, 3), (5,), active_from=3),
    Request((2, 10, 11, 9, 7, 6, 3), (5, 6, 12), active_from=6),
)
"""What is scored by twinpass and by who loads what was trained: prompts that end in the suffix, and tokens behind them."""

BEGINNINGS = ("Review: a fine film Sentiment:", "Review: dull story Sentiment:")
TOKENS, END = 4, 0
"""Tokens to write, and the one that ends a text."""
OFF = 1e-3
"""The most nats that scores of float32 may differ by."""


class WrongError(Exception):
    """A trial that ran, to something else than it should have."""


def _adam() -> twinpass.AdamW:
    return twinpass.AdamW(lr=0.05, steps=2, batch_size=4)


KINDS: Mapping[str, tuple[Mapping[str, Any], Callable[[], dict[str, Any]]]] = {
    "options": (CHOOSE, lambda: {"optimizer": _adam()}),
    "texts": (WRITE, lambda: {"optimizer": _adam()}),
    "lora": (CHOOSE, lambda: {"trainable": twinpass.Lora(), "optimizer": _adam()}),
    "full": (
        CHOOSE,
        lambda: {"trainable": twinpass.Full(), "optimizer": twinpass.Relative(lr=0.02, steps=2, batch_size=4)},
    ),
    "informed": (CHOOSE, lambda: {"trainable": twinpass.Informed(layers=1, fit_rows=6)}),
    "random": (
        CHOOSE,
        lambda: {
            "trainable": twinpass.Full(),
            "estimator": twinpass.Spsa(probes=1),
            "optimizer": twinpass.Sgd(lr=1e-2, steps=2, batch_size=4),
        },
    ),
}
"""What is trained, by the name that it has in results: a task, and what is said besides."""


def tried(kind: str, folder: Path, told: Callable[[str, Found], None]) -> None:
    """Try everything on one type of model, in a folder; ``told`` hears of each trial as it ends."""
    torch.set_num_threads(1)
    first = _of(lambda: {"parameters": sum(each.numel() for each in models_tiny.build(kind).parameters())})
    told("built", first)
    if not first["works"]:
        return
    told("packs", _of(partial(_packs, kind)))
    for name in KINDS:
        found = _of(partial(_trained, kind, folder / name, name))
        if not found["works"] and "'inplace'" in found["why"]:
            shutil.rmtree(folder / name, ignore_errors=True)
            found = {**_of(partial(_trained, kind, folder / name, name, perturbation="inplace")), "inplace": True}
        told(name, found)
        if name == "texts" and found["works"]:
            told("written", _of(partial(_written, kind, folder / name)))
        shutil.rmtree(folder / name, ignore_errors=True)


def _of(trial: Callable[[], Found]) -> Found:
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return {"works": True, **trial()}
        except Exception as error:  # any model's own code runs here
            told = isinstance(error, TwinpassError)
            found = {"works": False, "told": told, "why": _short(error)}
            place = traceback.extract_tb(error.__traceback__)[-1]
            return found if told else {**found, "at": f"{Path(place.filename).name}:{place.lineno}"}


def _short(error: Exception) -> str:
    text = str(error) if isinstance(error, TwinpassError | WrongError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:500]


def _packs(kind: str) -> Found:
    check = PackingCheck.of(CausalModel(models_tiny.build(kind)), 0)
    return {"works": check.packs, **({} if check.packs else {"told": True, "why": check.reason[:500]})}


def _trained(kind: str, out: Path, name: str, **more: Any) -> Found:
    """Train, then hold scores of what was saved against those of who loads it."""
    task, said = KINDS[name]
    rows = models_tiny.rows(8)
    model, tokenizer = models_tiny.build(kind), models_tiny.tokenizer()
    twinpass.finetune(model, tokenizer, rows, rows[:2], **task, **said(), **more, out=out, keep="last")
    loaded = twinpass.load(out, model=models_tiny.build(kind), tokenizer=tokenizer)
    own = loaded.engine.score(ASKED, [BASE]).values[0]
    before = _scores(models_tiny.build(kind))
    if (out / "adapter").is_dir():
        reader = "PEFT"
        again: Any = PeftModel.from_pretrained(models_tiny.build(kind), str(out / "adapter"))
    else:
        reader = "transformers"
        again = type(model).from_pretrained(out / "model")
    if not _apart(own, before) > 0:
        raise WrongError("it trained, and no score has changed")
    try:
        off = _apart(own, _scores(again.eval()))
    except Exception as error:
        raise WrongError(f"{reader} fails on what was trained: {_short(error)}") from error
    if not off <= OFF:
        raise WrongError(f"{reader} loads what was trained to scores that are {off:.2g} nats off")
    return {"off": off}


def _written(kind: str, out: Path) -> Found:
    """Texts, against the likeliest tokens by PEFT's model."""
    tokenizer = models_tiny.tokenizer()
    texts = twinpass.load(out, model=models_tiny.build(kind), tokenizer=tokenizer).generate(
        BEGINNINGS, max_tokens=TOKENS
    )
    again = PeftModel.from_pretrained(models_tiny.build(kind), str(out / "adapter")).eval()
    for beginning, text in zip(BEGINNINGS, texts, strict=True):
        read = list(tokenizer(beginning)["input_ids"])
        ids = list(read)
        while len(ids) < len(read) + TOKENS and ids[-1] != END:
            ids.append(int(_logits(again, ids)[-1].argmax()))
        expected = str(tokenizer.decode(ids[len(read) :])).removesuffix(models_tiny.WORDS[END])
        if text.split() != expected.split():
            raise WrongError(f"it writes {text!r}, and PEFT's model {expected!r}")
    return {}


def _logits(model: Any, ids: Sequence[int]) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].double()


def _scores(model: PreTrainedModel | PeftModel) -> list[Any]:
    found = []
    for request in ASKED:
        logprobs = torch.log_softmax(_logits(model, request.inputs)[len(request.prompt) - 1 :], -1).numpy()
        found.append(logprobs[range(len(request.completion)), request.completion])
    return found


def _apart(one: Sequence[Any], other: Sequence[Any]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))
