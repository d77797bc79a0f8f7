"""The real model, SmolLM2-135M: adapters that PEFT loads, lanes in float32, a chain of exact moves, what is reused.

The fast tier takes its lowest layers: weights, tokens and head are real, and nothing here depends on their number.
"""

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import deviation
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.core import BASE, Lane, Probe, Request, Score, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.load import load
from twinpass.model.trainable import Activated, Full, Layers, Lora, Pattern
from twinpass.objective.choice import Choice
from twinpass.report.fidelity import Fidelity
from twinpass.settings import ComputeDtype
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.example import Example
from twinpass.task.sources.read import read_rows

DATA = Path(__file__).parents[2] / "examples/data/reviews-train.jsonl"
SIGNS = [Lane(Probe(3), 1, 2**-10), Lane(Probe(3), -1, 2**-10)]
TERMS = [Term(k, 0.01) for k in range(3)]
CHOICE = Choice()


@pytest.fixture(scope="module", params=[3, pytest.param(30, marks=pytest.mark.full)])
def loaded(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = load("smollm2")
    lowest: Any = model
    del lowest.model.layers[request.param :]
    lowest.config.num_hidden_layers = request.param
    return model, tokenizer


@pytest.fixture(scope="module")
def model(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> PreTrainedModel:
    return loaded[0]


@pytest.fixture(scope="module")
def examples(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> list[Example]:
    template = ChoiceTemplate(
        prompt="Review: {text}\n", suffix="Sentiment:", options=(" terrible", " great"), labels=("negative", "positive")
    )
    return template.encode(read_rows(DATA, 4), loaded[1])


def depth(model: Any) -> int:
    return len(model.model.layers)


def plain(model: Any, requests: list[Request]) -> list[Score]:
    """Each sequence on its own, by the model's own forward."""
    scores = []
    for request in requests:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([request.inputs]), use_cache=False).logits[0]
        logprobs = torch.log_softmax(logits[len(request.prompt) - 1 :], -1)
        scores.append(np.asarray(logprobs[range(len(request.completion)), request.completion].double()))
    return scores


def same_bits(model: PreTrainedModel, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def whole(examples: list[Example]) -> list[Request]:
    """What the objective asks for, with the log-probabilities themselves."""
    return [replace(request, relative=False) for request in CHOICE.requests(examples)]


def test_both_signs_at_once_equal_weights_really_moved(model: PreTrainedModel, examples: list[Example]) -> None:
    requests, before = whole(examples), deepcopy(model.state_dict())
    engine = TorchEngine(model, Full())
    scores = engine.score(requests, [*SIGNS, BASE]).values
    relative = engine.score(CHOICE.requests(examples), [*SIGNS, BASE]).values
    assert same_bits(model, before)
    for lane, values, differences in zip([*SIGNS, BASE], scores, relative, strict=True):
        moved = deepcopy(model)
        if lane.probe is not None:
            TorchEngine(moved, Full()).update([Term(lane.probe.seed, lane.scale)])
        expected = plain(moved, requests)
        assert deviation(values, expected) < 1e-3
        for own in (values, differences):
            assert abs(CHOICE.loss(examples, own) - CHOICE.loss(examples, expected)) < 1e-5
        assert deviation(differences, values) > 1


@pytest.mark.parametrize("kind", [Lora, Activated])
def test_peft_loads_adapters_to_the_same_scores(
    kind: type[Lora], model: PreTrainedModel, examples: list[Example], tmp_path: Path
) -> None:
    invocation = examples[0].prompt[examples[0].suffix_start :]
    engine = TorchEngine(model, kind(8, 16.0), invocation=invocation)
    requests = whole(examples)
    before = engine.score(requests, [BASE]).values[0]
    engine.update(TERMS)
    trained = engine.score(requests, [BASE]).values[0]
    assert deviation(trained, before) > 0.1
    engine.save(tmp_path)
    loaded = PeftModel.from_pretrained(deepcopy(model), str(tmp_path / "adapter")).eval()
    assert deviation(trained, plain(loaded, requests)) < 1e-4


def test_in_place_moves_come_back_to_the_bit(model: PreTrainedModel, examples: list[Example]) -> None:
    own = deepcopy(model)
    engine = TorchEngine(own, Pattern(rf"layers\.(0|{depth(own) - 1})\.|norm"), perturbation="inplace")
    engine.settle()
    before = deepcopy(own.state_dict())
    for _ in range(3):
        engine.score(CHOICE.requests(examples[:1]), SIGNS)
    engine.settle()
    assert same_bits(own, before)


def test_every_epoch_after_the_first_reuses_the_prompts(model: PreTrainedModel, examples: list[Example]) -> None:
    requests = CHOICE.requests(examples)
    engine = TorchEngine(model, Activated(8, 16.0))
    works = [engine.score(requests, SIGNS).work for _ in range(3)]
    suffix = len(examples[0].prompt) - examples[0].suffix_start
    assert [work.computed for work in works[1:]] == [2 * depth(model) * suffix * len(examples)] * 2
    assert all(later.hit_rate > 0.9 for later in works[1:])
    assert works[0].hit_rate < works[1].hit_rate


def test_layers_below_the_trained_ones_run_once(model: PreTrainedModel, examples: list[Example]) -> None:
    requests = whole(examples)
    own = deepcopy(model)
    above = depth(own) // 3
    below = depth(own) - above
    engine = TorchEngine(own, Layers(below, below + above))
    first, later = (engine.score(requests, SIGNS) for _ in range(2))
    rows = later.work.computed // (2 * above)
    assert (first.work.computed, first.work.reused["invariant"]) == ((below + 2 * above) * rows, below * rows)
    assert later.work.reused["invariant"] == 2 * below * rows
    assert all(deviation(a, b) < 1e-4 for a, b in pairwise([first.values[0], later.values[0]]))
    engine.update([Term(3, SIGNS[0].scale)])
    assert deviation(engine.score(requests, [BASE]).values[0], plain(engine.model, requests)) < 1e-3


@pytest.mark.full
def test_products_in_bfloat16_keep_g_at_a_small_eps(model: PreTrainedModel, examples: list[Example]) -> None:
    """Where a bfloat16 model's g is noise alone: its error at this eps is above 1."""
    probes = [Probe(seed) for seed in range(6)]
    lanes = [Lane(probe, sign, 1e-4) for probe in probes for sign in (1, -1)]
    gradients = []
    dtypes: list[ComputeDtype] = ["float32", "bfloat16"]
    for dtype in dtypes:
        engine = TorchEngine(model, Full(), compute_dtype=dtype)
        losses = [CHOICE.loss(examples, values) for values in engine.score(CHOICE.requests(examples), lanes).values]
        gradients.append([(plus - minus) / 2e-4 for plus, minus in zip(losses[0::2], losses[1::2], strict=True)])
    assert Fidelity.of(gradients[1], gradients[0]).relative_error < 0.1
