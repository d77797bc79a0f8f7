"""A trained model, ready to be asked."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.core import BASE, Prompt, Score, Tokens
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import DataError, ModelError
from twinpass.model.causal import CausalModel, ends
from twinpass.model.trainable import Activated, Lora, Trainable
from twinpass.objective.generation import Generation
from twinpass.objective.goal import blocks
from twinpass.reuse.auto import Auto
from twinpass.task.activation import activation_points
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.example import Example
from twinpass.task.limits import Limits
from twinpass.task.reward import RewardTemplate
from twinpass.task.rows import Row
from twinpass.task.template import TextTemplate
from twinpass.use.greedy import greedy
from twinpass.use.settings import RunSettings, settings_of, weights_of

Rows = Sequence[Row | Mapping[str, Any]]

MAX_TOKENS = 128
"""Of a text, where nothing else is said."""


@dataclass(frozen=True)
class Answer:
    """The most probable of a row's options: its name, its place, and the probabilities of all by name.

    Names are the task's ``labels`` where it has some, or else the options as they stand behind the prompt, without spaces around them.
    """

    answer: str
    index: int
    probabilities: Mapping[str, float]


class TrainedModel:
    """What :func:`twinpass.load` returns.

    Attributes:
        tokenizer: the model's.
        template: how rows become prompts.
        engine: scores under the trained weights.
        weights: the folder of what was trained.
    """

    def __init__(
        self, settings: RunSettings, weights: Path, engine: TorchEngine, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.template = settings.template
        self.tokenizer = tokenizer
        self.engine = engine
        self.weights = weights
        self._settings = settings

    @property
    def chooses(self) -> bool:
        """Whether the task is to choose among options, and not to write."""
        return isinstance(self.template, ChoiceTemplate)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model as transformers or PEFT has it, for use elsewhere; with an adapter it is loaded once more, by PEFT.

        Raises:
            ModelError: PEFT is not installed.
        """
        if not self._settings.trainable.adapter:
            return self.engine.model
        try:
            from peft import PeftModel
        except ImportError as error:
            raise ModelError("an adapter is used elsewhere through PEFT: pip install 'twinpass[peft]'") from error
        base, _ = self._settings.base()
        model: PreTrainedModel = PeftModel.from_pretrained(base, str(self.weights))
        return model

    def predict(self, rows: Rows, progress: Callable[[int], None] = lambda done: None) -> list[Answer]:
        """The most probable option for each row, which need not say what is right.

        Raises:
            DataError: a row cannot be used, or the task has no options.
        """
        return list(self.answers(self.examples(rows), progress))

    def examples(self, rows: Rows) -> list[tuple[Example, tuple[str, ...]]]:
        """Rows as they are scored, and the names of their options.

        Raises:
            DataError: a row cannot be used, or the task has no options.
        """
        template = self.template
        if not isinstance(template, ChoiceTemplate):
            raise DataError("the task has no options to choose from, but texts to write: use generate")
        known = numbered(rows)
        causal = CausalModel(self.engine.model)
        limits = Limits(causal.window, causal.vocabulary)
        examples = [limits.applied(template.question(row, self.tokenizer), self.tokenizer) for row in known]
        if self._settings.trainable.activated:
            examples = activation_points(examples, self.engine.invocation)
        return list(zip(examples, (template.names(row) for row in known), strict=True))

    def prompts(self, rows: Rows) -> list[str]:
        """The texts that rows become for a model to continue, where the task is to write.

        Raises:
            DataError: a row cannot be used.
        """
        if not isinstance(self.template, TextTemplate):
            raise DataError("the task's prompts are no plain texts")
        return [self.template.prompt_of(row) for row in numbered(rows)]

    @property
    def continues(self) -> bool:
        """Whether the task's prompts are continued in any way, and functions say how good that is."""
        return isinstance(self.template, RewardTemplate)

    def write(self, rows: Rows, max_tokens: int, stop: Sequence[str] = ()) -> Iterator[str]:
        """How the model continues each row's prompt, greedily, some rows at a time; for a task that :attr:`continues`.

        Raises:
            DataError: a row cannot be used.
        """
        causal = CausalModel(self.engine.model)
        limits = Limits(causal.window, causal.vocabulary, room=max_tokens - 1)
        sampling = Generation(max_tokens=max_tokens, temperature=0.0, stop=tuple(stop)).sampling(
            ends(self.engine.model, self.tokenizer)
        )
        for part in blocks(numbered(rows)):
            examples = self.template.encode(part, self.tokenizer, limits)
            if self._settings.trainable.activated:
                examples = activation_points(examples, self.engine.invocation)
            prompts = [Prompt(example.prompt, example.suffix_start) for example in examples]
            for text in self.engine.generate(prompts, [BASE], sampling, self._decode).values[0]:
                yield text.text

    def _decode(self, tokens: Tokens) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def room(self, max_tokens: int | None, stop: Sequence[str]) -> tuple[int, Sequence[str]]:
        """The most tokens of a text, and strings that end it: those given, or else those that it was trained with."""
        known = self._settings.generation
        if max_tokens is None:
            max_tokens = MAX_TOKENS if known is None else known.max_tokens
        return max_tokens, stop or (() if known is None else known.stop)

    def answers(
        self,
        examples: Sequence[tuple[Example, tuple[str, ...]]],
        progress: Callable[[int], None] = lambda done: None,
    ) -> Iterator[Answer]:
        """Answers as they are found, some rows at a time."""
        done = 0
        for part in blocks(examples):
            known = [example for example, _ in part]
            scores = self.score(known)
            for logits, (_, names) in zip(self._settings.choice.logits(known, scores), part, strict=True):
                shares = np.exp(logits - np.logaddexp.reduce(logits))
                index = int(np.argmax(shares))
                yield Answer(names[index], index, dict(zip(names, map(float, shares), strict=True)))
            done += len(part)
            progress(done)

    def generate(
        self,
        prompts: Sequence[str],
        max_tokens: int = 128,
        stop: Sequence[str] = (),
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[str]:
        """What the model writes after each prompt, greedily: the most probable token each time.

        A text ends before the first of the ``stop`` strings in it, at the end-of-text token, or after ``max_tokens``.

        Raises:
            DataError: a prompt has no tokens, or leaves no room in the model's window.
            ModelError: the trained weights are an adapter, and PEFT is not installed.
        """
        texts = []
        for i, prompt in enumerate(prompts, 1):
            texts.append(greedy(self.model, self.tokenizer, prompt, max_tokens, stop, f"prompt {i}"))
            progress(i)
        return texts

    def score(self, examples: Sequence[Example]) -> Sequence[Score]:
        """Log-probabilities of every option's tokens, an array each."""
        return self.engine.score(self._settings.choice.requests(examples), [BASE]).values[0]


def numbered(rows: Rows) -> list[Row]:
    """Rows that can be named in messages."""
    return [row if isinstance(row, Row) else Row(dict(row), f"row {i}") for i, row in enumerate(rows, 1)]


def load(
    run: str | Path,
    step: int | None = None,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> TrainedModel:
    """The trained model of the run in this folder.

    Args:
        run: the folder.
        step: as it was after so many steps: what ``twinpass replay RUN --step N`` has rebuilt in ``RUN/step-N``.
        model: the base model, for a run made by :func:`twinpass.finetune`, which is given an object and knows no path.
        tokenizer: its tokenizer.

    Raises:
        TwinpassError: there is no such run, it has not finished, or the base model is another one.
    """
    folder = Path(run)
    settings = settings_of(folder, model, tokenizer)
    weights = weights_of(settings, step)
    base, own = settings.base()
    reuse = Auto(budget=settings.budget)
    if not settings.trainable.adapter:
        whole: PreTrainedModel = type(base).from_pretrained(str(weights), dtype=base.dtype)
        return TrainedModel(settings, weights, TorchEngine(whole, settings.trainable, reuse=reuse), own)
    saved = json.loads((weights / "adapter_config.json").read_text())
    invocation = tuple(saved.get("alora_invocation_tokens") or ())
    engine = TorchEngine(base, _as_saved(settings.trainable, saved), reuse=reuse, invocation=invocation)
    settings.require_base(engine.base_hash)
    tensors = load_file(weights / "adapter_model.safetensors")
    engine.parameters.copy_from({name.removeprefix("base_model.model."): value for name, value in tensors.items()})
    engine.prepack()
    return TrainedModel(settings, weights, engine, own)


def _as_saved(trainable: Trainable, saved: Mapping[str, Any]) -> Trainable:
    """The kind of adapter that was saved: whatever it was trained as, it is a LoRA then."""
    if isinstance(trainable, Lora):
        return trainable
    first = min(saved.get("layers_to_transform") or (0,))
    return Activated(saved["r"], saved["lora_alpha"], tuple(saved["target_modules"]), first)
