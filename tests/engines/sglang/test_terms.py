"""Our kernel takes adapters' terms over from SGLang's plain backend: it really runs, and gives what that backend gives."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from real_sglang import LAYERS, SIGNS, TOLERANCE, Loaded, engines, requests_of, worst
from sglang.srt.lora.torch_ops import lora_ops
from torch import Tensor

from twinpass.core import BASE
from twinpass.engine.sglang.inside import terms
from twinpass.engine.sglang.server import Server
from twinpass.perturb.gemm.registers import WIDTH

pytestmark = pytest.mark.skipif(WIDTH == 0, reason="the processor has no registers that are known")

OFFSETS = torch.tensor([0, 64, 96, 128], dtype=torch.int32)
"""Where a slice's outputs end and the next one's begin."""
ROOM = 8


def _batch(lengths: list[int], slots: list[int], ranks: list[int], graph: bool = False) -> Any:
    """What SGLang says of a batch's segments."""
    return SimpleNamespace(
        use_cuda_graph=graph,
        seg_lens_cpu=torch.tensor(lengths, dtype=torch.int32),
        weight_indices_cpu=torch.tensor(slots, dtype=torch.int32),
        lora_ranks_cpu=torch.tensor(ranks, dtype=torch.int32),
        scalings_cpu=torch.tensor([0.5 + slot for slot in range(len(ranks))]),
    )


def _sglangs_down(inputs: Tensor, weights: Tensor, batch: Any, slices: int) -> Tensor:
    told = (batch.weight_indices_cpu, batch.seg_lens_cpu, batch.lora_ranks_cpu, batch.scalings_cpu)
    found: Tensor = lora_ops.sgemm_lora_a_fwd(inputs, weights, *told, slices)
    return found


def _sglangs_up(inputs: Tensor, weights: Tensor, batch: Any, offsets: Tensor, base: Tensor | None) -> Tensor:
    told = (batch.weight_indices_cpu, batch.seg_lens_cpu, batch.lora_ranks_cpu)
    found: Tensor = lora_ops.sgemm_lora_b_fwd(inputs, weights, *told, offsets, base)
    return found


def _pool(slots: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(slots)
    slices = len(OFFSETS) - 1
    a = torch.randn(slots, slices * ROOM, 48, generator=random)
    return a, torch.randn(slots, int(OFFSETS[-1]), ROOM, generator=random)


@pytest.mark.parametrize(
    ("lengths", "slots", "ranks"),
    [
        ([8] * 4, [0, 1, 2, 3], [8, 8, 8, 8]),
        ([1, 0, 45, 6, 2], [3, 0, 2, 1, 0], [8, 0, 1, 5]),
        ([7], [1], [8, 0, 8, 8]),
    ],
)
def test_both_products_are_sglangs_own(lengths: list[int], slots: list[int], ranks: list[int]) -> None:
    batch, (a, b) = _batch(lengths, slots, ranks), _pool(len(ranks))
    x, y = torch.randn(sum(lengths), 48), torch.randn(sum(lengths), int(OFFSETS[-1]))
    before = terms.counts[terms.OWN]
    thin = terms._down(_sglangs_down, x, a, batch, 3)
    assert torch.allclose(thin, _sglangs_down(x, a, batch, 3), rtol=1e-5, atol=1e-5)
    mine, theirs = y.clone(), y.clone()
    added = terms._up(_sglangs_up, thin, b, batch, OFFSETS, mine)
    assert added is mine, "SGLang's outputs are added to where they lie"
    assert torch.allclose(mine, _sglangs_up(thin, b, batch, OFFSETS, theirs), rtol=1e-5, atol=1e-5)
    assert terms.counts[terms.OWN] == before + 2
    bare = torch.cat([torch.full((n,), ranks[slot] == 0) for n, slot in zip(lengths, slots, strict=True)])
    assert torch.equal(mine[bare], y[bare]), "rows without an adapter keep their bits"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_sglangs_own_products(dtype: torch.dtype) -> None:
    batch, (a, b) = _batch([3, 2], [0, 1], [8, 8]), (part.to(dtype) for part in _pool(2))
    x, y = torch.randn(5, 48, dtype=dtype), torch.randn(5, int(OFFSETS[-1]), dtype=dtype)
    before, reason = terms.counts.copy(), f"{dtype} on cpu"
    thin = terms._down(_sglangs_down, x, a, batch, 3)
    added = terms._up(_sglangs_up, thin, b, batch, OFFSETS, y.clone())
    assert torch.equal(added, _sglangs_up(_sglangs_down(x, a, batch, 3), b, batch, OFFSETS, y))
    assert terms.counts - before == {reason: 2}


def test_what_the_kernel_cannot_take_is_sglangs_own_product() -> None:
    (a, b), x = _pool(2), torch.randn(5, 48)
    before = terms.counts.copy()
    whole = _batch([3, 2], [0, 1], [8, 8])
    thin = terms._down(_sglangs_down, x, a, _batch([3, 2], [0, 1], [8, 8], graph=True), 3)
    assert torch.equal(thin, _sglangs_down(x, a, whole, 3))
    longer = _batch([3, 9], [0, 1], [8, 8])  # the head's rows, where SGLang has left some out
    assert torch.equal(terms._down(_sglangs_down, x, a, longer, 3), _sglangs_down(x, a, longer, 3))
    narrow = torch.randn(5, 36), a[:, :, :36].contiguous()  # no multiple of any vector
    assert torch.equal(terms._down(_sglangs_down, *narrow, whole, 3), _sglangs_down(*narrow, whole, 3))
    assert torch.equal(
        terms._up(_sglangs_up, thin, b, whole, OFFSETS, None), _sglangs_up(thin, b, whole, OFFSETS, None)
    )
    assert (terms.counts - before).total() == 4
    assert terms.counts[terms.OWN] == before[terms.OWN]


def test_the_kernel_runs_in_sglangs_process(loaded: Loaded, server: Server) -> None:
    embedded, sglang = engines(loaded, server, activated=False)
    before = server.command("terms")
    requests, lanes = requests_of(loaded[1]), [*SIGNS, BASE]
    found = sglang.score(requests, lanes).values
    assert worst(found[:1], found[1:2]) > 0.1, "the signs must differ, or nothing is tested"
    assert worst(found, embedded.score(requests, lanes).values) < TOLERANCE
    after = server.command("terms")
    assert after.pop(terms.OWN) - before.pop(terms.OWN, 0) >= 2 * 2 * LAYERS, "two products of two modules a layer"
    assert after == before, "nothing else was left to SGLang"
    sglang.reset()
