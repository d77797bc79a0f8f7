"""Tasks whose answer is a text: rows become prompts and completions, and their likelihood a loss."""

from typing import Any

import numpy as np
import pytest
import tiny
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from twinpass.errors import DataError
from twinpass.objective.completion import Completion
from twinpass.task.completion import CompletionTemplate
from twinpass.task.example import Example
from twinpass.task.limits import Limits
from twinpass.task.rows import Row

WORDS = {word: i for i, word in enumerate(tiny.WORDS)}


def template(**changes: Any) -> CompletionTemplate:
    return CompletionTemplate(**{"prompt": "Review: {text} ", "completion": "{answer} film", "end": False, **changes})


def encode(chosen: CompletionTemplate, tokenizer: PreTrainedTokenizerFast | None = None, **fields: object) -> Example:
    row = Row({"text": "a dull story", "answer": "good", **fields}, "a.jsonl, row 7")
    return chosen.encode([row], tokenizer or tiny.tokenizer())[0]


def ending(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens({"eos_token": "[UNK]"})
    return tokenizer


def ids(text: str) -> tuple[int, ...]:
    return tuple(WORDS[word] for word in text.split())


def test_a_row_becomes_a_prompt_and_a_completion() -> None:
    assert encode(template()) == Example(ids("Review: a dull story"), (ids("good film"),), 0, 4)


def test_the_end_of_text_follows() -> None:
    tokenizer = ending(tiny.tokenizer())
    (completion,) = encode(template(end=True), tokenizer).options
    assert completion == (*ids("good film"), tokenizer.eos_token_id)
    assert encode(template(), tokenizer).options == (ids("good film"),)


def test_a_text_that_ends_already_has_one_end() -> None:
    tokenizer = ending(tiny.tokenizer())
    chosen = CompletionTemplate(prompt="{text}", completion=" {answer}")
    for answer in ("good", "good [UNK]"):
        assert encode(chosen, tokenizer, answer=answer).options == ((*ids("good"), tokenizer.eos_token_id),)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    with pytest.raises(DataError, match=r"no end-of-text token; set task.end = false"):
        encode(template(end=True))


def test_the_window_holds_the_end_too() -> None:
    tokenizer = ending(tiny.tokenizer())
    row = Row({"text": "fine", "answer": "good"}, "a.jsonl, row 7")
    assert template(end=True).encode([row], tokenizer, Limits(5))
    with pytest.raises(DataError, match="row 7: 5 tokens, but the model's window holds 4"):
        template(end=True).encode([row], tokenizer, Limits(4))


def test_solved_rows_stand_in_front() -> None:
    shot = Row({"text": "fine", "answer": "bad"}, "a.jsonl, row 1")
    assert encode(template(suffix="Sentiment: ").with_shots([shot])).prompt == ids(
        "Review: fine Sentiment: bad film Review: a dull story Sentiment:"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": None}, r"row 7: the completion uses \{answer\}, which is null"),
        ({"answer": " "}, "row 7: the completion is empty, there is no text in answer; drop the row"),
        ({"text": None}, r"row 7: the prompt uses \{text\}, which is null"),
    ],
)
def test_rows_that_cannot_be_used(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode(template(), **fields)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(DataError, match=r"row 7: the completion uses \{summary\}, the row has only text, answer"):
        encode(template(completion="{summary}"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"completion": "good"}, "the same for every row; name a field"),
        ({"completion": "{answer!r}"}, "completion: fields are plain names"),
        ({"completion": "{answer"}, "completion: .*literal braces doubled"),
        ({"completion": ""}, "at least 1 character"),
        ({"options": (" bad", " good")}, "options"),
    ],
)
def test_templates_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        template(**changes)


def test_every_example_counts_alike() -> None:
    examples = [Example((1, 2), ((3, 4),), 0, 1), Example((1, 2), ((5, 6, 7),), 0, 1)]
    scores = [np.log([0.5, 0.125]), np.log([0.1, 0.1, 0.1])]
    objective = Completion()
    assert [request.completion for request in objective.requests(examples)] == [(3, 4), (5, 6, 7)]
    assert not any(request.relative for request in objective.requests(examples))
    assert objective.loss(examples, scores) == pytest.approx(-(np.log(0.25) + np.log(0.1)) / 2)
    assert objective.metric(examples, scores) == pytest.approx((0.25 + 0.1) / 2)


def test_the_gradient_is_the_derivative_of_the_loss() -> None:
    examples = [Example((1,), ((2, 3, 4),), 0, 0), Example((1,), ((2,),), 0, 0)]
    scores = [np.array([-1.0, -2.0, -0.5]), np.array([-3.0])]
    slopes = Completion().gradient(examples, scores)
    change = [np.array([0.1, -0.3, 0.2]), np.array([0.7])]
    moved = [score + own for score, own in zip(scores, change, strict=True)]
    expected = Completion().loss(examples, moved) - Completion().loss(examples, scores)
    assert sum(float(a @ b) for a, b in zip(slopes, change, strict=True)) == pytest.approx(expected)
