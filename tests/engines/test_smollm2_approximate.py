"""Approximate prefixes on the real model: frozen is wrong at any eps, reflection's error follows eps; bfloat16 is packed."""

import warnings
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from twinpass.analysis.sweep import Bench, Contender, exact_course, run
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.estimate.spsa import Spsa
from twinpass.model.load import load
from twinpass.model.trainable import Full, Pattern
from twinpass.objective.choice import Choice
from twinpass.report.fidelity import Fidelity
from twinpass.reuse.base import Policy
from twinpass.reuse.frozen import Frozen
from twinpass.reuse.reflected import Reflected
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.example import Example
from twinpass.task.sources.read import read_rows

pytestmark = pytest.mark.full

DATA = Path(__file__).parents[2] / "examples/data/reviews-train.jsonl"
EVERY_LAYER = 1e9


def examples(tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Two reviews behind two solved ones."""
    template = ChoiceTemplate(
        prompt="Review: {text}\n", suffix="Sentiment:", options=(" terrible", " great"), labels=("negative", "positive")
    )
    rows = read_rows(DATA, 4)
    return template.with_shots(rows[2:]).encode(rows[:2], tokenizer)


@pytest.fixture(scope="module")
def errors() -> dict[tuple[str, float], float]:
    """Relative errors of g by policy and eps, over four probes of the attention weights."""
    model, tokenizer = load("smollm2")
    bench = Bench(TorchEngine(model, Pattern(pattern="self_attn")), Choice(), examples(tokenizer), seed=1, probes=4)
    policies: dict[str, Policy] = {"frozen": Frozen(), "reflected": Reflected(tolerance=EVERY_LAYER)}
    found = {}
    for eps in (1e-4, 1e-3):
        _, seen = exact_course(bench, Contender("exact", Spsa(probes=4), Frozen()), eps)
        for name, policy in policies.items():
            course = run(bench, Contender(name, Spsa(probes=4), policy), eps, seen)
            found[name, eps] = Fidelity.of(course.gradients, course.exact).relative_error
    return found


def test_reflection_follows_eps(errors: dict[tuple[str, float], float]) -> None:
    low, high = errors["reflected", 1e-4], errors["reflected", 1e-3]
    assert 0 < low < 0.05
    assert 5 < high / low < 20


def test_no_eps_repairs_frozen(errors: dict[tuple[str, float], float]) -> None:
    low, high = errors["frozen", 1e-4], errors["frozen", 1e-3]
    assert low > 0.2
    assert high == pytest.approx(low, rel=0.05)


def test_bfloat16_is_packed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TorchEngine(load("smollm2", "bfloat16")[0], Full()).packs
