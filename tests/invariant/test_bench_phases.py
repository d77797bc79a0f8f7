"""Where a step's time goes: clocks that listen to phases, and the products that a step consists of."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import benching
import numpy as np
import pytest
import tiny
from benching import ACTIVATED, FULL, Ticks, engine_of

from twinpass.bench import gemm, phases
from twinpass.bench.phases import PHASES, Clock
from twinpass.cli.main import main
from twinpass.core import BASE, Lane, Probe
from twinpass.phases import phase

untold = benching.untold

pytestmark = pytest.mark.usefixtures("any_processor")


def test_clocks_give_every_phase_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "time", Ticks())
    session = engine_of(tiny.config(tmp_path, **FULL))
    requests = session.plan.objective.requests(session.plan.train[:4])
    clock = Clock()
    with clock.running():
        session.engine.score(requests, [Lane(Probe(1), 1, 1e-3), Lane(Probe(1), -1, 1e-3)])
        session.engine.update([])
    shares = clock.shares()
    assert tuple(shares) == PHASES
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(share > 0 for share in shares.values())
    counted = dict(clock.seconds)
    session.engine.score(requests, [BASE])
    assert clock.seconds == counted


def test_a_phase_takes_its_time_from_the_one_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "time", Ticks(0, 0, 1, 3, 10, 12, 13))
    clock = Clock()
    with clock.running():
        phase("linear")(phase("noise")(lambda: None))()
    assert {name: seconds for name, seconds in clock.seconds.items() if seconds} == {
        "other": 1 + 1,
        "linear": 2 + 2,
        "noise": 7,
    }


def test_forming_a_product_s_weights_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call, for no rows, tells how long; it is no part of the step's time."""
    monkeypatch.setattr(phases, "time", Ticks(0, 0, 1, 2, 4, 14, 15, 16))
    clock, rows = Clock(), list[tuple[int, int]]()

    @phase("product")
    def multiply(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> str:
        rows.append((x.shape[1], y.shape[1]))
        return "done"

    with clock.running():
        assert phase("linear")(multiply)(np.zeros((2, 3)), y=np.zeros((2, 3, 4))) == "done"
    assert rows == [(0, 0), (3, 3)]
    assert {name: seconds for name, seconds in clock.seconds.items() if seconds} == {
        "other": 1 + 1,
        "linear": 1 + 11 - 2,
        "noise": 2,
    }


@pytest.mark.parametrize(("sections", "times"), [(FULL, 2), (ACTIVATED, 1)], ids=["full", "activated"])
def test_products_are_those_of_distinct_tokens(tmp_path: Path, sections: Mapping[str, Any], times: int) -> None:
    """Each lane multiplies its own weights, or all share the base's; rows are what the accounting counts."""
    session = engine_of(tiny.config(tmp_path, **sections))
    engine = session.engine
    lanes = [Lane(Probe(1), 1, 1e-3), Lane(Probe(1), -1, 1e-3)]
    requests = session.plan.objective.requests(session.plan.train[:4])
    engine.score(requests, lanes)
    with gemm.recorded(engine.model, set(engine.parameters), len(lanes)) as shapes:
        work = engine.score(requests, lanes).work
    assert shapes
    assert {shape.times for shape in shapes} == {times}
    hidden = engine.model.config.hidden_size
    queries = [s for s in shapes if s.columns == hidden and s.rows * s.times * engine.layers == work.computed]
    assert len(queries) >= engine.layers
    handles = [module._forward_pre_hooks for module in engine.model.modules()]
    assert not any(handles)


@pytest.mark.usefixtures("untold")
def test_products_in_bfloat16_are_timed_beside_our_own_in_float32(tmp_path: Path) -> None:
    path, file = tiny.config(tmp_path, **FULL), tmp_path / "result.json"
    chosen = ["--compute-dtype", "bfloat16", "--repeats", "2", "--probes", "8", "--out", str(file)]
    assert main(["bench", str(path), *chosen]) == 0
    found = json.loads(file.read_text())
    assert found["config"]["engine"]["compute_dtype"] == found["compute_dtype"] == "bfloat16"
    low, high = found["spread_float32"]["ours_float32_step_seconds"]
    assert 0 < low <= found["ours_float32_step_seconds"] <= high
    slow, fast = found["spread_float32"]["ratio_to_float32"]
    assert slow <= found["ratio_to_float32"] <= fast
    assert 1e-3 < found["relative_error"] < 0.1


def test_sums_and_differences_take_half_as_many_products_again() -> None:
    assert gemm.paired([gemm.Shape(10, 3, 4, 2)]) == [gemm.Shape(20, 3, 4), gemm.Shape(10, 3, 4)]
    assert gemm.paired([gemm.Shape(20, 3, 4)]) == [gemm.Shape(20, 3, 4)]
