"""Products with weights that are formed where they are multiplied: those of the weights that other kernels write."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numeric
import numpy as np
import pytest
from llvmlite import binding
from numba.core import config
from numeric import Array

from twinpass.perturb import kernels
from twinpass.perturb.gemm import multiply, registers
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution
from twinpass.perturb.shard import Shard

one_thread, threads = numeric.one_thread, numeric.threads

pytestmark = pytest.mark.skipif(not multiply.AVAILABLE, reason="no instructions here that the products are made of")

SEED, KEY = 5, 2**63 + 7
SCALES = np.array([0.5, -0.5, 0.0])

SHAPES = [(0, 5, 3), (1, 1, 1), (3, 16, 32), (7, 130, 33), (8, 64, 64), (9, 48, 31), (21, 100, 70), (40, 257, 96)]
"""Rows, in, out: fewer rows than a tile has, whole tiles, and what is left over in each direction."""


def operands(rows: int, width: int, out: int) -> tuple[Array, Array]:
    generator = np.random.default_rng(1)
    x = generator.standard_normal((len(SCALES), rows, width), np.float32)
    return x, generator.standard_normal(out * width, np.float32)


def multiplied(x: Array, w: Array, distribution: Distribution = "binomial", module: ModuleType = multiply) -> Array:
    y = np.full((*x.shape[:2], w.size // x.shape[2]), np.nan, np.float32)
    module.multiply(x, w, SCALES, y, SEED, KEY, distribution)
    return y


def perturbed(w: Array, distribution: Distribution) -> Array:
    out = np.empty((len(SCALES), w.size), np.float32)
    kernels.perturb(w, out, SCALES, SEED, KEY, distribution, Shard.whole(w.size))
    return out


@pytest.mark.table
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_perturbed_weights(
    shape: tuple[int, int, int], distribution: Distribution, threads: int
) -> None:
    x, w = operands(*shape)
    weights = perturbed(w, distribution).reshape(len(SCALES), shape[2], shape[1])
    expected = np.einsum("lri,loi->lro", x.astype(np.float64), weights.astype(np.float64))
    size = np.einsum("lri,loi->lro", np.abs(x).astype(np.float64), np.abs(weights).astype(np.float64))
    assert np.all(np.abs(multiplied(x, w, distribution) - expected) <= size * shape[1] * 2.0**-24)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("width", [16, 37, 256])
def test_weights_have_the_bits_that_are_written_elsewhere(width: int, distribution: Distribution) -> None:
    """Rows that pick one weight each out of every column."""
    _, w = operands(1, width, 45)
    picks = np.broadcast_to(np.eye(width, dtype=np.float32), (len(SCALES), width, width)).copy()
    found = multiplied(picks, w, distribution).transpose(0, 2, 1)
    assert np.array_equal(found.reshape(len(SCALES), -1), perturbed(w, distribution))


@pytest.mark.parametrize(("first", "last"), [(0, 1), (3, 12), (39, 40), (0, 24)])
def test_a_rows_result_does_not_depend_on_the_others(first: int, last: int, threads: int) -> None:
    x, w = operands(40, 257, 1000)
    part = np.ascontiguousarray(x[:, first:last])
    assert np.array_equal(multiplied(part, w), multiplied(x, w)[:, first:last])


@pytest.mark.full
def test_narrower_registers_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with AVX2 and no AVX-512: compiled for eight at a time."""
    if registers.WIDTH < 16:
        pytest.skip("these are the narrow ones")
    monkeypatch.setattr(config, "CPU_FEATURES", "+avx2,+fma")
    narrow = copied(registers, "narrow_registers", tmp_path, monkeypatch)
    own = copied(multiply, "narrow_multiply", tmp_path, monkeypatch)
    assert (narrow.WIDTH, own.COLUMNS) == (8, 16)
    for shape in SHAPES:
        x, w = operands(*shape)
        assert np.array_equal(multiplied(x, w, module=own), multiplied(x, w))


def copied(module: ModuleType, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module once more, with a compiler's cache of its own."""
    file = folder / f"{name}.py"
    text = Path(str(module.__file__)).read_text()
    file.write_text(text.replace("from twinpass.perturb.gemm.registers", "from narrow_registers"))
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    found = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, found)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize(
    ("features", "width"),
    [({"avx512f": True}, 16), ({"avx2": True, "fma": True}, 8), ({"avx2": True, "fma": False}, 0), ({}, 0)],
)
@pytest.mark.parametrize("told", [False, True])
def test_what_a_processor_is_known_to_have(
    features: dict[str, bool], width: int, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's features, or those that Numba is told to compile for."""
    named = ",".join(f"{'+' if has else '-'}{name}" for name, has in features.items())
    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: {"avx512f": True} if told else features)
    monkeypatch.setattr(config, "CPU_NAME", "haswell" if told else None)
    monkeypatch.setattr(config, "CPU_FEATURES", named if told else None)
    assert registers._width() == width


def test_nothing_is_known_of_a_processor_by_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CPU_NAME", "haswell")
    monkeypatch.setattr(config, "CPU_FEATURES", None)
    assert registers._width() == 0
