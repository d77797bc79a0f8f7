"""An unmodified Hugging Face causal language model, run in parts: some of its decoder layers, then its head."""

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from copy import copy
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils.generic import ModelOutput

from twinpass.errors import ModelError
from twinpass.model.device import Device
from twinpass.model.patching import forward_of
from twinpass.phases import phase

TRIED = 4
"""Tokens that a head, or which modules run, is tried on."""
OF_AN_ENCODER = ("encoder_attn", "crossattention", "cross_attn")
"""What a decoder's modules for an encoder's states are called, and their norms."""


class CausalModel:
    """The parts of a model.

    Args:
        model: any ``AutoModelForCausalLM``; nothing stays changed in it after a pass.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        config = model.config.get_text_config()
        self.vocabulary = int(config.vocab_size)
        self.depth = int(
            getattr(config, "decoder_layers", None) or config.num_hidden_layers
        )  # BART's are its encoder's
        self.window = _window(config)

    @cached_property
    def added(self) -> tuple[float, ...]:
        """By layer, the share of what its modules write that is in the state which leaves the last layer.

        It is 1, but where layers add a share of it (Granite, MiniCPM3), or scale the stream that they leave (Gemma 4).
        """
        layers = list(self.model.get_submodule(self.layers_path).children())
        scales = [
            float(each) if isinstance(each := getattr(layer, "layer_scalar", 1.0), Tensor) else 1.0 for layer in layers
        ]
        return tuple(_share(layer) * math.prod(scales[i:]) for i, layer in enumerate(layers))

    @cached_property
    def device(self) -> Device:
        """Where the model lies."""
        return Device.of(self.model)

    @cached_property
    def linears(self) -> tuple[nn.Module, ...]:
        """The model's linear layers."""
        return tuple(module for module in self.model.modules() if is_linear(module))

    @cached_property
    def configs(self) -> tuple[PreTrainedConfig, ...]:
        """The configurations that the model's parts look at, each once."""
        found = {id(module.config): module.config for module in self.model.modules() if hasattr(module, "config")}
        return tuple(cast(PreTrainedConfig, config) for config in found.values())

    @property
    def decoder(self) -> nn.Module:
        """What turns tokens into hidden states."""
        return cast(nn.Module, cast(Any, self.model).get_decoder())

    @cached_property
    def _text_paths(self) -> tuple[str, ...] | None:
        """The modules that the language model of a larger one consists of; None: there is nothing else in the model."""
        if self.model.config.get_text_config() is self.model.config:
            return None
        own = (self.decoder, output_layer(self.model))
        return tuple(path for path, module in self.model.named_modules() if any(module is each for each in own))

    def reads_text(self, name: str) -> bool:
        """Whether a module or parameter belongs to the language model, and not to what the model has for images, sound or an encoder's states."""
        paths = self._text_paths
        return (paths is None or _below(name, paths)) and not _below(name, self._idle)

    @property
    def layers_path(self) -> str:
        """The path of the list of decoder layers.

        Raises:
            ModelError: there is none of the length that the configuration gives.
        """
        path: str
        for path, module in self.model.named_modules():
            if not isinstance(module, nn.ModuleList) or len(module) != self.depth or not self.reads_text(path):
                continue
            if [name for name, _ in module.named_children()] == [str(i) for i in range(self.depth)]:
                return path
        raise ModelError(
            f"{type(self.model).__name__} has no list of {self.depth} decoder layers; use trainable.kind = 'pattern'"
        )

    def layer_of(self, name: str) -> int:
        """The decoder layer that a module or parameter belongs to; 0 for one outside, which may act before all."""
        try:
            prefix = f"{self.layers_path}."
        except ModelError:
            return 0
        return int(name.removeprefix(prefix).split(".", 1)[0]) if name.startswith(prefix) else 0

    def decode(
        self, ids: Tensor, positions: Tensor, first: int = 0, last: int | None = None, hidden: Tensor | None = None
    ) -> ModelOutput:
        """Run layers ``first`` to ``last`` - 1 (and the final norm), from embeddings or from ``hidden`` [B, N, size].

        With ``last`` below the depth, ``last_hidden_state`` is what enters layer ``last``, without the norm.
        """
        last = self.depth if last is None else last
        seen: list[Tensor] = []
        with ExitStack() as stack:
            if first > 0 or last < self.depth:
                layers = self.model.get_submodule(self.layers_path)
                for i, layer in enumerate(layers.children()):
                    if i == first and hidden is not None:
                        stack.enter_context(forward_of(layer, _with_hidden(layer.forward, hidden)))
                    elif not first <= i < last:
                        stack.enter_context(forward_of(layer, _skipped(seen if i == last else None)))
            output: ModelOutput = self.decoder(input_ids=ids, position_ids=positions, use_cache=False)
        if seen:
            output["last_hidden_state"] = seen[0]
        return output

    @phase("logits")
    def head(self, ids: Tensor, output: ModelOutput, hidden: Tensor) -> Tensor:
        """Logits [B, N, vocabulary] of ``hidden`` [B, N, size], states that the decoder has computed already."""
        part = copy(output)
        part["last_hidden_state"] = hidden
        with forward_of(self.decoder, lambda *args, **kwargs: part):
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits

    def finish(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Logits [B, N, vocabulary] of states [B, N, size] that left the last layer: the final norm and the head, differentiable."""
        layers = cast(nn.ModuleList, self.model.get_submodule(self.layers_path))
        with ExitStack() as stack:
            for layer in layers[:-1]:
                stack.enter_context(forward_of(layer, _skipped(None)))
            stack.enter_context(forward_of(layers[-1], lambda *args, **kwargs: hidden))
            output: ModelOutput = self.decoder(input_ids=ids, use_cache=False)
        return self.head(ids, output, output["last_hidden_state"])

    @cached_property
    def finishes(self) -> bool:
        """Whether the state that leaves the last layer, [size] a token, is all that a token's logits are made of: tried on a few tokens."""
        (ids,) = self.device.send(np.arange(min(TRIED, self.vocabulary))[None])
        size, left = int(self.model.config.get_text_config().hidden_size), list[Any]()
        try:
            last = list(self.model.get_submodule(self.layers_path).children())[-1]
            handle = last.register_forward_hook(lambda module, arguments, output: left.append(output))
            with torch.no_grad():
                try:
                    own = self.logits(ids)
                finally:
                    handle.remove()
                state = left[0][0] if isinstance(left[0], tuple) else left[0]
                if state.shape != (1, ids.shape[1], size):
                    return False
                off = (self.finish(ids, state) - own).abs().max()
        except Exception:  # any model's own code runs here
            return False
        return bool(off <= torch.finfo(own.dtype).eps ** 0.5 * max(1.0, float(own.abs().max())))

    @property
    def reshaped(self) -> frozenset[str]:
        """Paths of linear layers that are given something else than [batch, tokens, size], such as rows alone (OPT's fc1 and fc2): tried on a few tokens."""
        linear = {path for path, module in self.model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
        usual = (1, min(TRIED, self.vocabulary))
        return frozenset(path for path, shape in self._called.items() if shape not in (None, usual) and path in linear)

    @cached_property
    def _idle(self) -> tuple[str, ...]:
        """Paths of modules that texts do not run through: for an encoder's states (BART's), or for images, by a configuration of their own (GIT's)."""
        known = (self.model.config, self.model.config.get_text_config())
        own = {
            path
            for path, module in self.model.named_modules()
            if any(name in path.rsplit(".", 1)[-1] for name in OF_AN_ENCODER)
            or (isinstance(c := getattr(module, "config", None), PreTrainedConfig) and type(c) not in map(type, known))
        }
        return tuple(path for path in own if path not in self._called) if own and self._called else ()

    @cached_property
    def _called(self) -> dict[str, tuple[int, ...] | None]:
        """Paths of modules that a few tokens run through, with all axes but the last of what enters, if that is a tensor; none where they cannot."""
        found: dict[str, tuple[int, ...] | None] = {}

        def noting(path: str) -> Callable[..., None]:
            def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
                found[path] = tuple(arguments[0].shape[:-1]) if arguments and isinstance(arguments[0], Tensor) else None

            return hook

        handles = [module.register_forward_pre_hook(noting(path)) for path, module in self.model.named_modules()]
        try:
            with torch.no_grad():
                self.logits(*self.device.send(np.arange(min(TRIED, self.vocabulary))[None]))
        except Exception:  # any model's own code runs here
            return {}
        finally:
            for handle in handles:
                handle.remove()
        return found

    def logits(self, ids: Tensor) -> Tensor:
        """The model's own forward on sequences of equal length [B, N]."""
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits


def _below(name: str, paths: Iterable[str]) -> bool:
    """Whether a module or parameter is one of these, or within one."""
    return any(f"{name}.".startswith(f"{path}.") for path in paths)


def _share(layer: nn.Module) -> float:
    """What a decoder layer multiplies by before it adds to the stream, under the names that architectures have for it."""
    found = (getattr(layer, name, None) for name in ("residual_multiplier", "residual_scale"))
    return next((float(each) for each in found if isinstance(each, int | float)), 1.0)


def _window(config: Any) -> int | None:
    """The longest input in tokens, where the configuration says; dynamic rotary scaling begins where the trained window ends."""
    trained: int | None = getattr(config, "max_position_embeddings", None)
    rotary = getattr(config, "rope_parameters", None) or {}
    if trained is None or trained <= 0:  # XLNet says -1 for none
        return None
    if rotary.get("rope_type") != "dynamic":
        return trained
    return int(trained * rotary["factor"])


def scattered(causal: CausalModel) -> str:
    """Why nothing can be told of a model that does not finish a state of its last layer."""
    return (
        f"{type(causal.model).__name__} makes logits of more than one state of {causal.model.config.get_text_config().hidden_size} numbers a token, "
        "so that the error is not known where its last layer ends"
    )


def output_layer(model: PreTrainedModel) -> nn.Module | None:
    """The layer that makes logits, where the model has one."""
    layer: nn.Module | None = cast(Any, model).get_output_embeddings()
    return layer


def is_linear(module: nn.Module) -> bool:
    """Whether the module computes what ``nn.Linear`` does, and not something of its own."""
    return type(module).forward is nn.Linear.forward


def outputs(module: nn.Module) -> int:
    """How many numbers a linear layer returns."""
    return int(module.get_parameter("weight").shape[1 if isinstance(module, Conv1D) else 0])


@phase("logits")
def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities, in float32 at least."""
    return torch.log_softmax(logits, -1, dtype=torch.float64 if logits.dtype is torch.float64 else torch.float32)


def _skipped(seen: list[Tensor] | None) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if seen is not None:
            seen.append(hidden_states)
        return hidden_states

    return forward


def _with_hidden(original: Callable[..., Any], hidden: Tensor) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return original(hidden, *args, **kwargs)

    return forward


def ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a text: the tokenizer's, and those of the checkpoint's generation configuration."""
    known: Any = getattr(model.generation_config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])}
    return tuple(sorted(token for token in found if isinstance(token, int)))
