"""Rows: what is read is what the file says, and every fault names file and row."""

from pathlib import Path

import files
import pytest
from files import Write

from twinpass.errors import DataError, printable
from twinpass.task.rows import Row
from twinpass.task.sources.read import read_rows

write = files.write


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
        ("a.csv", 'text,label\n"a,1\nb,0\n', ["line 2", "a quote that is opened here is never closed", "inside of a"]),
        (
            "a.csv",
            'text,label\na,1\n"b" c,0\n',
            ["line 3", "expected after", "write a quote inside of a cell in quotes twice"],
        ),
        ("a.csv", b"text,label\n\xe9,1\n", ["after line 0", "not UTF-8", "save the file as UTF-8"]),
        ("a.tsv", b"text\tlabel\n\xe9\t1\n", ["after line", "not UTF-8", "save the file as UTF-8"]),
        (
            "a.csv",
            "text;label\na;1\n",
            ["one column, 'text;label': semicolons stand where commas", "save it with commas"],
        ),
        ("a.csv", "text\tlabel\na\t1\n", ["tabs stand where commas should", "or end its name in .tsv"]),
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
