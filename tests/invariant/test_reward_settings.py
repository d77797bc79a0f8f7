"""What need not be said of a run whose losses are rewards, and what is refused before anything is written."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from reward_runs import config, prompts

import twinpass
from twinpass.cli.main import main
from twinpass.config.compose import build
from twinpass.config.learner import COMPARED, REWARDED, Learner, chosen
from twinpass.config.load import load_config
from twinpass.config.reward import RewardTask
from twinpass.errors import ConfigError, TwinpassError
from twinpass.train.journal import read

SCHEDULES = [{"kind": "constant", "value": 0.1}, {"kind": "adaptive"}]


def refused(path: Path) -> str:
    with pytest.raises(TwinpassError) as caught:
        build(load_config(path))
    return str(caught.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"task": {"rewards": ["none.py:few"], "weights": []}}, r"there is no file .*none\.py"),
        (
            {"task": {"rewards": ["rewards.py:many"], "weights": []}},
            r"has no function 'many'; there are few, short, fussy, silent",
        ),
        (
            {"task": {"rewards": ["rewards.py:few", "rewards.py:few"]}},
            "reward 'few' is there twice; name it once, with a weight",
        ),
        (
            {"task": {"rewards": ["rewards.py:fussy"], "weights": []}},
            "'fussy' asks for answer, and the rows have only bonus, id",
        ),
        ({"task": {"rewards": [], "weights": []}}, "rewards: is missing"),
        ({"task": {"weights": [1.0]}}, "weights: 1 for 2 rewards"),
        ({"task": {"weights": [0.0, 0.0]}}, "not all of them 0"),
        ({"generation": {"temperature": 0.0}}, "samples: 2 greedy texts are all the same"),
        (
            {"generation": {"max_tokens": 1000}},
            r"3 tokens that may be continued by 1000, but the model's window holds \d+",
        ),
        ({"generation": {"stop": ["\u2603"]}}, "the tokenizer cannot write '\u2603'"),
        ({"generation": {"stop": [""]}}, "a string is empty"),
        ({"generation": {"min_tokens": 1}}, "min_tokens: no such key"),
        ({"task": {"window": 4}}, r"row 1: 3 tokens that may be continued by 6, but the model's window holds 4"),
        ({"task": {"shots": 1}}, "shots: prompts are not solved"),
        ({"estimator": {"kind": "gauss_newton"}}, "rewards have no derivative"),
        (
            {"estimator": {"kind": "backprop", "probes": 1}, "optimizer": {"kind": "adamw"}, "task": {"samples": 1}},
            "'backprop' learns from how texts of one prompt differ",
        ),
        (
            {
                "estimator": {"kind": "backprop", "probes": 1},
                "optimizer": {"kind": "adamw"},
                "task": {"samples": 4, "shaping": "rank"},
            },
            "shaping: 'rank' is of lanes",
        ),
        ({"task": {"beta": 0.1}}, "beta: lanes are held against each other"),
        ({"task": {"steps_per_generation": 2}}, "steps_per_generation: lanes are held against each other"),
        (
            {
                "estimator": {"kind": "backprop", "probes": 1},
                "optimizer": {"kind": "adamw"},
                "trainable": {"kind": "layers", "first": 1, "last": 2},
                "task": {"samples": 4},
            },
            "beta: the weights are trained themselves",
        ),
        ({"reuse": {"policy": "frozen"}, "trainable": {"kind": "full"}}, "texts are written under exact lanes"),
        ({"epsilon": {"kind": "join", "boundaries": [1], "schedules": SCHEDULES}}, 'which "adaptive" goes by'),
        ({"trainable": {"kind": "informed"}}, "rewards know none"),
        ({"objective": {"kind": "completion"}}, "goes by rewards alone"),
        ({"trainable": {"kind": "activated"}, "task": {"prompt": "{prompt} {id}"}}, ""),
    ],
)
def test_what_is_refused_before_anything_is_written(tmp_path: Path, sections: Any, message: str) -> None:
    path = config(tmp_path, **{name: dict(keys) for name, keys in sections.items()})
    if not message:
        assert build(load_config(path)).plan.held_out  # unknown words end all prompts alike
        return
    assert re.search(message, refused(path))
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "calls.txt").exists()


def test_generation_is_for_texts(tmp_path: Path) -> None:
    path = tiny.config(tmp_path, generation={"max_tokens": 3})
    with pytest.raises(ConfigError, match="this task writes nothing while it is trained"):
        load_config(path)


def test_nothing_to_go_by_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, task={"rewards": ["rewards.py:silent"], "weights": []})
    assert main(["train", str(path)]) == 2
    assert "no reward applies to any of the held-out texts" in capsys.readouterr().err


def test_what_need_not_be_said(tmp_path: Path) -> None:
    prompts(tmp_path)
    tiny.save(tmp_path / "model")
    path = tmp_path / "short.toml"
    path.write_text(
        f'[model]\npath = "model"\n[task]\ntrain = "prompts.jsonl"\nrewards = ["rewards.py:few"]\n[run]\nout = "{tmp_path}/run"\n'
        "[generation]\nmax_tokens = 4\n"
    )
    plan = build(load_config(path)).plan
    assert isinstance(plan.estimator, twinpass.Backprop)
    assert (plan.optimizer.steps, plan.optimizer.batch_size, plan.eval_every) == (48, 2, 12)
    assert plan.objective.steps_per_lesson(plan.optimizer.batch_size) == 12
    assert [len(plan.train), len(plan.held_out)] == [2, 1]
    assert main(["train", str(path), "--json", "--set", "optimizer.steps=2", "--set", "run.eval_every=2"]) in (0, 3)
    (first, second) = [line for line in read(tmp_path / "run" / "journal.jsonl").records if line["kind"] == "step"]
    assert (len(first["lesson"]["texts"]), "lesson" in second) == (24 * 16, False)


@pytest.mark.parametrize(
    ("more", "two_sided"), [("temperature = 0.0\n", False), ('[estimator]\nkind = "spsa"\n', True)]
)
def test_greedy_texts_and_directions_compare_lanes(tmp_path: Path, more: str, two_sided: bool) -> None:
    prompts(tmp_path)
    tiny.save(tmp_path / "model")
    path = tmp_path / "short.toml"
    path.write_text(
        f'[model]\npath = "model"\n[task]\ntrain = "prompts.jsonl"\nrewards = ["rewards.py:few"]\n[run]\nout = "{tmp_path}/run"\n[generation]\nmax_tokens = 4\n{more}'
    )
    plan = build(load_config(path)).plan
    assert (plan.estimator.probes, plan.optimizer.batch_size, plan.eval_every) == (8, 8, 20)
    assert plan.estimator.two_sided is two_sided


@pytest.mark.parametrize(("temperature", "found"), [(0, COMPARED), (0.0, COMPARED), (0.5, REWARDED), (1.0, REWARDED)])
def test_only_greedy_texts_need_directions(temperature: float, found: Learner) -> None:
    assert chosen(RewardTask(prompt="{p}"), {"generation": {"temperature": temperature}}) == found


@pytest.mark.parametrize(("suffix", "start"), [("", 2), (" Review: a", 3)])
def test_an_activated_adapter_acts_from_the_last_token_or_the_suffix_on(
    tmp_path: Path, suffix: str, start: int
) -> None:
    path = config(tmp_path, trainable={"kind": "activated"}, task={"suffix": suffix})
    session = build(load_config(path))
    assert {example.suffix_start for example in session.plan.train} == {start}
    assert len(session.invocation) == (2 if suffix else 1)


def test_prompts_that_end_otherwise_name_what_to_do(tmp_path: Path) -> None:
    path = config(tmp_path, trainable={"kind": "activated"}, task={"prompt": "a film {prompt} {id}"})
    rows = [{"prompt": word, "bonus": 1.0, "id": word} for word in ("fine", "dull", "great")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "let task.suffix end all prompts alike" in refused(path)
    assert 'trainable.kind = "lora"' in refused(path)


@pytest.mark.parametrize(
    ("keys", "note"),
    [
        ({}, "the first of every 12 steps writes 384 texts of up to 6 tokens"),
        ({"steps_per_generation": 1, "samples": 4}, "every step writes 8 texts of up to 6 tokens"),
        ({"steps_per_generation": 2, "samples": 4}, "the first of every 2 steps writes 16 texts of up to 6 tokens"),
    ],
)
def test_steps_that_take_longest_are_told(tmp_path: Path, keys: Any, note: str) -> None:
    path = config(
        tmp_path,
        task={"samples": 16, **keys},
        estimator={"kind": "backprop", "probes": 1},
        optimizer={"kind": "adamw", "lr": 1e-3, "steps": 6, "batch_size": 2},
    )
    assert note in build(load_config(path)).notes
    assert not any("texts of up to" in each for each in build(load_config(config(tmp_path))).notes)
