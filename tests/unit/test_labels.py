"""A label means what it says: whatever type it is of, it never means the other option."""

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from twinpass.task.choice import ChoiceTemplate
from twinpass.task.labels import option_of
from twinpass.task.rows import Row

BAD_GOOD = (" bad", " good")
NO_YES = (" No", " Yes")


@pytest.mark.parametrize(
    ("value", "names", "options", "expected"),
    [
        # an index, where nothing is written as a number
        (0, (), BAD_GOOD, 0),
        (1, (), BAD_GOOD, 1),
        ("1", (), BAD_GOOD, 1),
        (1, ("neg", "pos"), BAD_GOOD, 1),
        (2, (), BAD_GOOD, None),
        (-1, (), BAD_GOOD, None),
        # texts: names first, then options
        ("good", (), BAD_GOOD, 1),
        (" good", (), BAD_GOOD, 1),
        ("neg", ("neg", "pos"), BAD_GOOD, 0),
        ("good", ("neg", "pos"), BAD_GOOD, 1),
        ("bad", ("good", "bad"), BAD_GOOD, 1),
        ("Good", (), BAD_GOOD, None),
        # numbers among the names are names, and not indices
        (1, ("1", "0"), BAD_GOOD, 0),
        (0, ("1", "0"), BAD_GOOD, 1),
        ("1", ("1", "0"), BAD_GOOD, 0),
        (1.0, ("1", "0"), BAD_GOOD, 0),
        ("1.0", ("1", "0"), BAD_GOOD, 0),
        (1, ("1", "2", "3"), (" a", " b", " c"), 0),
        (3, ("1", "2", "3"), (" a", " b", " c"), 2),
        (0, ("1", "2", "3"), (" a", " b", " c"), None),
        (-1, ("-1", "1"), BAD_GOOD, 0),
        (1, ("-1", "1"), BAD_GOOD, 1),
        (0, ("-1", "1"), BAD_GOOD, None),
        (0, ("none", "1"), BAD_GOOD, None),
        (0.5, ("0.1", "0.5"), BAD_GOOD, 1),
        # and so are numbers among the options
        (1, (), (" 1", " 2"), 0),
        (2, (), (" 1", " 2"), 1),
        (0, (), (" 1", " 2"), None),
        ("2", (), (" 1", " 2"), 1),
        (2, ("one", "two"), (" 1", " 2"), 1),
        # true and false
        (True, (), NO_YES, 1),
        (False, (), NO_YES, 0),
        (True, (), (" Yes", " No"), 0),
        (False, (), (" Yes", " No"), 1),
        (True, ("false", "true"), NO_YES, 1),
        (True, ("true", "false"), NO_YES, 0),
        (False, ("False", "True"), NO_YES, 0),
        (True, ("no", "yes"), BAD_GOOD, 1),
        (True, ("1", "0"), BAD_GOOD, 0),
        (True, ("neg", "pos"), (" Yes", " No"), 1),
        (True, (), BAD_GOOD, 1),
        ("True", (), BAD_GOOD, 1),
        ("false", (), (" Yes", " No"), 1),
        (True, (), (" a", " b", " c"), None),
        # arrays' own
        (np.int64(1), (), BAD_GOOD, 1),
        (np.float32(1.0), (), BAD_GOOD, 1),
        (np.bool_(True), (), (" Yes", " No"), 0),
        (np.int8(-1), ("-1", "1"), BAD_GOOD, 0),
        (np.str_("good"), (), BAD_GOOD, 1),
        (1.0, (), BAD_GOOD, 1),
        # a cell of a table with blanks around it
        (" good ", (), BAD_GOOD, 1),
        ("pos ", ("neg", "pos"), BAD_GOOD, 1),
        (" ", (), BAD_GOOD, None),
        # no label
        (0.5, (), BAD_GOOD, None),
        (math.nan, (), BAD_GOOD, None),
        (math.inf, (), BAD_GOOD, None),
        (None, (), BAD_GOOD, None),
        ("", (), BAD_GOOD, None),
        ([1], (), BAD_GOOD, None),
        ({"a": 1}, (), BAD_GOOD, None),
        ("9" * 5000, (), BAD_GOOD, None),
        ("²", (), BAD_GOOD, None),
        ("\u0661", (), BAD_GOOD, None),
    ],
)
def test_a_label_means_what_it_says(
    value: object, names: tuple[str, ...], options: tuple[str, ...], expected: int | None
) -> None:
    assert option_of(value, names, options) == expected


@pytest.mark.parametrize("names", [("1", "0"), ("0", "1"), ("-1", "1"), ("1", "2"), ("neg", "pos"), ("no", "yes")])
def test_whatever_type_a_name_is_written_in_it_means_the_same(names: tuple[str, str]) -> None:
    for i, name in enumerate(names):
        values: list[object] = [name, np.str_(name)]
        if name.lstrip("-").isdigit():
            values += [int(name), float(name), np.int32(name), f"{name}.0", f" {name} "]
        assert {option_of(value, names, BAD_GOOD) for value in values} == {i}


def test_two_options_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="labels: they must be different"):
        ChoiceTemplate(prompt="{text}", options=BAD_GOOD, labels=("a", "a"))


def of(labels: Any) -> ChoiceTemplate:
    return ChoiceTemplate(prompt="{text}", options=BAD_GOOD, labels=labels)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([0, 1], ("0", "1")), ([False, True], ("false", "true")), (["a", 1], ("a", "1")), ([-1, 1], ("-1", "1"))],
)
def test_labels_are_written_as_the_rows_have_them(labels: list[Any], expected: tuple[str, ...]) -> None:
    """Numbers in a file's rows are numbers among its labels."""
    template = of(labels)
    assert template.labels == expected
    assert template.answers(Row({"text": "a", "label": labels[1]}, "row 1")) == (list(BAD_GOOD), 1)


@pytest.mark.parametrize("labels", [[0.5, 1], [None, "a"], "ab", 3])
def test_what_is_no_name_is_refused(labels: Any) -> None:
    with pytest.raises(ValidationError, match="labels"):
        of(labels)
