"""Shaping of rewards, what is told of them, and the losses of a population."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from architectures import build
from pages import snippets
from rewarding import BATCH, NAN, compute_score, rewards, trl, trl_short

import twinpass
from twinpass.core import BASE, Continuation, Lane, Probe, Sampling, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import DataError, RewardError
from twinpass.estimate.spsa import Spsa
from twinpass.model.trainable import Lora
from twinpass.objective.goal import At
from twinpass.objective.population import Population, extremes
from twinpass.objective.rewards import metrics, shaped
from twinpass.task.example import Asked
from twinpass.task.reward import RewardTemplate
from twinpass.task.rows import Row

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
    assert values["frac_reward_none"] == 0.0, "so that the mean over blocks of rows is over all of them"


def test_texts_that_no_function_applies_to_are_counted() -> None:
    some, texts = iter([1.0, None, None]), [Continuation((1,), np.zeros(1), "", True)] * 3
    found = rewards(lambda completions, **kwargs: [next(some) for _ in completions])(BATCH)
    values = metrics(found, found.total.reshape(1, 3, 1), texts)
    assert values["reward"] == 1.0
    assert values["frac_reward_none"] == pytest.approx(2 / 3)


def decode(tokens: tuple[int, ...]) -> str:
    return " ".join(map(str, tokens))


def low(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(np.mean([int(token) < 48 for token in text.split()])) for text in completions]


def population(**options: Any) -> Population:
    return Population(rewards(low), Sampling(8, temperature=1.0), decode, **options)


@pytest.mark.full
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    functions, code = snippets("docs/rewards.md", "python")
    assert functions.partition("\n")[2].strip() in code, "test_snippets trains with the file"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(twinpass, "load_model", lambda path: (tiny.model(), tiny.tokenizer()))
    file = tmp_path / "page.py"
    file.write_text(code)
    exec(compile(code, str(file), "exec"), {})
    before, after = map(float, capsys.readouterr().out.split())
    assert -1.0 < before <= after <= 0.0


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
