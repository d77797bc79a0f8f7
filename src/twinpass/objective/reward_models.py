"""Reward models: sequence classifiers of one label, asked as TRL's GRPOTrainer asks them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from twinpass.errors import RewardError
from twinpass.model.identity import hash_of
from twinpass.model.load import quiet

TOGETHER = 16
"""Texts that pass at once, so that the memory of a call does not grow with the texts of a step."""


class RewardModel:
    """The logit that a model gives to each whole text: prompt and completion, or messages written by its tokenizer's chat template.

    Texts are padded at their right, and no special tokens are added but those of the template, as in TRL. The model is set to
    ``eval()``, and its ``config.pad_token_id`` to the tokenizer's.

    Raises:
        RewardError: it has other labels than one, or its tokenizer has no token to pad with.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.__name__ = str(model.config._name_or_path).rstrip("/").rpartition("/")[2] or type(model).__name__
        count = model.config.num_labels
        if "SequenceClassification" not in type(model).__name__ or count != 1:
            raise RewardError(
                f"reward {self.__name__!r}: {type(model).__name__} with {count} labels is no reward model, which says one number of a text "
                "(AutoModelForSequenceClassification, num_labels=1); write a function that asks it (docs/rewards.md)"
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise RewardError(
                f"reward {self.__name__!r}: its tokenizer has no token to pad with, nor one that ends texts; set pad_token"
            )
        model.config.pad_token_id = tokenizer.pad_token_id
        nn.Module.eval(model)
        self._model, self._tokenizer = model, tokenizer

    @classmethod
    def beside(cls, model: nn.Module) -> "RewardModel":
        """A model and the tokenizer that lies where it came from.

        Raises:
            RewardError: none lies there, or the model is no reward model.
        """
        if not isinstance(model, PreTrainedModel):
            raise RewardError(
                f"reward {type(model).__name__!r} is a module and none of transformers' models; write a function that asks it (docs/rewards.md)"
            )
        place = str(model.config._name_or_path)
        try:
            with quiet([]):
                tokenizer = AutoTokenizer.from_pretrained(place)
        except Exception as error:  # a folder's own code may run here
            raise RewardError(
                f"reward {place or type(model).__name__!r} is a model whose tokenizer was not found where it came from ({_line(error)}); "
                "give twinpass.RewardModel(model, tokenizer)"
            ) from error
        return cls(model, tokenizer)

    @classmethod
    def named(cls, place: str) -> "RewardModel":
        """Both from a folder or the hub.

        Raises:
            RewardError: they are not there, or the checkpoint has no head for one label: it would be drawn at random.
        """
        try:
            with quiet([]):
                model, told = AutoModelForSequenceClassification.from_pretrained(
                    place, num_labels=1, output_loading_info=True, ignore_mismatched_sizes=True
                )
        except Exception as error:  # as above
            raise RewardError(
                f"reward {place!r}: no reward model could be loaded from there ({_line(error)}); a function is named file.py:function or "
                "package.module:function"
            ) from error
        if drawn := sorted({*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])}):
            raise RewardError(
                f"reward {place!r}: the checkpoint lacks {', '.join(drawn[:3])} for one label, which would be random; it is no reward model"
            )
        return cls.beside(model)

    @property
    def code(self) -> str:
        """What its answers depend on: the hash of its weights."""
        return hash_of(self._model)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **given: Any) -> list[float]:
        """A number for each completion."""
        texts = [self._whole(*each) for each in zip(prompts, completions, strict=True)]
        parts = (texts[start : start + TOGETHER] for start in range(0, len(texts), TOGETHER))
        return [number for part in parts for number in self._logits(part)]

    def _whole(self, prompt: Any, completion: Any) -> str:
        if isinstance(completion, str):
            return str(prompt + completion)
        return str(self._tokenizer.apply_chat_template([*prompt, *completion], tokenize=False))

    @torch.inference_mode()
    def _logits(self, texts: list[str]) -> list[float]:
        inputs = self._tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
        )
        found: list[float] = self._model(**inputs.to(self._model.device)).logits[:, 0].float().tolist()
        return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
