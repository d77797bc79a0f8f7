"""Held-out rows scored under trained weights, as what can be measured and compared."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from twinpass.core import BASE, Sampling
from twinpass.engine.base import Engine
from twinpass.objective.accuracy import Accuracy
from twinpass.objective.choice import Choice
from twinpass.objective.completion import Completion
from twinpass.objective.expected_accuracy import ExpectedAccuracy
from twinpass.objective.goal import Goal, portions
from twinpass.objective.rewards import Completions, Rewards
from twinpass.report.measures import Choices, ScoredTexts
from twinpass.report.written import WrittenTexts
from twinpass.task.example import Example
from twinpass.use.writing import Writer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER = "answer"
"""The column under which reward functions get the right text of a row."""


def outcomes(
    engine: Engine,
    objective: Goal,
    examples: Sequence[Example],
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Choices | ScoredTexts, float] | None:
    """What the weights as they stand make of each example, and the objective's loss; None for an objective that has no measures but its own."""
    if not isinstance(objective, Choice | Completion | Accuracy | ExpectedAccuracy):
        return None
    options = objective.choice if isinstance(objective, Accuracy | ExpectedAccuracy) else objective
    shares, scores, done, loss = [], [], 0, 0.0
    for part in portions(examples, objective.portion):
        values = engine.score(objective.requests(part), [BASE]).values[0]
        if isinstance(options, Choice):
            shares += [np.exp(logits - np.logaddexp.reduce(logits)) for logits in options.logits(part, values)]
        else:
            scores += list(values)
        loss += len(part) * objective.loss(part, values)
        done += len(part)
        progress(done)
    found = Choices(shares, np.array([example.label for example in examples])) if shares else ScoredTexts(scores)
    return found, loss / done


def written(
    writer: Writer,
    examples: Sequence[Example],
    sampling: Sampling,
    rewards: Rewards | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> WrittenTexts:
    """What the weights write for each example, beside its right text.

    Reward functions are given prompts, texts, and the right ones as the column :data:`ANSWER`.

    Raises:
        TwinpassError: a prompt fills the window, or a function fails or asks for more, which is told before anything is written.
    """
    for function in () if rewards is None else rewards.functions:
        function.require([ANSWER])
    texts = []
    for text in writer.go_on([(example.prompt, example.suffix_start) for example in examples], sampling):
        texts.append(text)
        progress(len(texts))
    right = [_right(example, writer.tokenizer, sampling.stop) for example in examples]
    if rewards is None:
        return WrittenTexts(texts, right)
    batch = Completions(
        [_decoded(writer.tokenizer, example.prompt) for example in examples],
        texts,
        [tuple(writer.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts],
        {ANSWER: right},
        [example.place for example in examples],
    )
    return WrittenTexts(texts, right, rewards(batch).each)


def _right(example: Example, tokenizer: "PreTrainedTokenizerBase", stop: Sequence[str]) -> str:
    text = _decoded(tokenizer, example.options[example.label])
    for end in stop:
        text = text.removesuffix(end)
    return text


def _decoded(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))
