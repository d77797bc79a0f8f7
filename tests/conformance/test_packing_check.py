"""The trial that decides about packing: rounding passes it on any processor, and each fault fails it by orders of magnitude."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from architectures import ARCHITECTURES, GROUPED, bits, build, deviation, naive
from torch import Tensor
from transformers import AutoModelForCausalLM, Dots1Config, GptOssConfig, MixtralConfig, PreTrainedModel

from twinpass.core import BASE, Request
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.scoring import attention
from twinpass.engine.embedded.scoring.attention import Bucket
from twinpass.engine.embedded.scoring.packing_check import Difference, PackingCheck
from twinpass.engine.embedded.scoring.raised import Raised
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Lora

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
MARGIN = 1000.0

dtypes = pytest.mark.parametrize("dtype", DTYPES)


def sinking(dtype: torch.dtype, sink: float = 0.0) -> PreTrainedModel:
    """A model whose attention has a sink: every query may look at nothing."""
    own = {"head_dim": 8, "sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = GptOssConfig(**(GROUPED | own | {"max_position_embeddings": 131072}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: Any = cast(Any, AutoModelForCausalLM).from_config(
            config, dtype=torch.float32, experts_implementation="eager"
        )
    for layer in model.model.layers:
        layer.self_attn.sinks.detach().fill_(sink)
    return cast(PreTrainedModel, model.to(dtype).eval())


@pytest.mark.table
@pytest.mark.parametrize("factor", [1, 100])
@dtypes
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rounding_stays_far_below_what_is_allowed(name: str, dtype: torch.dtype, factor: int) -> None:
    model = build(name, dtype)
    norm = [module for path, module in model.named_modules() if "norm" in path or "ln_f" in path][-1]
    cast(Tensor, norm.weight).detach().mul_(factor)
    before = bits(model)
    found = Difference.of(CausalModel(model), cut=1)
    assert found.off < found.allowed / MARGIN
    assert all(torch.equal(before[path], tensor) and tensor.dtype is dtype for path, tensor in bits(model).items())


def test_mixtures_of_experts_are_tried_in_float64_too() -> None:
    config = MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2)
    model = cast(Any, AutoModelForCausalLM).from_config(config, dtype=torch.bfloat16).eval()
    found = Difference.of(CausalModel(model))
    assert found.off < found.allowed / MARGIN
    assert PackingCheck.of(CausalModel(model), 0).packs


def _sees_the_future(bucket: Bucket, window: int | None, dtype: torch.dtype) -> Tensor:
    return torch.zeros((*bucket.positions.shape, bucket.shape[2]), dtype=dtype)[:, None, None]


def _misses_the_first_token(bucket: Bucket, window: int | None, dtype: torch.dtype) -> Tensor:
    found = BIAS(bucket, window, dtype)
    return found.masked_fill(((bucket.key_positions == 0) & (bucket.positions[:, -1:] > 0))[:, None, None, None], -1e9)


def _looks_one_token_too_near(bucket: Bucket, window: int | None, dtype: torch.dtype) -> Tensor:
    return BIAS(bucket, None if window is None else window - 1, dtype)


BIAS = Bucket.bias
MASKS = [("llama", _sees_the_future), ("gpt2", _misses_the_first_token)]
WINDOWS = [(name, _looks_one_token_too_near) for name in ("mistral", "gemma2", "gemma3")]


@pytest.mark.table
@dtypes
@pytest.mark.parametrize(("name", "wrong"), [*MASKS, *WINDOWS])
def test_a_wrong_mask_or_window_stands_out(
    name: str, wrong: Callable[..., Tensor], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bucket, "bias", wrong)
    assert_refused(build(name, dtype))


@pytest.mark.table
@dtypes
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_a_wrong_position_stands_out(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = CausalModel.decode

    def skipping(self: CausalModel, ids: Tensor, positions: Tensor, *rest: Any) -> Any:
        return decode(self, ids, positions + (positions > 4), *rest)

    monkeypatch.setattr(CausalModel, "decode", skipping)
    assert_refused(build(name, dtype))


@dtypes
def test_a_dropped_attention_sink_stands_out(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "HARMLESS", attention.HARMLESS | {"s_aux"})
    assert_refused(sinking(dtype))
    assert PackingCheck.of(CausalModel(sinking(dtype, sink=-1e4)), 0).packs


def assert_refused(model: PreTrainedModel) -> None:
    causal = CausalModel(model)
    found = Difference.of(causal)
    assert found.off > found.allowed * MARGIN
    trial = PackingCheck.of(causal, 0)
    assert not trial.packs
    assert f"differ by {found.off:.2g} of {found.largest:.2g} nats" in trial.reason


@dtypes
def test_an_argument_that_attention_does_not_know_is_refused(dtype: torch.dtype) -> None:
    model = sinking(dtype)
    requests = [Request(tuple(range(3, 3 + n)), (50, 51)) for n in (3, 10, 40)]
    with pytest.warns(UserWarning, match="GptOssAttention passes s_aux to its attention, which packing leaves out"):
        engine = TorchEngine(model, Lora(rank=2))
    scores = engine.score(requests, [BASE]).values[0]
    assert deviation(scores, naive(model, requests)) < (0.02 if dtype is torch.bfloat16 else 1e-4)


def test_everything_is_float64_inside() -> None:
    table, weight = torch.randn(50, 8, dtype=torch.bfloat16), torch.randn(70000, 8)
    ids = torch.tensor([3, 4])
    with Raised():
        x = torch.nn.functional.embedding(ids, table)
        y = torch.nn.functional.linear(x.float(), weight)
        z = torch.softmax(y.to(torch.bfloat16), -1, dtype=torch.float32) + torch.zeros(1)
        assert {weight.dtype, x.dtype, y.dtype, z.dtype} == {torch.float64}
        table[0] = 0.0
    expected = torch.softmax(table[ids].double() @ weight.double().T, -1)
    torch.testing.assert_close(z, expected, rtol=1e-12, atol=0)
    assert not table[0].any()
    assert table.dtype is torch.bfloat16


def test_groups_of_rows_are_multiplied_in_float64() -> None:
    x, weight = torch.randn(6, 8), torch.randn(3, 8, 16)
    with Raised():
        y = torch.nn.functional.grouped_mm(x, weight, offs=torch.tensor([2, 2, 6], dtype=torch.int32))
    expected = torch.cat([x[:2].double() @ weight[0].double(), x[2:].double() @ weight[2].double()])
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-14)


def test_a_window_that_no_layer_has_is_none() -> None:
    """Of 62 layers of dots1 the window is for those above the 62nd; a configuration that has one did not pack."""
    own: dict[str, Any] = {
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
    }
    model = cast(Any, AutoModelForCausalLM).from_config(Dots1Config(**GROUPED, **own, sliding_window=8)).eval()
    assert set(model.config.layer_types) == {"full_attention"}
    assert PackingCheck.of(CausalModel(model), 0).packs
