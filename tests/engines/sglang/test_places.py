"""Parameters are found where SGLang's own loaders put them, in its real layers, cut up among 1, 2 and 4 processes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twinpass.core import Term
from twinpass.engine.sglang.inside.places import Place, Places
from twinpass.errors import EngineError
from twinpass.perturb.parameters import Parameters

WIDTH, HEAD, HEADS, KV_HEADS, INNER, VOCABULARY = 32, 8, 8, 2, 48, 250
SHAPES = {
    "attn.q_proj.weight": (HEADS * HEAD, WIDTH),
    "attn.k_proj.weight": (KV_HEADS * HEAD, WIDTH),
    "attn.v_proj.weight": (KV_HEADS * HEAD, WIDTH),
    "attn.q_proj.bias": (HEADS * HEAD,),
    "attn.k_proj.bias": (KV_HEADS * HEAD,),
    "attn.v_proj.bias": (KV_HEADS * HEAD,),
    "attn.o_proj.weight": (WIDTH, HEADS * HEAD),
    "attn.o_proj.bias": (WIDTH,),
    "mlp.gate_proj.weight": (INNER, WIDTH),
    "mlp.up_proj.weight": (INNER, WIDTH),
    "mlp.down_proj.weight": (WIDTH, INNER),
    "fc.weight": (INNER, WIDTH),
    "embed_tokens.weight": (VOCABULARY, WIDTH),
    "norm.weight": (WIDTH,),
}
LOADED_AS: Mapping[str, tuple[str, Any]] = {
    "q_proj": ("qkv_proj", "q"),
    "k_proj": ("qkv_proj", "k"),
    "v_proj": ("qkv_proj", "v"),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}


@contextmanager
def process(rank: int, size: int) -> Iterator[None]:
    from sglang.srt.runtime_context import get_parallel

    with get_parallel().override(tp_size=size, attn_tp_size=size, moe_tp_size=size, tp_rank=rank):
        yield


def layers() -> nn.Module:
    """One of each kind of SGLang's layers, as this process has it."""
    from sglang.srt.layers.layernorm import RMSNorm
    from sglang.srt.layers.linear import (
        ColumnParallelLinear,
        MergedColumnParallelLinear,
        QKVParallelLinear,
        RowParallelLinear,
    )
    from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding

    model = nn.Module()
    model.attn, model.mlp = nn.Module(), nn.Module()
    model.attn.qkv_proj = QKVParallelLinear(WIDTH, HEAD, HEADS, KV_HEADS, bias=True)
    model.attn.o_proj = RowParallelLinear(HEADS * HEAD, WIDTH, bias=True)
    model.mlp.gate_up_proj = MergedColumnParallelLinear(WIDTH, [INNER, INNER], bias=False)
    model.mlp.down_proj = RowParallelLinear(INNER, WIDTH, bias=False)
    model.fc = ColumnParallelLinear(WIDTH, INNER, bias=False)
    model.embed_tokens = VocabParallelEmbedding(VOCABULARY, WIDTH)
    model.norm = RMSNorm(WIDTH)
    return model


def load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """As SGLang's models load a checkpoint: each parameter through its own loader."""
    for name, whole in weights.items():
        path, _, leaf = name.rpartition(".")
        parent, _, last = path.rpartition(".")
        fused, part = LOADED_AS.get(last, (last, None))
        parameter: Any = model.get_parameter(f"{parent}.{fused}.{leaf}".lstrip("."))
        loader = getattr(parameter, "weight_loader", None)
        if loader is None:
            parameter.data.copy_(whole)
        else:
            loader(parameter, whole, *([] if part is None else [part]))


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in SHAPES.items()}


def expected(place: Place, whole: Tensor) -> Tensor:
    shard = place.shard
    runs = place.tensor.numel() // shard.width
    return torch.as_strided(whole, (runs, shard.width), (shard.stride, 1), shard.start).reshape(place.tensor.shape)


ranks = pytest.mark.parametrize(("rank", "size"), [(rank, size) for size in (1, 2, 4) for rank in range(size)], ids=str)


@ranks
def test_places_hold_what_the_loaders_put_there(rank: int, size: int) -> None:
    whole = weights()
    with process(rank, size):
        model = layers()
        load(model, whole)
        places = Places(model)
    covered = 0
    for name, shape in SHAPES.items():
        place = places.find(name, shape)
        assert torch.equal(place.tensor, expected(place, whole[name])), name
        covered += place.tensor.numel()
    padded = (
        model.get_parameter("embed_tokens.weight").numel()
        - places.find("embed_tokens.weight", (VOCABULARY, WIDTH)).tensor.numel()
    )
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total - covered == padded, "everything but the vocabulary's padding is some parameter"


@ranks
def test_updates_of_the_parts_are_those_of_the_whole(rank: int, size: int) -> None:
    """Perturb what a process holds; load the perturbed whole: the same bits."""
    whole, terms = weights(), [Term(11, 3e-3), Term(12, -1e-2)]
    with process(rank, size):
        model, other = layers(), layers()
        load(model, whole)
        places = {name: Places(model).find(name, shape) for name, shape in SHAPES.items()}
        live = {name: place.tensor for name, place in places.items()}
        Parameters(live, shards={name: place.shard for name, place in places.items()}).add(terms, "gaussian")
        Parameters(whole).add(terms, "gaussian")
        load(other, whole)
    for name, shape in SHAPES.items():
        assert torch.equal(live[name], Places(other).find(name, shape).tensor), name


def test_what_is_not_there_is_named() -> None:
    with process(0, 1):
        places = Places(layers())
    for name, shape, words in [
        ("mlp.router.weight", (8, WIDTH), "has no module mlp.router"),
        ("norm.bias", (WIDTH,), "no parameter for norm.bias"),
        ("fc.weight", (INNER + 1, WIDTH), "in a way that is not known"),
        ("attn.k_proj.weight", (KV_HEADS * HEAD, WIDTH + 1), "in a way that is not known"),
    ]:
        with pytest.raises(EngineError, match=words):
            places.find(name, shape)
