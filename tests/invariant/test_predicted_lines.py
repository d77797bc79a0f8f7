"""Lines of predictions hold whatever rows hold, and go wherever they are printed."""

import io
import json
import math
import os
import sys
import threading
from base64 import b64encode
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from trained import completion, train

from twinpass.cli.main import main


def test_fields_that_json_has_no_form_for_are_written_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A date out of a Parquet file as text, and half a character, which the prompt does not use, as it was escaped."""
    run, out = train(tmp_path), tmp_path / "out.jsonl"
    pd.DataFrame({"text": ["fine", "dull"], "day": pd.Timestamp("2026-11-30")}).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text('{"text": "fine", "author": "\\ud83d"}\n{"text": "dull", "author": "é"}\n')
    command = ["predict", str(run), str(tmp_path / "rows.parquet"), str(tmp_path / "rows.jsonl"), "--out", str(out)]
    assert main(command) == 0
    whole = out.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line.get("day") for line in lines] == ["2026-11-30 00:00:00"] * 2 + [None] * 2
    assert [line.get("author") for line in lines] == [None, None, "\ud83d", "é"]
    assert "é" in whole
    out.write_text("".join(whole.splitlines(keepends=True)[:3]))
    assert main(command) == 0
    assert out.read_text() == whole, "continued"
    capsys.readouterr()


def test_rows_without_a_prompt_are_told_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path)
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    (tmp_path / "rows.jsonl").write_text('{"text": "fine"}\n{"text": " "}\n{"label": 1}\n')
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path / "rows.jsonl")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "row 2: the prompt is empty, there is no text in text" in said
    assert "row 3: the prompt uses {text}, the row has only label" in said


def test_fields_of_parquet_are_written_so_that_every_reader_of_json_takes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text that a column of bytes holds as text, an image in base64, and what is no number as null: ``datasets`` refuses NaN."""
    run, out, image = train(tmp_path), tmp_path / "out.jsonl", b"\x89PNG\xff"
    columns = {
        "text": ["fine", "dull"],
        "name": ["é".encode(), b""],
        "image": [{"bytes": image, "path": "a.png"}, {"bytes": None, "path": None}],
        "score": [math.nan, 1.5],
        "most": [[math.inf, 2.0], []],
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    command = ["predict", str(run), str(tmp_path / "rows.parquet"), "--out", str(out)]
    assert main(command) == 0
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in out.read_text().splitlines())
    assert [first[name] for name in columns] == [
        "fine", "é", {"bytes": b64encode(image).decode(), "path": "a.png"}, None, [None, 2.0]
    ]  # fmt: skip
    assert [second[name] for name in columns] == ["dull", "", {"bytes": None, "path": None}, 1.5, []]
    read = datasets.load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert read["name"] == ["é", ""]
    whole = out.read_text()
    out.write_text(whole.splitlines(keepends=True)[0])
    assert main(command) == 0
    assert out.read_text() == whole, "continued"
    capsys.readouterr()


def test_a_field_in_the_way_of_a_prediction_is_named_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Predictions of one run as rows of another: theirs would be lost. A row that cannot be used leaves no file, either."""
    run, rows, out = train(tmp_path), tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    for row, message in (
        ({"text": "fine", "prediction": "bad"}, "rows.jsonl, row 1: the field prediction is where"),
        ({"text": "fine", "weights": 3}, "rows.jsonl, row 1: the field weights is where"),
        ({"body": "fine"}, "rows.jsonl, row 1: the prompt uses {text}, the row has only body"),
        ({}, "rows.jsonl, row 1: the prompt uses {text}, the row has none"),
    ):
        rows.write_text(json.dumps(row) + "\n")
        assert main(["predict", str(run), str(rows), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()


def test_rows_that_are_not_there_are_said_to_be_missing_from_this_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a command's own paths it was said that they are relative to a configuration file."""
    run = train(tmp_path)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["predict", str(run), "none.jsonl", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == f"none.jsonl: there is no such file in {tmp_path}"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_that_has_no_such_letters_gets_escapes(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, rows = completion(tmp_path, "lora"), tmp_path / "rows.jsonl"
    texts = ["fine é", "dull 日本"]
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding))
    assert main(["predict", str(run), str(rows), "--max-tokens", "2"]) == 0
    monkeypatch.setattr("twinpass.use.trained.TrainedModel.texts", lambda *given: iter(["a 日本"]))
    assert main(["generate", str(run), "--prompt", "a"]) == 0
    sys.stdout.flush()
    *lines, written = printed.getvalue().decode(encoding).splitlines()
    assert [json.loads(line)["text"] for line in lines] == texts
    assert written == r"a \u65e5\u672c"


def test_all_rows_that_cannot_be_answered_are_named_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before a model is loaded, what needs none to be seen; then their length; whether options are chosen or a text is written."""
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    texts = ["fine", None, "a " * 70, "dull", 3.5, *["  "] * 20]
    for run in (train(tmp_path / "choice", "activated"), completion(tmp_path / "text", "lora")):
        rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        capsys.readouterr()
        assert main(["predict", str(run), str(rows), "--out", str(out), "--json"]) == 2
        first, *lines, more, last = json.loads(capsys.readouterr().out)["error"].splitlines()
        assert first == "21 of 25 rows cannot be used:"
        assert lines[0].startswith(f"  - {rows}, row 2: the prompt uses {{text}}, which is null")
        assert [line.split(": ")[0] for line in lines[1:]] == [f"  - {rows}, row {6 + i}" for i in range(19)]
        assert (more, last) == ("  - and 1 more", "mend them, or leave them out")
        rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("fine", "a " * 70, "a " * 80)))
        assert main(["predict", str(run), str(rows), "--out", str(out), "--json"]) == 2
        first, *lines, _ = json.loads(capsys.readouterr().out)["error"].splitlines()
        assert (first, len(lines)) == ("2 of 3 rows cannot be used:", 2)
        assert lines[0].startswith(f"  - {rows}, row 2: 7")
        assert all("the model's window" in line for line in lines)
        assert not out.exists()


@pytest.mark.parametrize(
    "held", ['[{"text": "fine"}]', '{"text": "fine"}', "notes", '{"text": "fine", "weights": "other']
)
def test_a_file_whose_only_line_does_not_end_is_no_half_written_prediction(
    held: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as the rows themselves, as ``json.dump`` leaves them: it was emptied, and written over."""
    run, rows, out = train(tmp_path), tmp_path / "rows.json", tmp_path / "out.jsonl"
    rows.write_text('[{"text": "fine"}]')
    out.write_text(held)
    capsys.readouterr()
    assert main(["predict", str(run), str(rows), "--out", str(out), "--json"]) == 2
    assert "line 1: it is not the prediction for" in json.loads(capsys.readouterr().out)["error"]
    assert out.read_text() == held
    for end in (1, 30, -1):
        out.unlink()
        assert main(["predict", str(run), str(rows), "--out", str(out)]) == 0
        whole = out.read_text()
        out.write_text(whole[:end])
        assert main(["predict", str(run), str(rows), "--out", str(out)]) == 0
        assert out.read_text() == whole


def test_what_is_no_file_is_written_to_and_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reading /dev/full takes all memory, and a pipe waits for ever."""
    run, rows = train(tmp_path), tmp_path / "eval.jsonl"
    capsys.readouterr()
    command = ["predict", str(run), str(rows), "--json", "--out"]
    assert main([*command, "/dev/null"]) == 0
    assert json.loads(capsys.readouterr().out)["continued_from"] == 0
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    assert main([*command, str(pipe)]) == 0
    reader.join()
    assert [json.loads(line)["text"] for line in read[0].splitlines()] == [row["text"] for row in tiny.rows(6)]
    capsys.readouterr()
    assert main([*command, "/dev/full"]) == 1
    assert "No space left on device" in json.loads(capsys.readouterr().out)["error"]
    assert main([*command, str(tmp_path)]) == 1
    assert f"{tmp_path} cannot be written: Is a directory" in json.loads(capsys.readouterr().out)["error"]
