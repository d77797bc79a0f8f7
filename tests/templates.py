"""Templates, rows and word-level tokenizers to encode them by."""

from collections.abc import Callable
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Split, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from twinpass.task.choice import ChoiceTemplate
from twinpass.task.example import Example
from twinpass.task.limits import Limits
from twinpass.task.rows import Row


def wrap(core: Tokenizer, **special: str) -> PreTrainedTokenizerBase:
    make: Callable[..., PreTrainedTokenizerBase] = PreTrainedTokenizerFast
    return make(tokenizer_object=core, **special)


def words(*vocabulary: str, eos: bool = False) -> PreTrainedTokenizerBase:
    """Words between white space, with ids in the order given; 0 is unknown, 1 the end of a text."""
    ids = {word: i for i, word in enumerate(("[UNK]", "[EOS]", *vocabulary))}
    core = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    core.pre_tokenizer = WhitespaceSplit()
    if eos:
        core.post_processor = TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 1)])
    return wrap(core, unk_token="[UNK]", eos_token="[EOS]")


def letters(*merges: tuple[str, str]) -> PreTrainedTokenizerBase:
    """BPE over single characters with these merges; a blank begins a new piece, as in GPT-2."""
    alphabet = "abcdefghijklmnopqrstuvwxyz:. \n"
    ids = {token: i for i, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    core = Tokenizer(BPE(vocab=ids, merges=list(merges)))
    core.pre_tokenizer = Split(Regex(r" ?[^ ]+| +"), "isolated")
    return wrap(core)


WORDS = ("it", "was", "Review:", "Mood:", "bad", "good")


IT, WAS, REVIEW, MOOD, BAD, GOOD = range(2, 8)


def template(**changes: Any) -> ChoiceTemplate:
    keys: dict[str, Any] = {"prompt": "Review: {text}\n", "suffix": "Mood:", "options": (" bad", " good")}
    return ChoiceTemplate(**(keys | changes))


def row(label: object = 0, **fields: object) -> Row:
    return Row({"text": "it was", "label": label} | fields, "a.jsonl, row 7")


def encode(chosen: ChoiceTemplate, one: Row, tokenizer: PreTrainedTokenizerBase, window: int | None = None) -> Example:
    (example,) = chosen.encode([one], tokenizer, Limits(window))
    return example
