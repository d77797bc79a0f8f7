"""Templates: rows become prompts and answers, and every fault names its row."""

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from templates import BAD, GOOD, IT, MOOD, REVIEW, WAS, WORDS, encode, letters, row, template, words
from tokenizers.normalizers import Lowercase
from transformers import PreTrainedTokenizerBase

from twinpass.errors import DataError
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.example import Example
from twinpass.task.rows import Row


def test_a_row_becomes_prompt_options_label_and_suffix_start() -> None:
    example = encode(template(), row(1), words(*WORDS))
    assert example == Example((REVIEW, IT, WAS, MOOD), ((BAD,), (GOOD,)), 1, 3)


def test_the_prompt_may_use_several_fields_and_escaped_braces() -> None:
    chosen = template(prompt="{a} {{it}} {b} ", suffix="")
    assert chosen.fields == ("a", "b")
    tokenizer = words(*WORDS, "{it}", "3")
    assert encode(chosen, row(a="was", b=3), tokenizer).prompt == (WAS, 8, 9)


def test_options_may_have_several_tokens_and_different_lengths() -> None:
    example = encode(template(options=(" bad", " was good", " it was bad")), row(2), words(*WORDS))
    assert example.options == ((BAD,), (WAS, GOOD), (IT, WAS, BAD))


def test_the_end_token_that_a_tokenizer_adds_is_left_out() -> None:
    assert encode(template(), row(), words(*WORDS, eos=True)) == encode(template(), row(), words(*WORDS))


def test_rows_are_encoded_in_order() -> None:
    examples = template().encode([row(1), row(0), row(1)], words(*WORDS))
    assert [example.label for example in examples] == [1, 0, 1]


@pytest.mark.parametrize("label", [2, -1, "2", "-1", "", "great", "Good", None, 0.5, math.nan, [1], {"a": 1}])
def test_a_label_outside_the_options_names_the_row(label: object) -> None:
    with pytest.raises(DataError) as caught:
        encode(template(), row(label), words(*WORDS))
    assert str(caught.value).startswith(f"a.jsonl, row 7: label is {label!r}, expected 0 to 1 or one of")


def test_a_label_of_thousands_of_digits_names_the_row() -> None:
    with pytest.raises(DataError, match=r"^a\.jsonl, row 7: label is '9{39}, expected 0 to 1"):
        encode(template(), row("9" * 5000), words(*WORDS))


def test_the_label_may_have_another_name() -> None:
    assert encode(template(label="mood"), row("none", mood="good"), words(*WORDS)).label == 1
    with pytest.raises(DataError, match=r"row 7: .*mood"):
        encode(template(label="mood"), row(0), words(*WORDS))


def test_a_missing_field_is_named_with_those_there_are() -> None:
    with pytest.raises(DataError, match=r"a\.jsonl, row 7: the prompt uses \{title\}, the row has only text, label"):
        encode(template(prompt="{title}: {text}"), row(), words(*WORDS))


def test_null_in_a_field_of_the_prompt_names_row_and_field() -> None:
    with pytest.raises(DataError, match=r"a\.jsonl, row 7: the prompt uses \{text\}, which is null; write \"\""):
        encode(template(), row(text=None), words(*WORDS))
    assert encode(template(), row(unused=None), words(*WORDS)) == encode(template(), row(), words(*WORDS))


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_an_empty_prompt_names_the_row(text: str) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl, row 7: the prompt is empty"):
        encode(template(), row(text=text), words(*WORDS))


def test_one_of_several_fields_may_be_empty() -> None:
    assert encode(template(prompt="{a} {text} "), row(a=""), words(*WORDS)).prompt == (IT, WAS, MOOD)


def test_a_row_must_fit_the_window_with_its_longest_option() -> None:
    chosen = template(options=(" bad", " was good"))
    assert len(encode(chosen, row(), words(*WORDS), 6).prompt) == 4
    with pytest.raises(DataError, match=r"a\.jsonl, row 7: 6 tokens, but the model's window holds 5"):
        encode(chosen, row(), words(*WORDS), 5)


@pytest.mark.parametrize(
    ("tokenizer", "option"),
    [
        (words(*WORDS), "bad"),
        (letters((":", "b")), "bad"),
        (letters((":", "\n")), "\nb"),
        (words(*WORDS), " "),
    ],
    ids=["one word", "merged", "merged line break", "nothing left"],
)
def test_an_option_that_melts_into_the_prompt_is_refused(tokenizer: PreTrainedTokenizerBase, option: str) -> None:
    chosen = template(prompt="{text} ", suffix="mood:", options=(" x", option))
    with pytest.raises(DataError) as caught:
        encode(chosen, row(), tokenizer)
    start = f"a.jsonl, row 7: the answer {option!r} melts into the last token of the prompt"
    assert str(caught.value).startswith(start)


def test_an_option_that_does_not_melt_is_let_through() -> None:
    tokenizer = letters((":", "b"), (" ", "b"))
    example = encode(template(prompt="{text}", suffix="m:", options=(" b", " c")), row(), tokenizer)
    assert [tokenizer.convert_ids_to_tokens(list(option)) for option in example.options] == [[" b"], [" ", "c"]]


@pytest.mark.parametrize(
    ("prompt", "suffix", "merges", "tokens", "start"),
    [
        ("{text}", ":", [], ["i", "t", ":"], 2),
        ("{text}", "", [], ["i", "t"], 2),
        ("{text}", "s:", [("t", "s")], ["i", "ts", ":"], 1),
        ("{text}", "s:", [("t", "s"), ("i", "ts")], ["its", ":"], 0),
        ("{text}", "s:", [("i", "t"), ("it", "s")], ["its", ":"], 0),
        ("{text} ", "s:", [(" ", "s")], ["i", "t", " s", ":"], 2),
    ],
)
def test_the_suffix_starts_at_the_first_token_that_it_changes(
    prompt: str, suffix: str, merges: list[tuple[str, str]], tokens: list[str], start: int
) -> None:
    tokenizer = letters(*merges)
    example = encode(template(prompt=prompt, suffix=suffix, options=(" b", " c")), row(text="it"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(example.prompt)) == tokens
    assert example.suffix_start == start


@pytest.mark.parametrize(
    "changes",
    [
        {"options": (" a",)},
        {"options": (" a", " a")},
        {"options": (" a", "")},
        {"labels": ("a",)},
        {"prompt": ""},
        {"prompt": 3},
        {"colour": "red"},
    ],
    ids=str,
)
def test_a_bad_template_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        template(**changes)


# --- fields in options and suffix, fields that are no text


def test_options_and_suffix_are_filled_from_the_row() -> None:
    chosen = template(prompt="{text}\n", suffix="{ask}", options=(" {one}", " was {two}"))
    example = encode(chosen, row(1, ask="Mood:", one="bad", two="good"), words(*WORDS))
    assert example == Example((IT, WAS, MOOD), ((BAD,), (WAS, GOOD)), 1, 2)


def test_an_option_may_be_named_by_its_own_text_in_the_row() -> None:
    chosen = template(prompt="{text} ", suffix="", options=(" {one}", " {two}"))
    assert encode(chosen, row("good", one="bad", two="good"), words(*WORDS)).label == 1
    with pytest.raises(DataError, match=r"label is 'it', expected 0 to 1 or one of \[' bad', ' good'\]"):
        encode(chosen, row("it", one="bad", two="good"), words(*WORDS))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"one": "bad", "two": "bad"}, "two options are the same"),
        ({"one": " ", "two": "bad"}, "an option is empty, there is no text in one"),
        ({"one": "bad"}, r"the options uses \{two\}, the row has only text, label, one"),
        ({"one": None, "two": "bad"}, r"the options uses \{one\}, which is null"),
    ],
)
def test_options_that_a_row_does_not_fill(fields: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.jsonl, row 7: {message}"):
        encode(template(options=(" {one}", " {two}")), row(**fields), words(*WORDS))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (["it", "was"], "is a list, no text"),
        ([{"role": "user", "content": "it"}], "is a list, no text"),
        ({"a": 1}, "is an object, no text"),
        (math.nan, "is nan"),
        (-math.inf, "is -inf"),
        (True, "is true, no text"),
        (b"\xffit", "holds bytes that are no text in UTF-8"),
        (np.array([1, 2]), "is of type ndarray, no text"),
        (np.float32("nan"), "is nan"),
        ("it \ud800 was", r"holds half a character \(\\ud800, a lone surrogate\)"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "chosen", [template(), template(syntax="jinja", prompt="Review: {{ text }} ")], ids=["braces", "jinja"]
)
def test_what_is_no_text_names_row_and_field(chosen: ChoiceTemplate, value: object, reason: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.jsonl, row 7: the prompt .*{reason}"):
        encode(chosen, row(text=value), words(*WORDS))


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (2.5, "2.5"), (np.int64(3), "3"), (np.float64(2.5), "2.5"), ("3", "3")]
)
def test_numbers_are_written_as_they_are(value: object, text: str) -> None:
    tokenizer = words(*WORDS, text)
    assert encode(template(prompt="{text} "), row(text=value), tokenizer).prompt == (8, MOOD)


def test_fields_inside_of_fields() -> None:
    chosen = template(prompt="{target.span_text} {answers.text[1]} {a.b} ", suffix="")
    fields = {"target": {"span_text": "it"}, "answers": {"text": ["bad", "good"]}, "a.b": "was"}
    assert encode(chosen, row(**fields), words(*WORDS)).prompt == (IT, GOOD, WAS)
    for key, broken in [("target", {}), ("target", "it"), ("answers", {"text": ["bad"]}), ("answers", [])]:
        with pytest.raises(DataError, match=r"^a\.jsonl, row 7: the prompt uses \{(target|answers)\."):
            encode(chosen, row(**fields | {key: broken}), words(*WORDS))


@pytest.mark.parametrize("prompt", ["{Review Text}\n", "{Review Text.long-form}\n", "{class}\n"])
def test_fields_of_several_words(prompt: str) -> None:
    fields = {"class": "a film", "Review Text": {"long-form": "a film"} if "." in prompt else "a film"}
    template = ChoiceTemplate(prompt=prompt, options=(" bad", " good"), label="my label")
    assert template.prompt_of(Row({**fields, "my label": 1}, "row 1")) == "a film\n"
    assert template.answers(Row({**fields, "my label": 1}, "row 1"))[1] == 1


def test_the_label_may_lie_inside_of_a_field() -> None:
    assert encode(template(label="gold.index"), row(gold={"index": 1}), words(*WORDS)).label == 1


# --- Jinja


def test_a_jinja_template_writes_what_braces_cannot() -> None:
    chosen = template(
        syntax="jinja",
        prompt="{% for each in words %}{{ each|lower }} {% endfor %}{% if good %}good{% else %}bad{% endif %} ",
        suffix="{{ ask }}:",
        options=(" {{ one }}", " was"),
    )
    example = encode(chosen, row(0, words=["IT", "WAS"], good=True, ask="Mood", one="bad"), words(*WORDS))
    assert example == Example((IT, WAS, GOOD, MOOD), ((BAD,), (WAS,)), 0, 3)


def test_shots_of_jinja_templates_are_text() -> None:
    chosen = template(syntax="jinja", prompt="{{ text }} ").with_shots(
        [row(1, text='a "b" {{ c }} {% endraw %} \\n \U0001f600')]
    )
    filled = chosen._fill(row(text="it"))[0]
    assert filled == 'a "b" {{ c }} {% endraw %} \\n \U0001f600 Mood: good\n\nit '


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("{{ texts }}", "'texts' is undefined"),
        ("{{ text.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ more.append(1) }}", "attribute 'append' of 'list' object is unsafe"),
        ("{{ 1 // 0 }}", "division|zero"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    ],
)
def test_what_a_jinja_template_may_not_do_names_the_row(prompt: str, reason: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.jsonl, row 7: the prompt cannot be filled from this row: .*({reason})"):
        encode(template(syntax="jinja", prompt=prompt), row(more=[1]), words(*WORDS))


def test_a_jinja_template_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="prompt: not a Jinja template, line 2"):
        template(syntax="jinja", prompt="a\n{% if %}")


# --- options that are the same to a tokenizer


def test_options_of_the_same_tokens_are_named_with_them() -> None:
    """Here both are unknown. It is no row's fault, and said alike of each."""
    with pytest.raises(DataError) as caught:
        encode(template(options=(" fine", " bad", " awful")), row(1), words(*WORDS))
    assert str(caught.value) == (
        "task.options: the tokenizer makes the same of ' fine' and ' awful', tokens [0] (['[UNK]']), so that no model can tell them apart; "
        "use other words for one of them"
    )


def test_options_that_are_the_same_to_a_tokenizer_in_a_row_name_the_row() -> None:
    chosen = template(options=(" {a}", " {b}"))
    with pytest.raises(DataError, match=r"^a\.jsonl, row 7: the tokenizer makes the same of ' fine' and ' awful'"):
        encode(chosen, row(a="fine", b="awful"), words(*WORDS))
    with pytest.raises(DataError, match="the same of"):
        chosen.question(row(a="fine", b="awful"), words(*WORDS))
    assert encode(chosen, row(a="good", b="bad"), words(*WORDS)).options == ((GOOD,), (BAD,))


def test_a_tokenizer_that_knows_no_capitals_takes_them_for_the_same() -> None:
    tokenizer: Any = words(*WORDS)
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    with pytest.raises(DataError, match=r"the same of ' bad' and ' BAD', tokens \[6\] \(\['bad'\]\)"):
        encode(template(options=(" bad", " BAD", " good")), row("good"), tokenizer)


def test_an_option_may_begin_with_another() -> None:
    options = (" good", " good it", " good it was")
    assert encode(template(options=options), row(0), words(*WORDS)).options == ((GOOD,), (GOOD, IT), (GOOD, IT, WAS))
