"""Residual feedback: the gradient of adapters whose outputs went straight into the state that leaves the last layer."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from architectures import ADDING, ARCHITECTURES, FALLBACK, WRITERS, Float64Softmax, bits, build, engine_of, share_of
from gradients import ACTIVE, SCALE, TERMS, assert_same, slopes
from tiers import some_fast
from torch import Tensor, nn
from transformers import PreTrainedModel

from twinpass.core import BASE, Score
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.scoring.observe import Observer
from twinpass.errors import ModelError
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Activated, Full, Lora

TOLERANCE = 3e-6
"""Relative; norms take their means in float32, also in a float64 model."""


NORMED = {
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2"), ("post_attention_layernorm", "post_feedforward_layernorm")),
    "gemma4_text": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm"),
}
"""What stands behind o_proj and down_proj where what they write is normed before it is added to the stream."""


def norm_behind(model: PreTrainedModel, path: str) -> nn.Module:
    """What a module's output goes through on its way to the stream."""
    layer, own = model.get_submodule(".".join(path.split(".")[:3])), path.rsplit(".", 1)[-1]
    behind = NORMED.get(str(model.config.model_type))
    return layer.get_submodule(behind[own == "down_proj"]) if behind else nn.Identity()


def trained(name: str, *targets: str, **options: Any) -> TorchEngine:
    chosen = targets or WRITERS.get(name, ("o_proj", "down_proj"))
    engine = engine_of(name, build(name), Activated(rank=2, alpha=4.0, targets=chosen, first=1), **options)
    engine.update(TERMS)
    return engine


def straight(engine: TorchEngine) -> dict[str, Tensor]:
    """By autograd on the model's own forward: the last state is cut off from the layers, and gets what adapters write there instead."""
    model = engine.model
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in engine.parameters.items()}
    last = model.get_submodule(CausalModel(model).layers_path)[-1]  # type: ignore[index]
    given = slopes(engine.score(ACTIVE, [BASE]).values[0])
    total = {name: torch.zeros_like(tensor) for name, tensor in leaves.items()}
    for request, slope in zip(ACTIVE, given, strict=True):
        handles: list[Any] = []
        written: list[Tensor] = []

        def beside(
            module: nn.Module, args: Any, y: Tensor, *, path: str, start: int, written: list[Tensor], norm: nn.Module
        ) -> Tensor:
            a, b = leaves[f"{path}.lora_A.weight"], leaves[f"{path}.lora_B.weight"]
            x = args[0].detach().reshape(-1, a.shape[1])
            added = SCALE * x @ a.t() @ b.t()
            added = added * (torch.arange(len(x)) >= start).double()[:, None]
            written.append(share_of(model, path) * norm(y.detach().view(added.shape) + added))
            return torch.add(y.view(added.shape), added).detach().view(y.shape)

        for path in engine._trained.adapters:
            keywords = {
                "path": path,
                "start": request.active_from,
                "written": written,
                "norm": norm_behind(model, path),
            }
            handles.append(
                model.get_submodule(path).register_forward_hook(
                    lambda module, args, y, keywords=keywords: beside(module, args, y, **keywords)
                )
            )

        def leave(module: nn.Module, args: Any, output: Any, written: list[Tensor] = written) -> Any:
            state = (output[0] if isinstance(output, tuple) else output).detach()
            moved = state + sum(own - own.detach() for own in written)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        handles.append(last.register_forward_hook(leave))
        with Float64Softmax():
            logits = model(input_ids=torch.tensor([request.inputs]), use_cache=False).logits[0]
        for handle in handles:
            handle.remove()
        rows = torch.log_softmax(logits[len(request.prompt) - 1 :], -1)
        score = rows[range(len(request.completion)), list(request.completion)]
        found = torch.autograd.grad((score * torch.from_numpy(slope)).sum(), list(leaves.values()))
        for name, own in zip(leaves, found, strict=True):
            total[name] += own
    return total


@pytest.mark.parametrize("name", some_fast([*ARCHITECTURES, *ADDING], ["llama", "gpt2", "gemma2", *ADDING]))
def test_it_is_the_gradient_without_what_lies_between(name: str) -> None:
    engine = trained(name, chunk_rows=7)
    before = bits(engine.model)
    found = engine.feedback(ACTIVE, slopes)
    assert_same(found, straight(engine), TOLERANCE)
    scores = engine.score(ACTIVE, [BASE]).values[0]
    for own, score in zip(found.scores.values[0], scores, strict=True):
        assert abs(own - score).max() < 1e-9
    assert all(torch.equal(tensor, before[name]) for name, tensor in bits(engine.model).items())


TOP = [
    *((name, "down_proj") for name in ("llama", "gemma2", "gemma3", *ADDING)),
    ("gpt2", "c_proj"),
    ("opt", "fc2"),
]


@pytest.mark.parametrize(("name", "top"), TOP)
def test_nothing_lies_between_the_top_and_the_head(name: str, top: str) -> None:
    """There, a norm behind the module included, it is the exact gradient; below, its error is not zero, or the test would say nothing."""
    engine = trained(name)
    found, exact = engine.feedback(ACTIVE, slopes).tensors, engine.gradient(ACTIVE, slopes).tensors
    highest = [tensor for tensor in exact if f".1.{'mlp.' if name != 'opt' else ''}{top}." in tensor]
    assert len(highest) == 2
    for tensor in highest:
        torch.testing.assert_close(found[tensor], exact[tensor], rtol=1e-5, atol=1e-8)
    assert any(not torch.allclose(found[tensor], exact[tensor], rtol=1e-2) for tensor in set(exact) - set(highest))


@pytest.mark.parametrize("target", ["q_proj", "gate_proj", "v_proj"])
def test_layers_that_read_the_residual_stream_are_refused(target: str) -> None:
    engine = trained("llama", "o_proj", target)
    with pytest.raises(ModelError, match=rf"{target} does not write into the residual stream"):
        engine.feedback(ACTIVE, slopes)


def test_where_nothing_can_be_seen_it_is_refused() -> None:
    name = next(iter(FALLBACK))
    with pytest.raises(ModelError, match="is seen in packed passes"):
        engine_of(name, build(name), Lora(rank=2, targets=WRITERS[name])).feedback(ACTIVE, slopes)
    with pytest.raises(ModelError, match="leave perturbation = 'inplace'"):
        engine_of("llama", build("llama"), Full(), perturbation="inplace").feedback(ACTIVE, slopes)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_rows_that_are_read_once_come_to_the_same_as_they_are_scored(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row's only log-probability is differentiated as it is scored; where several are read of one row, that is done afterwards."""
    engine = trained(name, chunk_rows=7)
    weights: list[Score] = [np.cos(np.arange(len(request.completion)) + i) for i, request in enumerate(ACTIVE)]

    def given(slopes: list[Score], scores: Sequence[Score]) -> list[Score]:
        return slopes

    together = engine.feedback(ACTIVE, partial(given, weights))
    done: list[int] = []
    own = Observer.score

    def counted(self: Observer, *args: Any) -> Tensor:
        done.append(1)
        return own(self, *args)

    monkeypatch.setattr(Observer, "score", counted)
    total: dict[str, Tensor] = {}
    for request, weight in zip(ACTIVE, weights, strict=True):
        for key, tensor in engine.feedback([request], partial(given, [weight])).tensors.items():
            total[key] = total.get(key, torch.zeros_like(tensor)) + tensor
    assert len(done) >= len(ACTIVE)
    assert_same(together, total, TOLERANCE)
    done.clear()
    engine.feedback(ACTIVE, partial(given, weights))
    assert not done
