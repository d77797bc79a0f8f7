"""What people have from TRL's trainers goes into a run as it is: datasets, conversations, and their way to name functions."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from datasets import Dataset
from reward_runs import config

import twinpass
from twinpass.cli.main import main
from twinpass.cli.train import LEARNED_NOTHING
from twinpass.config.compose import build
from twinpass.config.load import load_config
from twinpass.errors import ConfigError, RewardError
from twinpass.objective.generation import Generation
from twinpass.objective.population import Population
from twinpass.report.metrics import read_metrics

CHAT = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}Review:{% endif %}"
WORDS = ("fine", "dull", "great", "bad")


def tune(out: Path, rows: Any, rewards: Any, **more: Any) -> dict[str, Any]:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CHAT
    return twinpass.finetune(
        tiny.model(), tokenizer, rows, rewards=rewards, samples=2, steps_per_generation=1, out=out,
        optimizer=twinpass.AdamW(lr=1e-3, steps=2, batch_size=2), generation=Generation(max_tokens=4), **more,
    )  # fmt: skip


def test_conversations_of_several_tasks(tmp_path: Path) -> None:
    """Functions that apply to some rows each, and ask for columns that only those have."""
    rows = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": f"a {word} film"}], "task": kind, "answer": answer}
            for word, kind, answer in zip(
                WORDS, ("maths", "words", "maths", "words"), (None, "b", None, "d"), strict=True
            )
        ]
    )
    seen: list[Any] = []

    def maths(prompts: Any, completions: Any, task: list[str], **kwargs: Any) -> list[float | None]:
        seen.extend(zip(prompts, completions, task, strict=True))
        return [
            float(len(own[0]["content"])) if kind == "maths" else None
            for own, kind in zip(completions, task, strict=True)
        ]

    async def words(
        completions: Any, task: list[str], answer: list[str], log_extra: Any, **kwargs: Any
    ) -> list[float | None]:
        log_extra("answer", list(answer))
        return [
            float(right in own[0]["content"]) if right else None for own, right in zip(completions, answer, strict=True)
        ]

    summary = tune(tmp_path / "run", rows, [maths, words], weights=[0.5, 2.0])
    assert (summary["steps"], summary["metric_name"]) == (2, "reward")
    prompt, completion, _ = seen[0]
    assert (prompt[0]["role"], completion[0].keys()) == ("user", {"role", "content"})
    samples = json.loads((tmp_path / "run" / "samples" / "step-0.json").read_text())
    assert "answer" in samples["best"][0]


def test_columns_that_only_some_rows_have(tmp_path: Path) -> None:
    """They are None elsewhere, in every batch, as in a dataset."""
    rows = [{"prompt": f"a {word} film", **({"answer": word} if word == "dull" else {})} for word in WORDS]
    seen: list[list[str | None]] = []

    def right(completions: list[str], **kwargs: Any) -> list[float | None]:
        seen.append(kwargs["answer"])
        return [float(len(text)) for text in completions]

    tune(tmp_path / "run", rows[:2], right, held_out=rows[2:])
    assert {answer for batch in seen for answer in batch} == {None, "dull"}
    assert any(set(batch) == {None} for batch in seen)


def test_one_function_and_its_name_in_trl(tmp_path: Path) -> None:
    rows = [{"prompt": f"a {word} film"} for word in WORDS]
    with pytest.raises(ConfigError, match=r"reward_funcs: there is no such argument; it belongs to rewards=\[brief\]"):
        twinpass.finetune(tiny.model(), tiny.tokenizer(), rows, out=tmp_path / "run", reward_funcs=[len])
    path = config(tmp_path, task={"rewards": "rewards.py:short", "weights": []})
    goal = build(load_config(path)).plan.objective
    assert isinstance(goal, Population)
    assert [each.name for each in goal.rewards.functions] == ["short"]
    with pytest.raises(ConfigError, match=r"reward_funcs: no such key .did you mean 'rewards'"):
        load_config(config(tmp_path, task={"reward_funcs": ["rewards.py:short"]}))


def test_where_all_texts_are_skipped_the_fault_is_told(tmp_path: Path) -> None:
    def bad(completions: list[str], **kwargs: Any) -> list[float]:
        raise ValueError("mine")

    rows = [{"prompt": f"a {word} film"} for word in WORDS]
    with pytest.raises(RewardError, match=r"no reward applies .*\(the first that was skipped: .* ValueError: mine; "):
        tune(tmp_path / "run", rows, bad, on_reward_error="skip")


JUDGES = """
import signal

def timed(completions, **kwargs):
    signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGALRM))
    return [float(len(text)) for text in completions]
"""


def test_the_command_calls_functions_in_its_main_thread(tmp_path: Path) -> None:
    path = config(tmp_path, task={"rewards": ["judges.py:timed"], "weights": []}, optimizer={"steps": 1})
    (tmp_path / "judges.py").write_text(JUDGES)
    assert main(["train", str(path), "--json"]) in (0, LEARNED_NOTHING)


def test_lambdas_and_others_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """As a factory's closures are, all of which have its inner function's name."""

    def per_word(worth: float) -> Any:
        def reward(completions: list[str], **kwargs: Any) -> list[float]:
            return [worth * len(text.split()) for text in completions]

        return reward

    short, none = (
        (lambda completions, **kwargs: [-float(len(text)) for text in completions]),
        lambda completions, **kwargs: [0.0] * len(completions),
    )
    rows = [{"prompt": f"a {word} film"} for word in WORDS]
    found = tune(tmp_path / "run", rows, [short, per_word(1.0), none, per_word(3.0)])
    step = next(row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["event"] == "step")
    names = ("<lambda>", "reward", "<lambda>_2", "reward_2")
    assert {name for name in step if name.startswith("rewards/")} == {
        f"rewards/{n}/{of}" for n in names for of in ("mean", "std")
    }
    assert step["rewards/reward_2/mean"] == pytest.approx(3 * step["rewards/reward/mean"])
    assert found["steps"] == 2
    with pytest.raises(RewardError, match="reward 'reward' is there twice; name it once, with a weight"):
        tune(tmp_path / "other", rows, [once := per_word(1.0), once])


def test_functions_of_two_files_may_have_one_name(tmp_path: Path) -> None:
    for name, worth in (("mine", 1), ("yours", 2)):
        (tmp_path / f"{name}.py").write_text(
            f"def worth(completions, **kwargs):\n    return [{worth}.0] * len(completions)\n"
        )
    task: Any = load_config(config(tmp_path, task={"rewards": ["mine.py:worth", "yours.py:worth"], "weights": []})).task
    assert [(function.name, function.call(prompts=["a"], completions=["b"])) for function in task.functions] == [
        ("worth", [1.0]),
        ("worth_2", [2.0]),
    ]
