"""What a model can read: windows, tokens that it knows, one beginning a text."""

import pytest
from templates import BAD, GOOD, IT, MOOD, WAS, WORDS, encode, row, template, words, wrap
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from twinpass.errors import DataError
from twinpass.task.limits import Limits, Truncate
from twinpass.task.rows import Row


def test_a_tokenizer_that_ends_texts_as_berts_do_ends_no_prompt() -> None:
    """Some GPT-2 checkpoints come with one, which writes [CLS] and [SEP] around a text and knows no end of one."""
    core = Tokenizer(
        WordLevel({word: i for i, word in enumerate(("[UNK]", "[CLS]", "[SEP]", *WORDS))}, unk_token="[UNK]")
    )
    core.pre_tokenizer = WhitespaceSplit()
    core.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    tokenizer = wrap(core, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    example = encode(template(), row(), tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(example.prompt)) == ["[CLS]", "Review:", "it", "was", "Mood:"]
    assert [tokenizer.convert_ids_to_tokens(list(option)) for option in example.options] == [["bad"], ["good"]]


def beginning(adds: bool) -> PreTrainedTokenizerBase:
    """Words whose text begins with a token of its own, which the tokenizer may add."""
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(("[UNK]", "<s>", *WORDS))}, unk_token="[UNK]"))
    core.pre_tokenizer = WhitespaceSplit()
    if adds:
        core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return wrap(core, unk_token="[UNK]", bos_token="<s>")


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("prompt", ["<s> {text} ", "<s> <s> {text} ", "{text} "])
def test_a_text_has_one_beginning(adds: bool, prompt: str) -> None:
    example = encode(template(prompt=prompt), row(), beginning(adds))
    assert example.prompt[-3:] == (IT, WAS, MOOD)
    assert example.prompt[:-3] == ((1,) if adds or "<s>" in prompt else ())
    assert example.options == ((BAD,), (GOOD,))


def test_a_token_that_the_model_does_not_know_names_row_and_token() -> None:
    tokenizer = words(*WORDS)
    tokenizer.add_tokens(["<label>"])
    limits = Limits(vocabulary=8)
    assert template().encode([row()], tokenizer, limits)
    for one, chosen in ((row(text="it <label>"), template()), (row(), template(options=(" bad", " <label>")))):
        with pytest.raises(
            DataError, match=r"^a\.jsonl, row 7: token 8 \('<label>'\) is outside of .* vocabulary, 0 to 7"
        ):
            chosen.encode([one], tokenizer, limits)


@pytest.mark.parametrize(
    ("truncate", "window", "prompt"),
    [
        ("left", 6, ("<s>", "it", "was", "good", "Mood:")),
        ("left", 4, ("<s>", "good", "Mood:")),
        ("right", 6, ("<s>", "Review:", "it", "was", "Mood:")),
        ("right", 4, ("<s>", "Review:", "Mood:")),
        ("left", 7, ("<s>", "Review:", "it", "was", "good", "Mood:")),
    ],
)
def test_a_long_prompt_is_shortened_and_keeps_its_beginning_suffix_and_answers(
    truncate: Truncate, window: int, prompt: tuple[str, ...]
) -> None:
    tokenizer = beginning(True)
    (example,) = template().encode([row(text="it was good")], tokenizer, Limits(window, truncate=truncate))
    assert tuple(tokenizer.convert_ids_to_tokens(list(example.prompt))) == prompt
    assert (example.suffix_start, example.options) == (len(prompt) - 1, ((BAD,), (GOOD,)))


def test_a_row_that_is_too_long_says_how_it_is_shortened() -> None:
    with pytest.raises(
        DataError, match=r'\d tokens, but the .* window holds 3; shorten it \(truncate = "left" or "right"\)'
    ):
        template().encode([row()], beginning(True), Limits(3))


@pytest.mark.parametrize("truncate", ["left", "right"])
def test_a_prompt_of_which_nothing_would_be_left_is_refused(truncate: Truncate) -> None:
    with pytest.raises(
        DataError, match=r"^a\.jsonl, row 7: 4 tokens too many for a window of 3, and only 4 before the suffix"
    ):
        template().encode([row(text="it was good")], beginning(True), Limits(3, truncate=truncate))


def test_what_a_terminal_would_obey_is_written_out() -> None:
    with pytest.raises(DataError) as caught:
        encode(template(), Row({"\x1b[31mtext\x9b2J\u202e": "a", "label": 1}, "a.jsonl, row 7"), words(*WORDS))
    assert "the row has only \\x1b[31mtext\\x9b2J\\u202e, label" in str(caught.value)
