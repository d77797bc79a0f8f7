"""Files and packages that reward functions are in: run once, as Python has them for a script, and beside what they import."""

import pickle
import sys
from pathlib import Path

import pytest
from rewarding import BATCH

from twinpass.errors import RewardError
from twinpass.objective.reward_functions import load_reward
from twinpass.objective.rewards import Rewards

LENGTHS = [len(text) for text in BATCH.completions]

FILE = """
from __future__ import annotations
from dataclasses import dataclass
from functools import partial
from helping import scale

@dataclass
class Seen:
    texts: int = 0

SEEN = Seen()

def first(completions, **kwargs):
    SEEN.texts += len(completions)
    return [scale(len(text)) for text in completions]

def second(completions, **kwargs):
    from helping import later
    return [later(SEEN.texts) for text in completions]

third = partial(first)
"""


def test_a_file_is_a_module_as_python_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs once, its functions share what it has made, it knows what lies beside it, and pickle knows it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "judging.py").write_text(FILE)
    (tmp_path / "helping.py").write_text("def scale(n):\n    return n\n\nlater = scale\n")
    judge = Rewards([load_reward(f"judging.py:{name}", tmp_path) for name in ("first", "second", "third")])
    found = judge(BATCH)
    assert found.each["first"].tolist() == LENGTHS
    assert found.each["second"].tolist() == [3, 3, 3]
    module = sys.modules["judging"]
    assert pickle.loads(pickle.dumps(module.first)) is module.first
    (tmp_path / "judging.py").write_text(FILE.replace("later(SEEN.texts)", "-1"))
    assert Rewards([load_reward("judging.py:second", tmp_path)])(BATCH).total.tolist() == [-1, -1, -1]
    other = tmp_path / "other"
    other.mkdir()
    (other / "judging.py").write_text("def first(completions):\n    return [0 for _ in completions]\n")
    assert Rewards([load_reward("judging.py:first", other)])(BATCH).total.tolist() == [0, 0, 0]
    assert sys.modules["judging"].second(["a"]) == [-1]


def test_a_package_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    (tmp_path / "my_lib").mkdir()
    (tmp_path / "my_lib" / "scores.py").write_text("def first(completions):\n    return [7 for _ in completions]\n")
    monkeypatch.chdir(tmp_path)
    assert Rewards([load_reward("my_lib.scores:first")])(BATCH).total.tolist() == [7, 7, 7]


def test_what_lies_beside_a_file_is_found_first_and_also_when_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "elsewhere"), *sys.path])
    (tmp_path / "elsewhere" / "kept_apart.py").write_text("SCALE = 100\n")
    (tmp_path / "kept_apart.py").write_text("SCALE = 2\n")
    (tmp_path / "imported_later.py").write_text("ADDED = 1\n")
    (tmp_path / "lazily.py").write_text(
        "from kept_apart import SCALE\n\ndef score(completions):\n"
        "    from imported_later import ADDED\n    return [SCALE * len(text) + ADDED for text in completions]\n"
    )
    judge = Rewards([load_reward("lazily.py:score", tmp_path)])
    assert judge(BATCH).total.tolist() == [2 * length + 1 for length in LENGTHS]


def test_a_file_that_breaks_when_it_changes_leaves_its_module_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "rewritten.py"
    file.write_text("1 / 0\n")
    with pytest.raises(RewardError, match="ZeroDivisionError"):
        load_reward("rewritten.py:score", tmp_path)
    assert "rewritten" not in sys.modules
    file.write_text("def score(completions):\n    return [1 for _ in completions]\n")
    load_reward("rewritten.py:score", tmp_path)
    module = sys.modules["rewritten"]
    file.write_text("1 / 0\n")
    with pytest.raises(RewardError, match="ZeroDivisionError"):
        load_reward("rewritten.py:score", tmp_path)
    assert sys.modules["rewritten"] is module
