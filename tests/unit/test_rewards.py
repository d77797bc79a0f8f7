"""Reward functions in the forms that people have, what becomes of bad ones, shaping, and the losses of a population."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from architectures import build

import twinpass
from twinpass.core import BASE, Continuation, Lane, Probe, Sampling, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import DataError, RewardError
from twinpass.estimate.spsa import Spsa
from twinpass.model.trainable import Lora
from twinpass.objective.goal import At
from twinpass.objective.population import Population, extremes
from twinpass.objective.reward_functions import RewardFunction, load_reward
from twinpass.objective.rewards import Completions, OnError, Rewards, metrics, shaped
from twinpass.task.example import Asked
from twinpass.task.reward import RewardTemplate
from twinpass.task.rows import Row

NAN = math.nan
TEXTS = ("good", "a bad one", "fine")
BATCH = Completions(
    ("p", "q", "p"),
    TEXTS,
    ((1,), (2, 3, 4), (5,)),
    {"answer": ["good", "good", "fine"], "ground_truth": ["x", "bad", "fine"], "target": [1, 2, 3]},
    ("a.jsonl, row 1", "a.jsonl, row 2", "a.jsonl, row 3"),
)


def rewards(*functions: Any, **options: Any) -> Rewards:
    return Rewards([RewardFunction.of(function) for function in functions], **options)


def trl(prompts: Any, completions: Any, answer: Any, **kwargs: Any) -> list[float | None]:
    assert list(prompts) == ["p", "q", "p"]
    assert kwargs.keys() == {"completion_ids", "trainer_state", "log_extra", "log_metric", "ground_truth", "target"}
    kwargs["log_metric"]("seen", len(completions))
    return [None if text == "fine" else float(text == right) for text, right in zip(completions, answer, strict=True)]


def trl_short(completions: list[str]) -> list[float]:
    return [len(text) for text in completions]


async def trl_async(completions: list[str], completion_ids: list[list[int]], **kwargs: Any) -> list[int]:
    return [len(ids) for ids in completion_ids]


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    return float(ground_truth in solution_str)


def compute_score_dict(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None
) -> dict[str, float]:
    return {"score": 2.0 * (ground_truth in solution_str), "acc": 1.0}


def reward_function(output: str, target: int, fast: bool = False) -> tuple[str, float]:
    return ("label", len(output) * float(target))


def rubric(prompt: str, completion: str, answer: str, state: dict[str, Any]) -> float:
    return float(completion == answer) + 10 * (prompt == "q")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (trl, [1, 0, NAN]),
        (trl_short, [4, 9, 4]),
        (trl_async, [1, 3, 1]),
        (compute_score, [0, 1, 1]),
        (compute_score_dict, [0, 2, 2]),
        (reward_function, [4, 18, 12]),
        (rubric, [1, 10, 1]),
    ],
)
def test_functions_of_every_form(function: Any, expected: list[float]) -> None:
    found = rewards(function)(BATCH)
    assert np.array_equal(found.total, expected, equal_nan=True)
    assert found.logged == ({"seen": 3.0} if function is trl else {})


def test_conversations_give_messages_and_texts_to_who_takes_texts() -> None:
    batch = Completions(
        (["m"],), ([{"role": "assistant", "content": "bad"}],), ((1,),), {"ground_truth": ["bad"]}, ("row 1",)
    )

    def content(completions: Any, **kwargs: Any) -> list[float]:
        return [len(messages[0]["content"]) for messages in completions]

    assert rewards(content)(batch).total == [3]
    assert rewards(compute_score)(batch).total == [1]


def test_weights_and_what_does_not_apply() -> None:
    found = rewards(trl, trl_short, weights=[10.0, 0.5])(BATCH)
    assert found.total.tolist() == [12.0, 4.5, 2.0]
    assert found.each["trl_short"].tolist() == [4, 9, 4]
    with pytest.raises(RewardError, match="1 weights for 2 rewards"):
        rewards(trl, trl_short, weights=[1.0])


def raises(completions: list[str], **kwargs: Any) -> list[float]:
    return [1.0 if text != "a bad one" else 1 / 0 for text in completions]


def nan(completions: list[str], **kwargs: Any) -> list[float]:
    return [NAN if text == "a bad one" else 1.0 for text in completions]


def word(completions: list[str], **kwargs: Any) -> list[Any]:
    return ["3" if text == "a bad one" else np.float32(1) for text in completions]


def hangs(completions: list[str], **kwargs: Any) -> list[float]:
    if "a bad one" in completions:
        time.sleep(2)
    return [1.0] * len(completions)


BAD = [
    (raises, "raised ZeroDivisionError: division by zero"),
    (nan, "returned nan; a finite number or None was expected"),
    (word, "returned '3'; a finite number or None was expected"),
    (hangs, "did not return within 0.2 s"),
]


@pytest.mark.parametrize(("function", "message"), BAD)
def test_a_bad_reward_is_named_with_row_and_text(function: Any, message: str) -> None:
    with pytest.raises(
        RewardError, match=f"^reward '{function.__name__}' {message}; a.jsonl, row 2, text 'a bad one'$"
    ):
        rewards(function, timeout=0.2)(BATCH)


@pytest.mark.parametrize(("function", "message"), BAD)
def test_or_skipped_and_counted(function: Any, message: str) -> None:
    found = rewards(function, trl_short, timeout=0.2, on_error="skip")(BATCH)
    assert found.total.tolist() == [5, 9, 5]
    assert (found.failed, message != "") == ({function.__name__: 1}, True)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_the_wrong_length_is_an_error(on_error: OnError) -> None:
    def wrong(completions: list[str], **kwargs: Any) -> list[float]:
        return [1.0] if len(completions) == 1 else [1.0, 2.0]

    with pytest.raises(RewardError, match="returned 2 values; a list of 3 was expected, one a completion"):
        rewards(wrong, on_error=on_error)(BATCH)


def test_functions_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def length(completions, **kwargs):\n    return [len(text) for text in completions]\n"
    )
    found = load_reward("mine.py:length", tmp_path)
    assert found.name == "length"
    assert Rewards([found])(BATCH).total.tolist() == [4, 9, 4]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("none.py:length", "there is no file .*none.py"),
        ("mine.py:width", "mine.py has no function 'width'; there are length, taker"),
        ("mine.py", "expected file.py:function or package.module:function"),
        ("mine.py:taker", r"takes \(a, b\): expected 'completions'"),
        ("broken.py:length", "broken.py cannot be imported: ZeroDivisionError"),
        ("no_such_package.rewards:length", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_functions_that_are_not_there(tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "mine.py").write_text("def length(completions): ...\ndef taker(a, b): ...\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(RewardError, match=message):
        load_reward(spec, tmp_path)


def test_columns_that_rows_lack() -> None:
    with pytest.raises(RewardError, match="reward 'trl' asks for answer, and the rows have only question, text"):
        RewardFunction.of(trl).require(["question", "text"])
    RewardFunction.of(compute_score).require(["ground_truth"])
    with pytest.raises(RewardError, match="asks for ground_truth"):
        RewardFunction.of(compute_score).require([])


VALUES = np.array([[[1.0, 3.0], [10.0, NAN]], [[5.0, 7.0], [20.0, 30.0]], [[NAN, NAN], [NAN, NAN]]])
"""Three lanes, two prompts, two samples."""


def test_shaping() -> None:
    assert shaped(VALUES, "raw") == pytest.approx([14 / 3, 15.5, 76 / 7])
    assert shaped(VALUES, "rank").tolist() == [-0.5, 0.5, 0.0]
    known = VALUES[np.isfinite(VALUES)]
    z = (VALUES - known.mean()) / known.std()
    assert shaped(VALUES, "zscore") == pytest.approx([z[0][np.isfinite(z[0])].mean(), z[1].mean(), 0.0], abs=1e-12)
    first, second = np.array([1, 3, 5, 7.0]), np.array([10, 20, 30.0])
    a, b = (first - 4) / first.std(), (second - 20) / second.std()
    assert shaped(VALUES, "prompt") == pytest.approx(
        [(a[0] + a[1] + b[0]) / 3, (a[2] + a[3] + b[1] + b[2]) / 4, 0.0], abs=1e-12
    )


@pytest.mark.parametrize("shaping", ["raw", "zscore", "rank", "prompt"])
def test_equal_rewards_say_nothing(shaping: Any) -> None:
    assert len(set(shaped(np.full((3, 2, 2), 4.0), shaping).tolist())) == 1
    assert np.isfinite(shaped(np.full((3, 2, 2), NAN), shaping)).all()


def test_metrics_have_trls_names() -> None:
    found = rewards(trl, trl_short)(BATCH)
    texts = [Continuation((1,) * n, np.zeros(n), "", n > 1) for n in (1, 2, 6)]
    values = metrics(found, found.total.reshape(1, 3, 1), texts)
    assert values["reward"] == pytest.approx(np.mean([5, 9, 4]))
    assert (values["rewards/trl/mean"], values["rewards/trl/std"]) == (0.5, 0.5)
    assert values["completions/mean_length"] == 3.0
    assert values["completions/clipped_ratio"] == pytest.approx(1 / 3)
    assert (values["frac_reward_zero_std"], values["seen"]) == (1.0, 3.0)


def decode(tokens: tuple[int, ...]) -> str:
    return " ".join(map(str, tokens))


def low(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(np.mean([int(token) < 48 for token in text.split()])) for text in completions]


def population(**options: Any) -> Population:
    return Population(rewards(low), Sampling(8, temperature=1.0), decode, **options)


@pytest.mark.full
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(twinpass, "load_model", lambda path: (tiny.model(), tiny.tokenizer()))
    file = tmp_path / "page.py"
    file.write_text(code)
    exec(compile(code, str(file), "exec"), {})
    before, after = map(float, capsys.readouterr().out.split())
    assert -1.0 < before <= after <= 0.0


ELSEWHERE = """
import time

def quick(completions, log_metric, log_extra, **kwargs):
    log_metric("calls", 1)
    log_extra("length", [len(text) for text in completions])
    return [float(len(text)) for text in completions]

def bad(completions, **kwargs):
    raise KeyError(completions[0])

def slow(completions, **kwargs):
    time.sleep(60 * any("bad" in text for text in completions))
    return [0.0] * len(completions)
"""


@pytest.mark.full
def test_workers_answer_as_one_would(tmp_path: Path) -> None:
    """Parts of a batch run in other processes; what raises or hangs there is named, and ended."""
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    functions = [load_reward(f"elsewhere.py:{name}", tmp_path) for name in ("quick", "bad", "slow")]
    several = Rewards(functions, workers=2, timeout=4.0, on_error="skip")
    try:
        found = several(BATCH)
    finally:
        several.close()
    assert found.each["quick"].tolist() == [4, 9, 4]
    assert found.extra == {"length": [4, 9, 4]}
    assert np.isnan(found.each["bad"]).all()
    assert found.failed == {"bad": 3, "slow": 1}
    assert found.each["slow"][[0, 2]].tolist() == [0, 0]
    with pytest.raises(RewardError, match=r"reward 'low' cannot be sent to another process .* or set workers = 0"):
        Rewards([RewardFunction.of(lambda completions: 0, "low")], workers=1)


def test_two_functions_of_one_name() -> None:
    with pytest.raises(RewardError, match="two rewards are called 'low'"):
        rewards(low, low)


def test_prompts_that_are_messages() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}Review:{% endif %}"
    )
    messages = [{"role": "user", "content": "a fine film"}]
    (asked,) = RewardTemplate().encode([Row({"prompt": messages, "answer": 3}, "row 1")], tokenizer)
    assert isinstance(asked, Asked)
    assert (asked.shown, dict(asked.columns), asked.options) == (messages, {"answer": 3}, ())
    assert asked.prompt == tuple(tokenizer("a fine film Review:")["input_ids"])
    assert asked.suffix_start == len(asked.prompt) - 1
    seen = []

    def see(prompts: Any, completions: Any, answer: list[int]) -> list[float]:
        seen.append((prompts[0], completions[0], answer))
        return [1.0]

    engine = TorchEngine(build("llama"), Lora(4, 8.0))
    Population(rewards(see), Sampling(2), decode).write(engine, [asked], [BASE])
    assert seen[0][0] == messages
    assert seen[0][1][0].keys() == {"role", "content"}
    assert seen[0][2] == [3]
    with pytest.raises(DataError, match="messages, which take no"):
        RewardTemplate(suffix=" A:").encode([Row({"prompt": messages}, "row 1")], tokenizer)


ASKED = [Asked((5, 6, 7), shown="five"), Asked((9, 8), shown="nine"), Asked((40, 2, 3, 4), shown="forty")]


def test_a_populations_losses() -> None:
    engine = TorchEngine(build("llama"), Lora(4, 8.0))
    lanes = [BASE, Lane(Probe(7), 1, 0.5), Lane(Probe(7), -1, 0.5)]
    found = population(samples=4).write(engine, ASKED, lanes, At(11))
    assert found.rewards.shape == (3, 3, 4)
    for lane, own in enumerate(found.texts):
        expected = [[low([text.text])[0] for text in texts] for texts in own]
        assert found.rewards[lane].tolist() == expected
        assert found.losses[lane] == pytest.approx(-np.mean(expected))
    assert len(set(found.losses)) == 3
    assert population(samples=4).write(engine, ASKED, lanes[::-1], At(11)).losses == found.losses[::-1]
    assert population(samples=4).write(engine, ASKED, lanes, At(12)).losses != found.losses
    best = extremes(found.records(ASKED))["best"]
    assert [record["reward"] for record in best] == sorted(found.rewards[0].ravel(), reverse=True)[:3]


def test_a_missing_column_is_told_before_anything_is_written() -> None:
    asked = Population(rewards(compute_score), Sampling(8), decode)
    with pytest.raises(RewardError, match="asks for ground_truth"):
        asked.write(None, ASKED, [BASE])  # type: ignore[arg-type]
    with pytest.raises(RewardError, match="greedy texts are all the same"):
        Population(rewards(low), Sampling(8), decode, samples=2)


def test_a_population_learns() -> None:
    """Tokens of the lower half of the vocabulary become more likely, a little, by 12 steps of 8 probes."""
    engine = TorchEngine(build("llama"), Lora(4, 8.0))
    estimator, judge, exam = Spsa(probes=8), population(samples=4, shaping="zscore"), population(samples=32)
    before = exam.write(engine, ASKED, [BASE], At(99)).metrics["reward"]
    for step in range(12):
        probes = [Probe(100 * step + k) for k in range(8)]
        found = judge.write(engine, ASKED, estimator.lanes(probes, 0.2), At(step))
        estimate = estimator.estimate(probes, 0.2, found.losses)
        engine.update([Term(p.seed, -0.05 * g / 8) for p, g in zip(probes, estimate.gradients, strict=True)])
    assert exam.write(engine, ASKED, [BASE], At(99)).metrics["reward"] > before + 0.02
