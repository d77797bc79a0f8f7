"""Each hash of a run's ground follows what it is named for, and nothing else."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import tiny

from twinpass.config.architecture import computing, differing
from twinpass.config.ground import ground
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.limits import Limits
from twinpass.task.rows import Row

Parts = dict[str, Any]


def parts() -> Parts:
    template = ChoiceTemplate(prompt="Review: {text}", suffix=" Sentiment:", options=(" bad", " good"))
    rows = [Row(fields, f"row {number}") for number, fields in enumerate(tiny.rows(6))]
    tokenizer = tiny.tokenizer()
    examples = template.encode(rows, tokenizer, Limits())
    return {
        "template": template,
        "train": rows[:4],
        "held_out": rows[4:],
        "examples": examples,
        "tokenizer": tokenizer,
        "configuration": computing(tiny.model()),
    }


def flipped(row: Row) -> Row:
    return replace(row, fields={**row.fields, "label": 1 - int(str(row.fields["label"]))})


def padded(tokenizer: Any) -> Any:
    found = deepcopy(tokenizer)
    found.backend_tokenizer.enable_padding(length=9)
    found.backend_tokenizer.enable_truncation(9)
    return found


def with_word(tokenizer: Any, special: bool) -> Any:
    found = deepcopy(tokenizer)
    found.add_tokens(["quick"], special_tokens=special)
    return found


@pytest.mark.parametrize(
    ("part", "change", "follows"),
    [
        ("train", lambda rows: [flipped(rows[0]), *rows[1:]], True),
        ("train", lambda rows: [rows[1], rows[0], *rows[2:]], True),
        ("train", lambda rows: rows[:-1], True),
        ("train", lambda rows: [replace(rows[0], place="elsewhere"), *rows[1:]], False),
        ("held_out", lambda rows: [*rows[:-1], flipped(rows[-1])], True),
        ("template", lambda template: replace(template, suffix=" Sentiment :"), True),
        ("template", lambda template: replace(template, options=(" good", " bad")), True),
        ("tokenizer", lambda tokenizer: with_word(tokenizer, False), True),
        ("tokenizer", lambda tokenizer: with_word(tokenizer, True), True),
        ("tokenizer", padded, False),
        ("configuration", lambda said: said.replace("10000.0", "20000.0"), True),
        ("examples", lambda examples: [replace(examples[0], label=1 - examples[0].label), *examples[1:]], True),
        ("examples", lambda examples: [replace(examples[0], prompt=examples[0].prompt[1:]), *examples[1:]], True),
    ],
)
def test_a_hash_follows_its_part(part: str, change: Callable[[Any], Any], follows: bool) -> None:
    given = parts()
    before, after = ground(**given), ground(**{**given, part: change(given[part])})
    assert before == ground(**parts())
    assert {name for name in before if before[name] != after[name]} == ({part} if follows else set())


def test_what_a_configuration_says_of_computing_alone_is_looked_at() -> None:
    model = tiny.model("gemma3")
    before = computing(model)
    model.config.use_cache, model.config.pad_token_id, model.config.attention_dropout = False, 3, 0.5
    assert computing(model) == before
    model.config.sliding_window = 4
    assert list(differing(before, computing(model))) == ["sliding_window was 8, now 4"]
    assert not list(differing('{"gone": 1}', before))
