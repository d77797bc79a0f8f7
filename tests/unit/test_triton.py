"""The Triton kernels without a GPU: what they compile to (``make test-interpreted`` runs them under Triton's interpreter)."""

import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiers import some_fast

from twinpass.errors import ModelError
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution
from twinpass.perturb.shard import Shard

Compile = Callable[[Callable[[], object]], list[str]]


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "twinpass.perturb.triton_draw", raising=False)
    with pytest.raises(ModelError, match=r"by Triton \(.*triton.*\): pip install triton"):
        import_module("twinpass.perturb.triton_draw")


class FakeDriver:
    """Stands in for a GPU of compute capability 9.0 until something has to be launched."""

    def get_current_device(self) -> int:
        return -1

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compile:
    """Runs a call and returns the PTX of the programs that it would have launched."""
    triton = pytest.importorskip("triton")
    jit = triton.runtime.jit.JITFunction
    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET=1: Triton compiles nothing in this process")
    run, found = jit.run, []

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        found.append(run(self, *arguments, grid=grid, warmup=True, **named).asm["ptx"])
        if "outside" in named:
            named["outside"].fill_(1)

    def compiled(call: Callable[[], object]) -> list[str]:
        found.clear()
        call()
        return list(found)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", FakeDriver())
    monkeypatch.setattr(jit, "run", compile_only)
    return compiled


def accumulate(w: torch.Tensor, shard: Shard, distribution: Distribution) -> None:
    from twinpass.perturb import triton_kernels

    triton_kernels.accumulate(w, np.array([2**63], np.uint64), np.ones(1), 2**64 - 1, 2**32, distribution, shard)


def lattice_add(w: torch.Tensor, shard: Shard, distribution: Distribution) -> None:
    from twinpass.perturb import triton_kernels

    terms = (np.ones(2, np.uint64), np.ones(2, np.int64), np.ones(2), np.ones(2, np.int64))
    triton_kernels.lattice_add(w, *terms, 5, 6, 2.0**-22, 2**24, distribution, shard)


class TestCompiled:
    @pytest.mark.table
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("distribution", some_fast(DISTRIBUTIONS, ["gaussian"]))
    def test_rounds_every_product_and_moves_16_bytes_at_once(
        self, compiled: Compile, distribution: Distribution, dtype: torch.dtype
    ) -> None:
        w = torch.zeros(4096, dtype=dtype)
        (ptx,) = compiled(lambda: accumulate(w, Shard(64, 1024, 4096), distribution))
        assert not re.search(r"\b(fma|mad)\.\w*\.?f32|\.ftz\b|sqrt\.approx", ptx)
        assert "mul.rn.f32" in ptx
        assert "add.rn.f32" in ptx
        assert "ld.global.v4.b32" in ptx
        assert "st.global.v4.b32" in ptx
        assert ("sqrt.rn.f32" in ptx) == (distribution == "gaussian")

    @pytest.mark.parametrize("distribution", some_fast(["binomial", "rademacher"], ["rademacher"]))
    def test_the_lattice_and_its_undoing(self, compiled: Compile, distribution: Distribution) -> None:
        there, back = compiled(lambda: lattice_add(torch.zeros(4096), Shard.whole(4096), distribution))
        for ptx in (there, back):
            assert not re.search(r"\b(fma|mad)\.\w*\.?f(32|64)", ptx)
            assert "st.global.v4.b32" in ptx

    @pytest.mark.parametrize("shard", [Shard(1, 1, 1), Shard(2**31, 5, 2**40 + 1), Shard(0, 1, 2**63 - 1)], ids=str)
    def test_shards_whose_numbers_have_types_of_their_own(self, compiled: Compile, shard: Shard) -> None:
        """Triton makes a constant of a 1, and types of 32 or 64 bits of other numbers."""
        assert compiled(lambda: accumulate(torch.zeros(shard.width), shard, "rademacher"))

    def test_the_other_programs(self, compiled: Compile) -> None:
        from twinpass.perturb import triton_kernels

        w, rows, out = torch.zeros(6, 3, dtype=torch.bfloat16), torch.tensor([1]), torch.zeros(1, 3)
        small, lanes, bounds, keys = (
            torch.zeros(9),
            torch.zeros(2, 9),
            np.array([0, 5, 9]),
            np.array([1, 2**63], np.uint64),
        )
        calls: list[Callable[[], object]] = [
            lambda: triton_kernels.fill(out, 1, 2**63, 2**31, "gaussian"),
            lambda: triton_kernels.perturb(
                w.view(-1), w.view(1, -1), np.ones(1), 1, 5, "binomial", Shard.contiguous(1, w.numel())
            ),
            lambda: triton_kernels.gather(w, rows, out.bfloat16(), 1.0, 2**64 - 1, 1, "gaussian"),
            lambda: triton_kernels.perturb_each(small, bounds, lanes, np.ones(2), 2**63, keys, "gaussian"),
            lambda: triton_kernels.accumulate_each(small, bounds, keys, np.ones(2), keys, "binomial"),
        ]
        for call in calls:
            (ptx,) = compiled(call)
            assert not re.search(r"\b(fma|mad)\.\w*\.?f32", ptx)
