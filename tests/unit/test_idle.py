"""No setting is parsed and ignored: one that would change nothing beside others is refused, with what to do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
from configurations import Values, debiased, minimal, problems_of

import twinpass
from twinpass.config.load import parse
from twinpass.errors import ConfigError

Sections = dict[str, dict[str, Any]]

LORA: Sections = {"trainable": {"kind": "lora"}}
WHOLE: Sections = {**LORA, "estimator": {"kind": "backprop"}, "optimizer": {"lr": None, "steps": None}}
FED_BACK: Sections = {**WHOLE, "estimator": {"kind": "feedback"}}
JVP: Sections = {"estimator": {"kind": "jvp"}}
NEWTON: Sections = {"estimator": {"kind": "gauss_newton"}}
SPSA: Sections = {"estimator": {"kind": "spsa"}}
LINE: Sections = {"estimator": {"kind": "line"}}
ADAPTIVE: Sections = {"epsilon": {"kind": "adaptive", "target": 0.9}}
COSINE = {"kind": "cosine", "start": 1e-2, "end": 1e-3, "steps": 5}
JOINED = {"kind": "join", "schedules": [{}, {"kind": "adaptive", "target": 0.9}], "boundaries": [5]}
REWARD: Sections = {
    "task": {"options": None, "eval": None, "rewards": ["rewards.py:short"]},
    **LORA,
    "estimator": {"kind": "spsa"},
}
NAMED: Sections = {"task": {"name": "sst2", "prompt": None, "options": None}}

MOVES_NOTHING = "moves no weights to compare losses"
REFUSED: list[tuple[Sections, Sections, str]] = [
    # eps, where nothing is perturbed
    (WHOLE, {"epsilon": {"value": 1e-3}}, f"[epsilon]: no effect, as 'backprop' {MOVES_NOTHING}"),
    (WHOLE, {"epsilon": COSINE}, f"[epsilon]: no effect, as 'backprop' {MOVES_NOTHING}"),
    (WHOLE, {"epsilon": {"kind": "adaptive"}}, "[epsilon] kind: 'backprop' takes no differences"),
    (FED_BACK, {"epsilon": {"value": 1e-3}}, f"[epsilon]: no effect, as 'feedback' {MOVES_NOTHING}"),
    (JVP, {"epsilon": {"value": 1e-2}}, f"[epsilon]: no effect, as 'jvp' {MOVES_NOTHING}"),
    (JVP, {"epsilon": JOINED}, "[epsilon] kind: 'jvp' takes no differences"),
    # what directions are drawn from, where there are none
    (WHOLE, {"estimator": {"probes": 2}}, "[estimator] probes: an exact gradient is taken along no direction"),
    (WHOLE, {"engine": {"noise": "gaussian"}}, "[engine] noise: an exact gradient is taken along no direction"),
    (FED_BACK, {"engine": {"perturbation": "inplace"}}, "[engine] perturbation: an exact gradient"),
    # safeguards that have nothing to look at
    (NEWTON, {"optimizer": {"clip": 2.0}}, "[optimizer] clip: no effect, as this estimator says itself how far"),
    (NEWTON, {"optimizer": {"clip_window": 50}}, "[optimizer] clip_window: no effect, as this estimator says itself"),
    (LINE, {"optimizer": {"clip": 0.0}}, "[optimizer] clip: no effect, as this estimator says itself how far"),
    (
        SPSA,
        {"optimizer": {"clip": 0.0, "clip_window": 50}},
        "[optimizer] clip_window: no effect, as clip = 0 clips nothing",
    ),
    (
        {},
        {"optimizer": {"guard_rollbacks": 0, "guard_lr": 0.1}},
        "[optimizer] guard_lr: no effect, as guard_rollbacks = 0 takes nothing back",
    ),
    (LORA, {"run": {"patience": 3, "eval_every": 0}}, "[run] patience: no effect, as eval_every = 0"),
    # reflections, where nothing is reflected
    ({}, ADAPTIVE, "[epsilon] target: no effect, as [reuse] policy reflects nothing"),
    ({}, {"epsilon": JOINED}, "[epsilon] target: no effect, as [reuse] policy reflects nothing"),
    (debiased("frozen"), ADAPTIVE, "[epsilon] target: no effect, as [reuse] policy reflects nothing"),
    # how many rows are held out, where that is said otherwise
    ({}, {"task": {"eval_fraction": 0.2}}, "[task] eval_fraction: no effect, as eval names the rows"),
    (
        {},
        {"task": {"eval": None, "eval_rows": 5, "eval_fraction": 0.2}},
        "[task] eval_fraction: no effect, as eval_rows",
    ),
    (NAMED, {"task": {"eval_fraction": 0.2}}, "[task] eval_fraction: no effect, as eval names the rows"),
    # how texts are drawn, where they are not, and where none are written
    (
        REWARD,
        {"generation": {"temperature": 0.0, "top_p": 0.5}},
        "[generation] temperature: 0 takes the likeliest token",
    ),
    (REWARD, {"generation": {"temperature": 0.0, "top_k": 5}}, "[generation] temperature: 0 takes the likeliest token"),
    ({}, {"generation": {"max_tokens": 5}}, "[generation]: this task writes nothing while it is trained"),
    (REWARD, {"objective": {"kind": "completion"}}, "[objective] kind: this task goes by rewards alone"),
    (REWARD, {"task": {"beta": 0.1}}, "[task] beta: lanes are held against each other"),
    (REWARD, {"task": {"steps_per_generation": 4}}, "[task] steps_per_generation: lanes are held against each other"),
    (
        {**REWARD, **WHOLE},
        {"task": {"shaping": "rank"}},
        "[task] shaping: 'rank' is of lanes",
    ),
    # keys of engines that have their own
    ({"engine": {"kind": "sglang"}, **LORA}, {"engine": {"timeout": 5.0}}, "[engine] timeout: only a server at a url"),
    (
        {"engine": {"kind": "sglang", "url": "http://localhost:1"}, **LORA},
        {"reuse": {"page_size": 16}},
        "[reuse] budget and page_size: the server at [engine] url has its own",
    ),
    (
        {"engine": {"kind": "sglang", "url": "http://localhost:1"}, **LORA},
        {"engine": {"device": "cpu"}},
        "[engine] url:",
    ),
    # turns of layers, where there are none
    (
        {"trainable": {"kind": "layers", "first": 0, "last": 2}},
        {"trainable": {"every": 5}},
        "[trainable] every: 5 steps",
    ),
    # settings of what a policy wraps
    (
        debiased("frozen"),
        {"reuse": {"inner": {"policy": "frozen", "check": 0.5}}},
        "[reuse] inner: check has no effect there",
    ),
]


def together(one: Sections, other: Mapping[str, Values]) -> Values:
    return minimal(**{name: one.get(name, {}) | other.get(name, {}) for name in {**one, **other}})


@pytest.mark.parametrize(("beside", "setting", "message"), REFUSED, ids=str)
def test_a_setting_without_effect_is_refused_and_says_what_to_do(
    beside: Sections, setting: Sections, message: str
) -> None:
    found = [problem for problem in problems_of(together(beside, setting)) if problem.startswith(message)]
    assert len(found) == 1, problems_of(together(beside, setting))
    assert any(word in found[0] for word in ("leave", "set ", "name ")), found


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_without_it_the_configuration_is_sound(number: int) -> None:
    """So that nothing else was refused above. The keys that a row takes out are let stand."""
    beside, setting, _ = REFUSED[number]
    removed = {name: {key: value for key, value in keys.items() if value is None} for name, keys in setting.items()}
    parse(together(beside, {name: keys for name, keys in removed.items() if keys}), "it.toml", Path("/nowhere"))


@pytest.mark.parametrize(
    "sections",
    [
        {**WHOLE, "epsilon": {"value": 1e-2}},
        {**JVP, "epsilon": {"kind": "constant", "value": 1e-3}},
        {**JVP, "optimizer": {"kind": "sign"}, "epsilon": COSINE},
        {**NEWTON, "optimizer": {"clip": 4.0, "clip_window": 100}},
        {**ADAPTIVE, "reuse": {"policy": "reflected"}, "estimator": {"probes": 2}},
        {"epsilon": {"kind": "adaptive", "target": 0.8}},
        {"task": {"eval_fraction": 0.1, "eval_rows": 3}},
        {
            **REWARD,
            "generation": {"temperature": 0.0, "top_p": 1.0, "top_k": 0},
            "task": {**REWARD["task"], "samples": 1},
        },
    ],
    ids=str,
)
def test_defaults_may_be_said_again_and_what_acts_is_taken(sections: Sections) -> None:
    parse(minimal(**sections), "it.toml", Path("/nowhere"))


@pytest.mark.parametrize(
    "sections",
    [
        {"task": {"suffix": " :"}, "trainable": tiny.ACTIVATED, "estimator": {"kind": "backprop"}},
        {"trainable": tiny.INFORMED, "run": {"eval_every": 0}},
        {"trainable": {"kind": "lora"}},
        {"trainable": {"kind": "full"}},
        {},
    ],
    ids=str,
)
def test_what_a_run_folder_says_is_read_again(tmp_path: Path, sections: Sections) -> None:
    """It holds what was filled in, eps beside an exact gradient and patience included."""
    config = parse(minimal(**sections), "it.toml", tmp_path)
    assert parse(config.values, "run/config.toml", tmp_path).values == config.values


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"estimator": twinpass.Backprop(), "epsilon": twinpass.ConstantEpsilon(value=1e-3)},
            f"[epsilon]: no effect, as 'backprop' {MOVES_NOTHING}",
        ),
        ({"patience": 3, "eval_every": 0}, "[run] patience: no effect"),
        ({"eval_fraction": 0.5, "eval_rows": 2}, "[task] eval_fraction: no effect"),
        ({"eval_fraction": 0.5, "held_out": tiny.rows(2)}, "eval_fraction: no effect, as held_out"),
    ],
    ids=str,
)
def test_finetune_refuses_them_too(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        twinpass.finetune(
            tiny.model(),
            tiny.tokenizer(),
            tiny.rows(4),
            prompt="{text}",
            options=[" bad", " good"],
            trainable=twinpass.Lora(rank=2),
            out=tmp_path / "run",
            **said,
        )
    (problem,) = caught.value.problems
    assert problem.startswith(message)
    assert not (tmp_path / "run").exists()
