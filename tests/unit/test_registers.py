"""What the processor is known to have follows what Numba is told to compile for."""

import pytest
from llvmlite import binding
from numba.core import config

from twinpass.perturb.gemm.registers import _width, features


def test_features_are_read_as_numba_is_told_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CPU_FEATURES", "+avx2,-fma,,+sse4.2")
    assert features() == {"avx2": True, "fma": False, "sse4.2": True}
    monkeypatch.setattr(config, "CPU_FEATURES", "")
    assert features() == {}


def test_a_processor_that_is_only_named_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CPU_FEATURES", None)
    monkeypatch.setattr(config, "ENABLE_AVX", True)
    monkeypatch.setattr(config, "CPU_NAME", "generic")
    assert features() == {}
    monkeypatch.setattr(config, "CPU_NAME", None)
    assert features() == binding.get_host_cpu_features()
    monkeypatch.setattr(config, "ENABLE_AVX", False)
    assert features() == {}


@pytest.mark.parametrize(
    ("known", "width"),
    [("+avx512f", 16), ("+avx2,+fma", 8), ("+avx2", 0), ("+fma", 0), ("+avx2,+fma,-avx512f", 8), ("", 0)],
)
def test_a_register_holds_as_many_numbers_as_one_instruction_multiplies_and_adds(
    known: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "CPU_FEATURES", known)
    assert _width() == width
