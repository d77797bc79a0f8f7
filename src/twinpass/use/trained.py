"""A trained model, ready to be asked."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.core import BASE, Sampling, Score, Tokens
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import DataError, ModelError, UnsupportedModuleError
from twinpass.model.causal import CausalModel
from twinpass.model.identity import require_language_model
from twinpass.model.load import load_like
from twinpass.model.trainable import Activated, Lora, Trainable, Trained
from twinpass.objective.goal import FEW, portions
from twinpass.paths import expand
from twinpass.perturb.parameters import Parameters
from twinpass.reuse.auto import Auto
from twinpass.task.activation import activation_points
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.example import Example
from twinpass.task.limits import Limits
from twinpass.task.reward import RewardTemplate
from twinpass.task.rows import Row, every
from twinpass.task.sources.read import read_objects, sound
from twinpass.use.settings import RunOrigin, settings_of, weights_of
from twinpass.use.weights import require_as_written, setup_of, tensors_of
from twinpass.use.writing import Writer

Rows = Iterable[Row | Mapping[str, Any]] | Any
"""Mappings, a Hugging Face ``Dataset`` or a ``pandas.DataFrame``, as ``finetune`` takes them; or rows of a file."""

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
        self, settings: RunOrigin, weights: Path, engine: TorchEngine, tokenizer: PreTrainedTokenizerBase
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
            raise ModelError("an adapter is used elsewhere through PEFT: pip install peft") from error
        model: PreTrainedModel = PeftModel.from_pretrained(self._base_again(), str(self.weights))
        return model

    @cached_property
    def _vocabulary(self) -> int:
        return CausalModel(self.engine.model).vocabulary

    def _base_again(self) -> PreTrainedModel:
        """The base model once more, beside the engine's."""
        base, _ = self._settings.base()
        return base if self._settings.given is None else deepcopy(base)

    @property
    def _writer(self) -> Writer:
        return Writer(self.engine, self.tokenizer, self._settings.trainable.activated)

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
            raise DataError("the task has no options to choose from, but texts to write: use write")
        limits = self._settings.task.limits(self.engine.window, self._vocabulary)

        def made(row: Row) -> tuple[Example, tuple[str, ...]]:
            example = limits.applied(template.question(row, self.tokenizer), self.tokenizer)
            return self._activated(example), template.names(row)

        return every(numbered(rows), made)

    def write(self, rows: Rows, sampling: Sampling | None = None, first: int = 0) -> Iterator[str]:
        """What the model writes for each row, some rows at a time, where the task is to write; rows are counted from ``first``.

        Rows need not hold an answer: of a conversation, the assistant's last turn is written anew. None: as :meth:`sampling` has it.

        Raises:
            DataError: a row cannot be used.
        """
        own = sampling or self.sampling()
        prompts = every(numbered(rows), lambda row: self._continued(row, own))
        return self._writer.go_on(prompts, own, first)

    def _continued(self, row: Row, sampling: Sampling) -> tuple[Tokens, int | None]:
        """What is read of a row before its text is written, and where an activated adapter begins to act; None: nowhere."""
        asked: Example = self.template.asked(row, self.tokenizer)
        if isinstance(self.template, RewardTemplate):
            limits = Limits(self.engine.window, self._vocabulary, room=sampling.max_tokens - 1)
            asked = self._activated(limits.applied(asked, self.tokenizer))
            return asked.prompt, asked.suffix_start
        asked = self._shortened(asked, sampling)
        self._writer.room(asked.prompt, sampling, asked.place)
        return asked.prompt, self._writer.starts(asked.prompt)

    def _activated(self, example: Example) -> Example:
        """With the place that an activated adapter acts from, where what was trained is one."""
        if not self._settings.trainable.activated:
            return example
        return activation_points([example], self.engine.invocation)[0]

    def _shortened(self, asked: Example, sampling: Sampling) -> Example:
        """A prompt as the task shortens it, if it does; half of the model's window at the most is left for the text."""
        task, window = self._settings.task, self.engine.window
        if task.truncate == "error":
            return asked
        room = 0 if window is None else min(sampling.max_tokens, window // 2) - 1
        for limits in (Limits(task.window, truncate=task.truncate), Limits(window, truncate=task.truncate, room=room)):
            asked = limits.applied(asked, self.tokenizer)
        return asked

    def sampling(self, max_tokens: int | None = None, stop: str | Sequence[str] = (), **chosen: Any) -> Sampling:
        """How texts are written, by default greedily, with the most tokens and the strings that end them of training."""
        known = self._settings.generation
        if max_tokens is None:
            max_tokens = MAX_TOKENS if known is None else known.max_tokens
        stop = _strings(stop) or (self.template.stop if known is None else known.stop)
        return Sampling(max_tokens, stop=stop, **chosen)

    def answers(
        self,
        examples: Sequence[tuple[Example, tuple[str, ...]]],
        progress: Callable[[int], None] = lambda done: None,
    ) -> Iterator[Answer]:
        """Answers as they are found, some rows at a time."""
        done = 0
        for part in portions(examples, FEW):
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
        stop: str | Sequence[str] = (),
        progress: Callable[[int], None] = lambda done: None,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> list[str]:
        """What the model writes after each prompt: the most probable token each time, or one sampled at a ``temperature``.

        A text ends before the first of the ``stop`` strings in it, at the end-of-text token, or after ``max_tokens``. Sampling keeps the
        ``top_k`` likeliest tokens (0: all), and of those the fewest whose probabilities add up to ``top_p``; it depends on ``seed`` and
        on a prompt's place among the prompts alone.

        Raises:
            DataError: a prompt is no text, has no tokens, or leaves no room in the model's window.
            ModelError: a number is out of range.
        """
        texts = []
        for text in self.texts(prompts, Sampling(max_tokens, temperature, top_p, top_k, _strings(stop), seed=seed)):
            texts.append(text)
            progress(len(texts))
        return texts

    def texts(self, prompts: Sequence[str], sampling: Sampling, first: int = 0) -> Iterator[str]:
        """The same as they are found, some prompts at a time; prompts are counted from ``first``."""
        if isinstance(prompts, str):
            raise DataError(f"prompts: expected a list of texts, got one text; write [{prompts!r:.40}]")
        return self._writer.write(prompts, sampling, first)

    def score(self, examples: Sequence[Example]) -> Sequence[Score]:
        """Log-probabilities of every option's tokens, an array each."""
        return self.engine.score(self._settings.choice.requests(examples), [BASE]).values[0]


def _strings(given: str | Sequence[str]) -> tuple[str, ...]:
    """One, or several: a text is a sequence of its letters, too."""
    return (given,) if isinstance(given, str) else tuple(given)


def numbered(rows: Rows) -> list[Row]:
    """Rows that can be named in messages.

    Raises:
        DataError: they are no rows.
    """
    if isinstance(rows, list | tuple) and all(isinstance(row, Row) for row in rows):
        return list(rows)
    return sound(read_objects(rows, "rows"))


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
        model: the base model, for a run of :func:`twinpass.finetune` whose model came from nowhere that can be loaded again.
        tokenizer: its tokenizer.

    Raises:
        TwinpassError: there is no such run, it has not finished, or the base model is another one.
    """
    folder = expand(str(run))
    if model is not None:
        require_language_model(model)
    settings = settings_of(folder, model, tokenizer)
    weights = weights_of(settings, step)
    require_as_written(weights, settings.rewriting(step))
    base, own = settings.base()
    reuse = Auto(budget=settings.budget)
    if not settings.trainable.adapter:
        whole = load_like(base, weights)
        try:
            engine = TorchEngine(whole, settings.trainable, reuse=reuse)
        except UnsupportedModuleError:  # it was trained in place, and is only read here
            engine = TorchEngine(whole, _AsItStands(), reuse=reuse)
        return TrainedModel(settings, weights, engine, own)
    saved, tensors = setup_of(weights), tensors_of(weights)
    invocation = tuple(saved.get("alora_invocation_tokens") or ())
    engine = TorchEngine(base, _as_saved(settings.trainable, saved), reuse=reuse, invocation=invocation)
    settings.require_base(engine.base_hash)
    engine.parameters.copy_from(tensors)
    if settings.given is None:  # an object that was given stays of use elsewhere
        engine.prepack()
    return TrainedModel(settings, weights, engine, own)


class _AsItStands(Trainable):
    """A model that is read and not trained, whatever its modules are; an engine names some of its weights."""

    def attach(self, model: PreTrainedModel, seed: int, invocation: tuple[int, ...] = ()) -> Trained:
        embeddings: Any = model.get_input_embeddings()
        return Trained(Parameters({"embeddings": embeddings.weight}))


def _as_saved(trainable: Trainable, saved: Mapping[str, Any]) -> Trainable:
    """The kind of adapter that was saved, on the modules that it was saved for: whatever it was trained as, it is a LoRA then."""
    if isinstance(trainable, Lora):
        return replace(trainable, targets=tuple(saved["target_modules"]))
    first = min(saved.get("layers_to_transform") or (0,))
    return Activated(saved["r"], saved["lora_alpha"], tuple(saved["target_modules"]), first)
