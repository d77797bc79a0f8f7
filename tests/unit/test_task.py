"""Rows and templates: what is read is what the file says, and every fault names file and row."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Split, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from twinpass.config.encode import _demonstrated
from twinpass.config.tasks import ChoiceTask
from twinpass.errors import DataError, printable
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.example import Example
from twinpass.task.limits import Limits, Truncate
from twinpass.task.rows import Row
from twinpass.task.sources.read import read_rows
from twinpass.task.template import Template

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, data: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write_file


# --- rows

JSONL = '{"text": "good", "label": 1}\n\n{"text": "bäd", "label": "no"}\n{"text": "x", "label": 0, "more": [1]}\n'
CSV = 'text,label\n"good, very\ngood",1\nbäd,no\n"say ""x""",\n'


def test_jsonl_rows_keep_types_skip_blank_lines_and_count_lines(write: Write) -> None:
    path = write("a.jsonl", JSONL)
    assert read_rows(path) == [
        Row({"text": "good", "label": 1}, f"{path}, row 1"),
        Row({"text": "bäd", "label": "no"}, f"{path}, row 3"),
        Row({"text": "x", "label": 0, "more": [1]}, f"{path}, row 4"),
    ]


def test_csv_rows_are_text_with_quotes_and_line_breaks(write: Write) -> None:
    path = write("a.csv", CSV)
    assert read_rows(path) == [
        Row({"text": "good, very\ngood", "label": "1"}, f"{path}, row 1"),
        Row({"text": "bäd", "label": "no"}, f"{path}, row 2"),
        Row({"text": 'say "x"', "label": ""}, f"{path}, row 3"),
    ]


@pytest.mark.parametrize(("name", "data"), [("a.jsonl", JSONL), ("a.csv", CSV)])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_limit_takes_the_first_rows(write: Write, name: str, data: str, limit: int) -> None:
    path = write(name, data)
    assert read_rows(path, limit) == read_rows(path)[:limit]


@pytest.mark.parametrize(("name", "data"), [("a.jsonl", JSONL), ("a.csv", CSV)])
def test_limit_larger_than_the_file_is_refused(write: Write, name: str, data: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: the configuration asks for 4 rows, the file holds 3"):
        read_rows(write(name, data), 4)


def test_a_last_line_without_line_break_and_windows_line_breaks_are_read(write: Write) -> None:
    assert [row.fields for row in read_rows(write("a.jsonl", '{"a": 1}\r\n{"a": 2}'))] == [{"a": 1}, {"a": 2}]
    assert [row.fields for row in read_rows(write("a.csv", "a\r\n1\r\n2"))] == [{"a": "1"}, {"a": "2"}]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": 1\n', ["row 2: not valid JSON", "column"]),
        ("a.jsonl", '\n\n{"a": 1} {"b": 2}\n', ["row 3: not valid JSON"]),
        ("a.jsonl", '{"a": 1}\n["a"]\n', ["row 2: expected an object", 'got ["a"]']),
        ("a.jsonl", '"' + "x" * 500 + '"\n', ["row 1: expected an object"]),
        ("a.jsonl", "null\n", ["row 1: expected an object", "got null"]),
        ("a.jsonl", "", ["the file holds no rows"]),
        ("a.jsonl", "\n \n", ["the file holds no rows"]),
        ("a.jsonl", b'{"a": "\xe9"}\n', ["row", "not UTF-8", "save the file as UTF-8"]),
        ("a.csv", "", ["the file holds no rows"]),
        ("a.csv", "text,label\n", ["the file holds no rows"]),
        ("a.csv", "text,label\na,1\nb\n", ["row 2: the header names 2 columns, the row differs"]),
        ("a.csv", "text,label\na,1,2\n", ["row 1: the header names 2 columns, the row differs"]),
        ("a.csv", "text,label,text\na,1,b\n", ["the header names the column 'text' twice; rename or remove"]),
        ("a.csv", 'text,label\n"a" b,1\n', ["line", "expected after"]),
        ("a.csv", 'text,label\n"a,1\n', ["line", "unexpected end of data"]),
        ("a.csv", b"text,label\n\xe9,1\n", ["line", "utf-8"]),
        ("a.txt", "a\n", ["expected a file ending in .jsonl, .ndjson, .json, .csv"]),
        ("a", "a\n", ["expected a file ending in .jsonl, .ndjson, .json, .csv"]),
    ],
)
def test_an_unusable_file_is_named_with_its_row(write: Write, name: str, data: str | bytes, words: list[str]) -> None:
    path = write(name, data)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message) < len(str(path)) + 200
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", ["none.jsonl", "none.csv"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: there is no such file; .* relative to the configuration file"):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("value", "words"),
    [("[" * 10**5 + "]" * 10**5, "nested too deep"), ("9" * 5000, "a number has too many digits; write it as a text")],
    ids=["nested", "digits"],
)
def test_json_beyond_what_python_reads_names_the_row(write: Write, value: str, words: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl, row 2: {words}"):
        read_rows(write("a.jsonl", f'{{"a": 1}}\n{{"a": {value}}}\n'))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a\0b.jsonl", "there is no such file"),
        ("~nosuchuser/x.jsonl", "there is no such file"),
        ("x" * 300 + ".jsonl", "cannot be read: File name too long"),
    ],
    ids=["NUL", "no such user", "too long"],
)
def test_a_path_that_cannot_be_is_refused(name: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(Path(name))
    assert str(caught.value).startswith(f"{printable(name)}: {words}")


# --- templates


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
        ({"one": " ", "two": "bad"}, "an option is empty, one hold no text"),
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
        (b"it", "is of type bytes, no text"),
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


# --- what a model can read


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


# --- shots


def test_shots_stand_solved_in_front_of_every_prompt() -> None:
    chosen = template().with_shots([row(1), row("bad", text="was")])
    solved = "Review: it was\nMood: good\n\nReview: was\nMood: bad\n\n"
    assert chosen.prompt == solved + "Review: {text}\n"
    assert (chosen.suffix, chosen.options, chosen.fields) == ("Mood:", (" bad", " good"), ("text",))
    example = encode(chosen, row(0, text="it"), words(*WORDS))
    shots = (REVIEW, IT, WAS, MOOD, GOOD, REVIEW, WAS, MOOD, BAD)
    assert example == Example((*shots, REVIEW, IT, MOOD), ((BAD,), (GOOD,)), 0, len(shots) + 2)


def test_no_shots_change_nothing() -> None:
    assert template().with_shots([]) == template()


def test_braces_in_a_shot_are_text() -> None:
    """A row may hold what looks like a field, or half of one."""
    chosen = template(prompt="{{x}} {text}\n").with_shots([row(text="{y} { }}", label=0)])
    assert chosen.fields == ("text",)
    tokenizer = words("{x}", "{y}", "{", "}}", "Mood:", "bad", "it")
    assert encode(chosen, row(text="it"), tokenizer).prompt == (2, 3, 4, 5, 6, 7, 2, 8, 6)


def test_braces_in_options_and_suffixes_of_shots_are_written_once() -> None:
    chosen = template(prompt="{text}", suffix=" {{Mood}}:", options=(" {{bad}}", " good")).with_shots([row(0)])
    assert chosen.prompt == "it was {{Mood}}: {{bad}}\n\n{text}"


def test_fields_of_a_shot_fill_its_suffix_and_options() -> None:
    chosen = template(prompt="{text}", suffix=" {ask}:", options=(" {a}", " {b}"))
    shot = row(1, ask="which", a="red", b="blue")
    assert chosen.with_shots([shot]).prompt == "it was which: blue\n\n{text}"


@pytest.mark.parametrize(
    ("shot", "message"),
    [
        (row("great"), r"a\.jsonl, row 7: label is 'great', expected 0 to 1 or one of"),
        (row(text=None), r"a\.jsonl, row 7: the prompt uses \{text\}, which is null"),
        (row(text=" "), r"a\.jsonl, row 7: the prompt is empty"),
        (Row({"label": 0}, "a.jsonl, row 7"), r"a\.jsonl, row 7: the prompt uses \{text\}, the row has only label"),
    ],
)
def test_a_shot_that_cannot_be_used_names_its_row(shot: Row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        template().with_shots([row(), shot])


def test_shots_take_part_of_the_window() -> None:
    chosen = template().with_shots([row(1)])
    assert len(encode(chosen, row(), words(*WORDS), 10).prompt) == 9
    with pytest.raises(DataError, match="10 tokens, but the model's window holds 9"):
        encode(chosen, row(), words(*WORDS), 9)


def task(train: Path, **keys: Any) -> ChoiceTask:
    return ChoiceTask(prompt="{text}", options=(" bad", " good"), train=(str(train),), eval=(str(train),), **keys)


def training_rows(chosen: ChoiceTask) -> tuple[list[Row], Template]:
    rows = [item for item in chosen.rows()[0] if isinstance(item, Row)]
    return _demonstrated(chosen, rows, chosen, splits=False)


@pytest.fixture
def five(write: Write) -> Path:
    """Rows "a" to "e", whose labels take turns."""
    return write("five.jsonl", "".join(f'{{"text": "{text}", "label": {i % 2}}}\n' for i, text in enumerate("abcde")))


@pytest.mark.parametrize(
    ("keys", "texts", "prompt"),
    [
        ({}, "abcde", "{text}"),
        ({"train_rows": 2}, "ab", "{text}"),
        ({"shots": 2}, "abc", "d good\n\ne bad\n\n{text}"),
        ({"shots": 2, "train_rows": 1}, "a", "d good\n\ne bad\n\n{text}"),
        ({"shots": 2, "train_rows": 3}, "abc", "d good\n\ne bad\n\n{text}"),
        ({"shots": 4}, "a", "b good\n\nc bad\n\nd good\n\ne bad\n\n{text}"),
    ],
)
def test_the_last_rows_are_shots_and_the_first_are_trained_on(
    five: Path, keys: dict[str, int], texts: str, prompt: str
) -> None:
    rows, chosen = training_rows(task(five, **keys))
    assert [row.fields["text"] for row in rows] == list(texts)
    assert isinstance(chosen, ChoiceTask)
    assert chosen.prompt == prompt


@pytest.mark.parametrize(
    ("keys", "wanted"), [({"shots": 5}, 1), ({"shots": 9}, 1), ({"shots": 3, "train_rows": 3}, 3)], ids=str
)
def test_rows_to_train_on_are_never_shots(five: Path, keys: dict[str, int], wanted: int) -> None:
    message = (
        rf"{wanted} rows to train on and {keys['shots']} shots are more than the 5 in the file; lower task\.train_rows"
    )
    with pytest.raises(DataError, match=message):
        training_rows(task(five, **keys))
