"""Where only differences between options matter, the head computes those options' logits alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import LANES, TARGETS, build, engine_of
from reusing import packed, trainables
from torch import nn

from twinpass.core import Lane, Request, Scores, Tokens
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.trainable import Full, Lora, Pattern, Trainable
from twinpass.objective.choice import Choice
from twinpass.reuse import auto
from twinpass.task.example import Example

OPTIONS = ((3,), (90,), (17,))
PROMPTS: tuple[tuple[Tokens, int], ...] = (((5, 6, 7, 8), 2), ((5, 6, 7, 8, 10), 3), (tuple(range(20, 42)), 20))


def requests(relative: bool) -> list[Request]:
    return [Request(prompt, option, start, relative) for prompt, start in PROMPTS for option in OPTIONS]


def differences(scores: Scores) -> list[np.ndarray[Any, Any]]:
    """Of each lane's options from the first, by prompt."""
    lanes = [np.concatenate(values).reshape(len(PROMPTS), len(OPTIONS)) for values in scores.values]
    return [values - values[:, :1] for values in lanes]


@contextmanager
def widths(model: nn.Module) -> Iterator[set[int]]:
    """How many logits the head returned."""
    seen: set[int] = set()
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_hook(lambda module, args, output: seen.add(output.shape[-1]))
    try:
        yield seen
    finally:
        handle.remove()


def both(engine: TorchEngine, lanes: Sequence[Lane]) -> tuple[Scores, Scores, set[int]]:
    """Log-probabilities, relative scores, and the logits that the latter took."""
    exact = engine.score(requests(relative=False), lanes)
    with widths(engine.model) as seen:
        relative = engine.score(requests(relative=True), lanes)
    return exact, relative, seen


@pytest.mark.table
@pytest.mark.parametrize("kind", ["full", "lora", "layers", "activated"])
@packed
def test_differences_are_those_of_log_probabilities(name: str, kind: str) -> None:
    engine = engine_of(name, build(name), trainables(name)[kind][0])
    exact, relative, seen = both(engine, LANES)
    for a, b in zip(differences(exact), differences(relative), strict=True):
        assert np.abs(a).max() > 1e-3
        assert np.abs(a - b).max() < 1e-9
    adapted = "lora_A" in str(list(engine.parameters)) and "lm_head" in TARGETS[name]
    assert seen == {engine.model.config.get_text_config().vocab_size if adapted else len(OPTIONS)}


@pytest.mark.parametrize("trainable", [Full(), Pattern("q_proj")], ids=["perturbed", "as it is"])
def test_a_head_with_a_bias(trainable: Trainable) -> None:
    model = build("llama-untied")
    width, vocabulary = model.config.hidden_size, model.config.vocab_size
    model.lm_head = nn.Linear(width, vocabulary, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)
        model.lm_head.bias.copy_(torch.randn(vocabulary))
    exact, relative, seen = both(TorchEngine(model, trainable), LANES)
    assert seen == {len(OPTIONS)}
    for a, b in zip(differences(exact), differences(relative), strict=True):
        assert np.abs(a - b).max() < 1e-9


def test_in_place_too() -> None:
    lanes = [replace(lane, eps=2**-5) for lane in LANES[:2]]
    exact, relative, seen = both(TorchEngine(build("llama"), Pattern("proj|lm_head"), perturbation="inplace"), lanes)
    assert seen == {len(OPTIONS)}
    for a, b in zip(differences(exact), differences(relative), strict=True):
        assert np.abs(a - b).max() < 1e-9


@pytest.mark.parametrize("token", [0, 3, 90])
def test_a_model_that_looks_at_the_place_of_a_logit_computes_them_all(token: int) -> None:
    """As those do that forbid a token by its place among all of them."""
    model = build("llama")
    original = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        output["logits"] = output.logits.index_fill(-1, torch.tensor(min(token, output.logits.shape[-1] - 1)), -100.0)
        return output

    model.forward = forward
    exact, relative, seen = both(TorchEngine(model, Pattern("proj")), LANES)
    assert seen == {model.config.vocab_size}
    for a, b in zip(exact.values, relative.values, strict=True):
        assert np.array_equal(np.concatenate(a), np.concatenate(b))


def test_an_adapter_on_the_head_needs_all_of_it() -> None:
    exact, relative, seen = both(TorchEngine(build("llama-untied"), Lora(2, 4.0, ("lm_head",))), LANES)
    assert seen == {build("llama-untied").config.vocab_size}
    assert all(np.array_equal(a, b) for a, b in zip(exact.values[0], relative.values[0], strict=True))


@pytest.mark.parametrize("slots", [60, 4000], ids=["in several groups", "in one"])
@pytest.mark.parametrize(
    "other", [Request((5, 6), (7,)), Request((5, 6), (7, 8, 9))], ids=["log-probability", "several tokens"]
)
def test_one_request_for_log_probabilities_makes_all_of_them_exact(slots: int, other: Request) -> None:
    """Options of a question may come in different groups, so that all or none are relative."""
    size = TorchEngine(build("llama"), Pattern("layers.1")).cache_slot_bytes
    engine = TorchEngine(build("llama"), Pattern("layers.1"), reuse=auto.Auto(budget=slots * size))
    exact = engine.score([*requests(relative=False), other], LANES)
    mixed = engine.score([*requests(relative=True), other], LANES)
    for a, b in zip(exact.values, mixed.values, strict=True):
        assert np.array_equal(np.concatenate(a), np.concatenate(b))


def test_many_options_are_read_from_all_logits() -> None:
    engine = TorchEngine(build("llama"), Pattern("proj"))
    vocabulary = engine.model.config.vocab_size
    many = [Request((5, 6, 7), (token,), relative=True) for token in range(vocabulary // 4)]
    with widths(engine.model) as seen:
        scores = engine.score(many, LANES[:2])
    assert seen == {vocabulary}
    assert torch.tensor(np.concatenate(scores.values[0])).exp().sum() < 1


@pytest.mark.parametrize(("options", "relative"), [(OPTIONS, True), (((3,), (90, 4)), False)])
def test_choice_asks_for_differences_where_they_are_enough(options: tuple[Tokens, ...], relative: bool) -> None:
    example = Example(prompt=(5, 6), options=options, label=0, suffix_start=1)
    assert [request.relative for request in Choice().requests([example])] == [relative] * len(options)
