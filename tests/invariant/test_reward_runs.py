"""Runs whose losses are rewards of written texts: from a file and from Python, resumed, replayed and undone without asking again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
from reward_runs import REWARDS, config
from safetensors.torch import load_file
from tiers import some_fast
from trained import by_hugging_face

import twinpass
from twinpass.cli.main import main
from twinpass.errors import DataError
from twinpass.estimate.spsa import Spsa
from twinpass.model.trainable import Lora
from twinpass.objective.generation import Generation
from twinpass.train.journal import Journal, read


def calls(folder: Path) -> list[str]:
    return (folder / "calls.txt").read_text().split("\n")[:-1]


def weights(run: Path) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in load_file(run / "adapter" / "adapter_model.safetensors").items()}


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == kind]


class Stop(Exception):
    """Ends a run in the middle."""


def stop_at(step: int) -> twinpass.Callbacks:
    def told(event: Mapping[str, Any]) -> None:
        if event["step"] == step:
            raise Stop

    return twinpass.Callbacks(on_step=told)


@pytest.mark.plots
def test_a_run_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run = config(tmp_path), tmp_path / "run"
    assert main(["train", str(path), "--json"]) in (0, 3)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["metric_name"], summary["steps"], summary["held_out"]) == ("reward", 6, 3)
    step = events(run, "step")[0]
    names = {
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "completions/mean_length",
        "completions/clipped_ratio",
        "seen",
    }
    assert names | {f"rewards/{name}/{of}" for name in ("few", "short") for of in ("mean", "std")} <= step.keys()
    assert step["reward"] == pytest.approx(step["rewards/few/mean"] + 0.01 * step["rewards/short/mean"])
    assert step["seen"] == 2 * 2 * 2 * 2  # probes, signs, prompts, samples
    evaluation = events(run, "evaluation")[0]
    assert evaluation["metric"] == pytest.approx(evaluation["reward"])
    assert evaluation["completions/mean_length"] <= 6
    samples = json.loads((run / "samples" / "step-0.json").read_text())
    assert [len(samples[kind]) for kind in ("best", "worst")] == [3, 3]
    every = [record["reward"] for kind in ("best", "worst") for record in samples[kind]]  # three prompts, two samples
    assert evaluation["pass_rate"] == pytest.approx(sum(value > 0 for value in every) / 6)
    assert samples["best"][0]["reward"] >= samples["best"][1]["reward"] >= samples["worst"][0]["reward"]
    assert samples["best"][0].keys() == {"prompt", "completion", "reward", "first"}
    assert {plot.name for plot in (run / "plots").iterdir()} == {"reward.png", "gradient.png"}
    assert {"0/6 6", "0/6 16", "5/6 16", "6/6 6"} <= set(calls(tmp_path))
    assert main(["eval", str(run), "--step", "6", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["metric"] == pytest.approx(events(run, "evaluation")[-1]["metric"])
    assert again["metrics"]["rewards/few/mean"] > 0.5
    assert main(["predict", str(run), str(tmp_path / "held.jsonl")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in lines] == [1, 2, 3]
    assert all(isinstance(line["prediction"]["text"], str) for line in lines)
    assert main(["generate", str(run), "--prompt", "a fine film", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "a fine film"
    assert main(["runs", str(tmp_path)]) == 0
    assert f"reward {summary['kept_metric']:.3f}" in capsys.readouterr().out


def low(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    COUNT.append(len(completion_ids))
    return [sum(i < 48 for i in ids) / len(ids) for ids in completion_ids]


COUNT: list[int] = []


def tune(out: Path, tokenizer: Any = None, **more: Any) -> dict[str, Any]:
    rows = [{"prompt": f"a {word} film"} for word in ("fine", "dull", "great", "bad")]
    options: dict[str, Any] = {
        "trainable": Lora(rank=2, alpha=4.0),
        "estimator": Spsa(probes=2),
        "optimizer": twinpass.Sgd(lr=0.1, steps=6, batch_size=2),
        "epsilon": twinpass.ConstantEpsilon(value=0.1),
        "eval_every": 2,
        "samples": 2,
    }
    return twinpass.finetune(
        tiny.model(),
        tokenizer or tiny.tokenizer(),
        rows[:3],
        rows[2:],
        out=out,
        rewards=[low],
        generation=Generation(max_tokens=5),
        **{**options, **more},
    )


KINDS = ("two-sided", "one-sided", "activated", "inplace", "feedback", "backprop", "generations")
SAMPLED: dict[str, Any] = {
    "epsilon": None,
    "optimizer": twinpass.AdamW(lr=0.05, steps=6, batch_size=2, snapshot_every=4),
    "samples": 4,
    "steps_per_generation": 1,
}


@pytest.mark.parametrize("kind", some_fast(KINDS, ("two-sided", "inplace", "generations")))
def test_a_run_resumes_and_replays_without_asking_again(tmp_path: Path, kind: str) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "one-sided": {"estimator": twinpass.OneSided(probes=3)},
        "activated": {"trainable": twinpass.Activated(rank=2, alpha=4.0), "suffix": " Review:"},
        "inplace": {"trainable": twinpass.Pattern("mlp"), "estimator": Spsa(probes=2), "perturbation": "inplace"},
        "feedback": {
            **SAMPLED,
            "estimator": twinpass.Feedback(),
            "trainable": twinpass.Activated(rank=2, alpha=4.0, targets=("o_proj", "down_proj"), first=1),
        },
        "backprop": {**SAMPLED, "estimator": twinpass.Backprop(), "trainable": Lora(rank=2, alpha=4.0, first=1)},
        "generations": {
            **SAMPLED,
            "estimator": twinpass.Backprop(),
            "trainable": Lora(rank=2, alpha=4.0),
            "steps_per_generation": 3,
        },
    }
    more = kinds.get(kind, {})
    written = 6 // more.get("steps_per_generation", 1)
    COUNT.clear()
    whole = tune(tmp_path / "whole", keep="last", **more)
    asked = len(COUNT)
    with pytest.raises(Stop):
        tune(tmp_path / "part", keep="last", callbacks=stop_at(3), **more)
    parted = tune(tmp_path / "part", keep="last", resume=True, **more)
    assert len(COUNT) == 2 * asked == 2 * (written + 4)  # generations, and evaluations of one block
    assert parted["final_metric"] == whole["final_metric"]
    one, two = (read(tmp_path / name / "journal.jsonl").records for name in ("whole", "part"))
    assert one == two
    folder = "model" if kind == "inplace" else "adapter"
    file = "model.safetensors" if kind == "inplace" else "adapter_model.safetensors"
    first, second = ((tmp_path / name / folder / file).read_bytes() for name in ("whole", "part"))
    assert first == second


def test_steps_of_one_generation_learn_from_a_part_of_its_texts_each(tmp_path: Path) -> None:
    """Its first step's line in the journal holds all texts, and what the model as it was would have said of them."""
    tune(tmp_path / "run", **{**SAMPLED, "steps_per_generation": 3}, estimator=twinpass.Backprop(), beta=0.5)
    lines = [line for line in read(tmp_path / "run" / "journal.jsonl").records if line["kind"] == "step"]
    assert [len(line["lesson"]["texts"]) if "lesson" in line else 0 for line in lines] == [24, 0, 0, 24, 0, 0]
    first, second = lines[0]["lesson"], lines[3]["lesson"]
    assert all(map(len, first["reference"]))
    assert first["reference"] != second["reference"]
    assert first["texts"] != second["texts"]
    losses = [line["losses"][0][0] for line in lines]
    assert len(set(losses)) == 6


def test_a_generation_goes_on_where_a_rollback_left_it(tmp_path: Path) -> None:
    """Back in the middle of one, its texts are still those to learn from."""
    guarded = twinpass.AdamW(lr=0.05, steps=6, batch_size=2, snapshot_every=1)
    more = {**SAMPLED, "optimizer": guarded, "estimator": twinpass.Backprop(), "steps_per_generation": 3}
    with pytest.raises(Stop):
        tune(tmp_path / "run", callbacks=stop_at(5), **more)
    journal, contents = Journal.open(tmp_path / "run" / "journal.jsonl")
    journal.append({"kind": "rollback", "to": 2, "lr_scale": 0.5, "discarded": 0, "reason": "asked for"})
    journal.close()
    COUNT.clear()
    tune(tmp_path / "run", resume=True, **more)
    lines = read(tmp_path / "run" / "journal.jsonl").records[len(contents.records) + 1 :]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [2, 3, 4, 5]
    assert ["lesson" in line for line in steps] == [False, True, False, False]


def test_a_finished_run_is_rebuilt_by_its_journal_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run = config(tmp_path, run={"keep": "last"}), tmp_path / "run"
    main(["train", str(path), "--json"])
    before = calls(tmp_path)
    assert main(["replay", str(run), "--step", "6"]) == 0
    assert weights(run / "step-6") == weights(run)
    assert main(["replay", str(run), "--step", "2"]) == 0
    assert weights(run / "step-2") != weights(run)
    assert calls(tmp_path) == before


def test_an_edited_function_is_another_ground(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run = config(tmp_path, optimizer={"steps": 2}), tmp_path / "run"
    main(["train", str(path), "--json"])
    (tmp_path / "rewards.py").write_text(REWARDS + "\n# other\n")
    assert main(["train", "--resume", str(run)]) == 2
    assert "a reward function was changed" in capsys.readouterr().err


@pytest.mark.full
def test_rewards_learn(tmp_path: Path) -> None:
    """Tokens of the lower half of the vocabulary become more likely."""
    summary = tune(
        tmp_path / "run",
        estimator=Spsa(probes=8),
        epsilon=twinpass.ConstantEpsilon(value=0.2),
        optimizer=twinpass.Sgd(lr=0.05, steps=12, batch_size=3, schedule="constant"),
        eval_every=12,
        samples=16,
        keep="last",
    )
    assert summary["final_metric"] > summary["base_metric"]


def test_sparse_rewards_do_not_end_a_run(tmp_path: Path) -> None:
    """Steps whose texts are all rewarded alike have gradients of exactly 0 at a loss of 0; one that tells something comes among them."""
    asked: list[int] = []

    def seldom(completions: list[str], **columns: Any) -> list[float]:
        asked.append(len(completions))
        return [float(i % 2) if len(asked) == 12 else 0.0 for i in range(len(completions))]

    summary = twinpass.finetune(
        tiny.model(), tiny.tokenizer(), [{"prompt": "Review: a fine film"}] * 8, [], rewards=[seldom], beta=0.0, samples=4,
        optimizer=twinpass.AdamW(lr=1e-3, steps=14, batch_size=2), generation=Generation(max_tokens=4, temperature=1.0),
        steps_per_generation=1, out=tmp_path / "run",
    )  # fmt: skip
    assert summary["steps"] == len(asked) == 14
    steps = [record for record in read(tmp_path / "run/journal.jsonl").records if record["kind"] == "step"]
    assert [step["observed"]["norm"] > 0 for step in steps] == [i == 11 for i in range(14)]
    assert [step["losses"][0][0] != 0 for step in steps] == [i == 11 for i in range(14)]


def test_a_prompt_and_its_text_may_fill_the_window_and_no_more(tmp_path: Path) -> None:
    """The last token of a text is read by nothing, so that it needs no place."""
    model, tokenizer = tiny.model(), tiny.tokenizer(*(f"w{i}" for i in range(84)))
    tune(tmp_path / "run", tokenizer)
    trained = twinpass.load(tmp_path / "run", model=model, tokenizer=tokenizer)
    window, most = trained.engine.window or 0, 5
    fits, longer = ({"prompt": "a " * (window - most + more)} for more in (1, 2))
    (text,) = trained.write([fits], trained.sampling(most))
    assert text == by_hugging_face(trained.model, trained.tokenizer, fits["prompt"], most)
    assert len(text.split()) == most
    with pytest.raises(
        DataError, match=f"^rows, row 2: {window - 3} tokens that may be continued by 5, .* holds {window};"
    ):
        trained.write([fits, longer], trained.sampling(most))


def test_whatever_functions_log_is_printed_and_kept_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers of arrays and tensors as numbers, what is none as null, bytes and dates as text."""
    path, run = config(tmp_path, optimizer={"steps": 1, "lr": 0.1, "batch_size": 2}), tmp_path / "run"
    (tmp_path / "rewards.py").write_text(f"{REWARDS}{LOGGING}")
    assert main(["train", str(path), "--set", 'task.rewards=["rewards.py:few", "rewards.py:odd"]', "--json"]) in (0, 3)
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["samples"]
    kept = json.loads((run / "samples/step-0.json").read_text(), parse_constant=pytest.fail)
    expected = {"number": 0.5, "list": [1.5, None], "nothing": None, "raw": "é", "blob": "/w==", "day": "2026-11-30"}
    for record in (printed["best"][0], kept["worst"][0]):
        assert {name: record[name] for name in expected} == expected


def test_what_functions_print_is_no_line_of_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run = config(tmp_path, optimizer={"steps": 1, "lr": 0.1, "batch_size": 2}), tmp_path / "run"
    printing = "def loud(completions, **kwargs):\n    print('heard', len(completions))\n    return [1.0 for _ in completions]\n"
    (tmp_path / "rewards.py").write_text(f"print('imported')\n{REWARDS}{printing}")
    assert main(["train", str(path), "--set", 'task.rewards=["rewards.py:few", "rewards.py:loud"]', "--json"]) in (0, 3)
    trained = capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    evaluated = capsys.readouterr()
    assert [json.loads(line).get("event") for line in trained.out.splitlines()][-1] == "end"
    assert json.loads(evaluated.out)["metric_name"] == "reward"
    assert "imported" in trained.err
    assert all("heard" in said.err for said in (trained, evaluated))


LOGGING = """
import datetime, numpy, torch

def odd(completions, log_extra, **kwargs):
    logged = {"number": numpy.float32(0.5), "list": torch.tensor([1.5, numpy.nan]), "nothing": float("-inf")}
    logged |= {"raw": "é".encode(), "blob": bytes([255]), "day": datetime.date(2026, 11, 30)}
    for name, value in logged.items():
        log_extra(name, [value] * len(completions))
    return [None] * len(completions)
"""
