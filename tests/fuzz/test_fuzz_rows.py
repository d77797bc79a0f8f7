"""Rows, labels, datasets, hashes and rewards of any kind: what is learned is what was written, or the row is named; nothing else is raised."""

import datetime
import decimal
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import tiny
from conversing import CHATML, chatting
from fuzzing import damaged, each

from twinpass.config.encode import encode
from twinpass.config.given import items
from twinpass.config.tasks import AutoTask, ChoiceTask, CompletionTask, TaskSettings
from twinpass.errors import DataError, TwinpassError
from twinpass.model.trainable import Lora
from twinpass.objective.reward_functions import RewardFunction, load_reward
from twinpass.objective.rewards import Completions, Rewards, advantages_of
from twinpass.report.checksums import NAME, add_checksums
from twinpass.task.chat import ChatTemplate
from twinpass.task.labels import option_of
from twinpass.task.rows import Category, Row
from twinpass.task.sources.read import read, sound
from twinpass.use.weights import require_as_written

TEXTS = [
    "a fine film",
    "dull story",
    "",
    " ",
    "None",
    "nan",
    "{text}",
    "{{ text }}",
    "<end>",
    "\n",
    "ä\x00",
    "\ud83d",
    "1",
    "1.0",
    "true",
]
CELLS: list[Any] = [
    *TEXTS,
    *(None, True, False, 0, 1, -1, 2**70, 0.5, 1.0, -0.0, math.nan, math.inf, 1e308, 10**400),
    *(np.int8(1), np.float32(0.5), np.bool_(True), np.str_("fine"), np.array([1]), np.datetime64("NaT"), pd.NA, pd.NaT),
    *([], ["a"], [None], {}, {"a": None}, [{"role": "user"}], (1,), b"a", datetime.date(2026, 11, 30)),
    *(decimal.Decimal("1.5"), Category(1, "good"), Category(0, ""), object()),
]
NO_TEXT = ("None", "nan", "NaN", "NaT", "<NA>", "[", "object at", "Decimal(")


@cache
def model() -> Any:
    found = tiny.model()
    found.resize_token_embeddings(len(chatting()))
    return found


TASKS: dict[str, Callable[[], TaskSettings]] = {
    "options": lambda: ChoiceTask(prompt="{text}\n", suffix="Sentiment:", options=(" bad", " good"), on_error="skip"),
    "jinja": lambda: ChoiceTask(
        prompt="{{ text | lower }}{{ ' ' ~ text }}\n", options=(" bad", " good"), syntax="jinja", on_error="skip"
    ),
    "text": lambda: CompletionTask(prompt="Review: {text}", completion=" {label}", on_error="skip"),
    "auto": lambda: AutoTask(on_error="skip"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("frame", [False, True], ids=["dictionaries", "frames"])
def test_rows_of_python(*, frame: bool, tally: Counter[str]) -> None:
    """No value's name becomes text: what a prompt says, the row said."""
    tokenizer = chatting()
    for chance in each(0.04, 7, tally):
        names = chance.sample(["text", "label", "prompt", "completion", "instruction", "input", "output", "my text"], 4)
        rows: Any = [
            {name: chance.choice(CELLS) for name in {*names, "text", "label"} if chance.random() < 0.9}
            for _ in range(3)
        ]
        texts = " ".join(str(value) for row in rows for value in row.values() if isinstance(value, str))
        task = TASKS[chance.choice(list(TASKS))]()
        try:
            given = pd.DataFrame(_held(rows), dtype=object) if frame else rows
            train, held_out = items(task, given, [])
            found = encode(task, train, held_out, Lora(), model(), tokenizer)
            template: Any = found.template
            for item in train:
                if isinstance(item, Row) and hasattr(template, "prompt_of"):
                    try:
                        said = template.prompt_of(item)
                    except DataError:
                        continue
                    assert not any(name in said and name not in texts for name in NO_TEXT), (said, item)
        except TwinpassError:
            tally["refused"] += 1


def _held(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without half a character, which pandas takes in no column."""
    return [
        {name: "" if isinstance(value, str) and value == "\ud83d" else value for name, value in row.items()}
        for row in rows
    ]


MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "great"},
    {"role": "user", "content": "a film"},
    {"role": "assistant", "content": "fine"},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": " story"}]},
    {"role": "assistant", "content": "dull"},
]
JSON = (str, int, float, list, dict, type(None))
VALUES: list[Any] = [
    *(value for value in CELLS if type(value) in JSON or isinstance(value, Category | bool)),
    "user",
    "assistant",
    "system",
    "tool",
    "human",
    "gpt",
    [{"type": "text", "text": "good"}],
]
KEYS = ["role", "content", "from", "value", "weight", "tool_calls", "function_call", "reasoning_content", "name"]


def test_conversations(tally: Counter[str]) -> None:
    """Every answer is a turn of the assistant's, and what comes before it stands before it."""
    tokenizer = chatting(CHATML)
    for chance in each(0.1, 8, tally):
        messages: Any = [dict(message) for message in MESSAGES]
        for _ in range(chance.choice([1, 1, 2, 4])):
            at = chance.randrange(len(messages) + 1)
            match chance.randrange(4):
                case 0:
                    messages.insert(at, chance.choice([*messages, *VALUES[-12:]]))
                case 1:
                    del messages[at : at + 1]
                case 2 if messages and isinstance(messages[at - 1], dict):
                    messages[at - 1] = {**messages[at - 1], chance.choice(KEYS): chance.choice(VALUES)}
                case _ if messages and isinstance(messages[at - 1], dict):
                    messages[at - 1].pop(chance.choice(KEYS), None)
                case _:
                    continue
        row = Row(
            {"messages": messages, **({"tools": chance.choice(VALUES)} if chance.random() < 0.1 else {})}, "row 1"
        )
        try:
            found = list(ChatTemplate().examples(row, tokenizer))
        except TwinpassError:
            tally["refused"] += 1
            continue
        said = [_said(message) for message in messages]
        turns = [i for i, (role, _) in enumerate(said) if role == "assistant" and _counts(messages[i])]
        assert len(found) == len(turns)
        for example, i in zip(found, turns, strict=True):
            assert list(example.options[0]) == _ids(tokenizer, f"{said[i][1]} <end>")
            before = " ".join(f"<im> {role} {text} <end>" for role, text in said[:i])
            assert list(example.prompt) == _ids(tokenizer, f"<s> {before} <im> assistant"), (messages, i)


def _said(message: Mapping[str, Any]) -> tuple[str, str]:
    """Who says what, of a message that was taken."""
    if "role" in message:
        role, content = message["role"], message.get("content")
    else:
        role, content = message["from"], message["value"]
        role = {"human": "user", "gpt": "assistant"}.get(role, role)
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    return str(role), content.text if isinstance(content, Category) else str(content)


def _counts(message: Mapping[str, Any]) -> bool:
    weight = message.get("weight")
    return weight is None or bool(weight)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


NAMES = [
    "1",
    "0",
    "-1",
    "2",
    "10",
    "1.0",
    "yes",
    "no",
    "true",
    "false",
    "True",
    "good",
    "bad",
    " good",
    "",
    "entailment",
]


def test_labels(tally: Counter[str]) -> None:
    """One option is meant, or none; an option's own text means it, in whatever type a number is written."""
    for chance in each(0.1, 9, tally):
        count = chance.randrange(2, 5)
        names = chance.sample(NAMES, count) if chance.random() < 0.5 else []
        options = [f" {name}" for name in chance.sample(NAMES, count)]
        value = chance.choice([*CELLS, *NAMES])
        found = option_of(value, names, options)
        tally["refused"] += found is None
        assert found is None or 0 <= found < count
        if isinstance(value, str) and value in names:
            assert found == names.index(value)
        if names and isinstance(value, int) and not isinstance(value, bool | Category) and str(value) in names:
            assert found is not None
            assert float(names[found]) == value


@pytest.mark.filterwarnings("ignore")
def test_dataset_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Counter[str]) -> None:
    """A folder that ``save_to_disk`` wrote, of which a file is damaged or gone: its rows, or a sentence."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    one = datasets.Dataset.from_list([{"text": text, "label": i % 2} for i, text in enumerate(["fine", "dull"] * 3)])
    datasets.DatasetDict({"train": one, "test": one.select([0])}).save_to_disk(str(tmp_path / "sound"))
    texts = sorted(path.relative_to(tmp_path / "sound") for path in (tmp_path / "sound").rglob("*.json"))
    for chance in each(0.02, 10, tally):
        folder = Path(shutil.copytree(tmp_path / "sound", tmp_path / "odd", dirs_exist_ok=True))
        file = folder / chance.choice(texts)
        if chance.random() < 0.1:
            file.unlink()
        else:
            file.write_bytes(damaged(file.read_bytes(), chance))
        try:
            rows = sound(read(str(folder), chance.choice(["train", "eval", "rows"])))
        except TwinpassError:
            tally["refused"] += 1
            continue
        assert all(isinstance(row.fields, dict) for row in rows)
    assert tally["refused"]


def test_hashes_of_an_adapter(tmp_path: Path, tally: Counter[str]) -> None:
    """A file that is another one than was written is never used, whatever happens to the hashes: unless these say so, or are gone."""
    folder, rebuilding = tmp_path / "adapter", "twinpass replay"
    folder.mkdir()
    whole = {"adapter_config.json": b'{"r": 2}', "adapter_model.safetensors": bytes(range(256)) * 2}
    for name, data in whole.items():
        (folder / name).write_bytes(data)
    add_checksums(folder)
    whole[NAME] = (folder / NAME).read_bytes()
    require_as_written(folder, rebuilding)
    for chance in each(0.1, 11, tally):
        name = chance.choice(list(whole))
        (folder / name).write_bytes(changed := damaged(whole[name], chance))
        try:
            require_as_written(folder, rebuilding)
        except TwinpassError:
            tally["refused"] += 1
        else:
            assert changed == whole[name] or (name == NAME and _names(changed) <= _names(whole[NAME]))
        (folder / name).write_bytes(whole[name])


def _names(sums: bytes) -> set[bytes]:
    return set(sums.splitlines())


REWARD = b"""
def short(completions, **columns):
    return [-float(len(text)) for text in completions]
"""
BATCH = Completions(["a", "b"], ["fine film", "dull"], [(1, 2), (3,)], {"text": ["x", None]}, ["row 1", "row 2"])


@pytest.mark.filterwarnings("ignore")
def test_reward_files(tmp_path: Path, tally: Counter[str]) -> None:
    """A file of rewards that is damaged: a function that gives numbers, or a sentence."""
    for i, chance in enumerate(each(0.04, 12, tally)):
        path = tmp_path / f"r{i}.py"
        path.write_bytes(damaged(REWARD, chance))
        try:
            found = Rewards([load_reward(f"{path}:short")])(BATCH)
        except TwinpassError:
            tally["refused"] += 1
        else:
            assert len(found.total) == 2
        path.unlink()
    assert tally["refused"]


def test_what_rewards_return(tally: Counter[str]) -> None:
    """Finite numbers and None are rewards; their advantages are finite, whatever their size."""
    for chance in each(0.1, 13, tally):
        values: Any = [
            chance.choice([*CELLS, 1e-320, 1e200, -1e308, 3]) for _ in range(chance.choice([2, 2, 2, 2, 1, 3]))
        ]
        if chance.random() < 0.1:
            values = chance.choice([*CELLS, np.array([1.0, 2.0]), (1, 2), iter([1, 2])])

        def reward(completions: Any, given: Any = values, **columns: Any) -> Any:
            return given

        try:
            found = Rewards([RewardFunction.of(reward)])(BATCH)
        except TwinpassError:
            tally["refused"] += 1
            continue
        assert len(found.total) == 2
        assert not np.isinf(found.total).any()
        assert np.isfinite(advantages_of(found.total.reshape(1, 2))).all()
