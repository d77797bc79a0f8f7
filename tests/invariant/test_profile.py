"""``twinpass profile`` on a tiny model: every policy at every eps, from the command line to the plots."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from twinpass.cli.main import main
from twinpass.cli.profiling import POLICIES
from twinpass.config.schema import SECTIONS

EPS = ("1e-4", "1e-3")
KEYS = {
    "policy",
    "eps",
    "dtype",
    "hit_rate",
    "compute_saved",
    "relative_error",
    "correlation",
    "sign_agreement",
    "probes",
}
FULL: dict[str, Any] = {"trainable": {"kind": "full"}, "optimizer": {"lr": 1e-6, "steps": 4, "batch_size": 6}}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("profile")
    config = tiny.config(folder, **FULL)
    out = folder / "out"
    arguments = ["profile", str(config), "--eps", *EPS, "--probes", "6", "--out", str(out), "--jvp"]
    assert main([*arguments, "--copy", str(folder / "copy.json")]) == 0
    assert {"profile.json", "profile.png", "layers.png", "limits.png"} <= {path.name for path in out.iterdir()}
    assert (folder / "copy.json").read_bytes() == (out / "profile.json").read_bytes()
    loaded: dict[str, Any] = json.loads((out / "profile.json").read_text())
    return loaded


def rows(result: dict[str, Any], policy: str) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["policy"] == policy]


def test_a_row_for_each_policy_and_eps(result: dict[str, Any]) -> None:
    assert [(row["policy"], row["eps"]) for row in result["rows"]] == [(p, float(e)) for p in POLICIES for e in EPS]
    assert all(set(row) >= KEYS and row["probes"] == 6 for row in result["rows"])
    assert result["reference"] == "forward-mode derivative, float32"
    assert {"commit", "machine", "versions", "config", "recommendation"} <= set(result)


def test_exact_is_exact_and_the_others_are_not(result: dict[str, Any]) -> None:
    for row in rows(result, "exact"):
        assert (row["relative_error"], row["compute_saved"], row["sign_agreement"]) == (0.0, 0.0, 1.0)
        assert 0 < row["reference_error"] < 0.1
    assert all(row["relative_error"] > 0.05 for row in rows(result, "frozen"))
    low, high = rows(result, "reflected-all")
    assert 0 < low["relative_error"] < high["relative_error"] < 0.3


def test_work_is_counted_as_it_ran(result: dict[str, Any]) -> None:
    """With two probes the prefix runs 3 times instead of 4 under reflection and once when frozen; nothing else changes."""
    exact = rows(result, "exact")[0]["token_layers"]["computed"]
    for policy, passes in (("reflected-all", 3), ("frozen", 1)):
        saved = exact - rows(result, policy)[0]["token_layers"]["computed"]
        assert saved % (4 - passes) == 0
        prefix = saved // (4 - passes)
        assert rows(result, "reflected-all")[0]["compute_saved"] == pytest.approx(prefix / exact)
    one_sided = rows(result, "one_sided")[0]["token_layers"]
    assert one_sided["computed"] == exact * 3 // 4


def test_layers_have_drift_and_errors(result: dict[str, Any]) -> None:
    assert [layer["eps"] for layer in result["layers"]] == [float(eps) for eps in EPS]
    for layer in result["layers"]:
        assert len(layer["drift"]) == len(layer["errors"]) == 2
    small, large = (np.array(layer["drift"]) for layer in result["layers"])
    assert np.allclose(large / small, 10, rtol=0.3)


def test_bfloat16_is_held_against_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny.config(tmp_path, **FULL)
    file = tmp_path / "result.json"
    capsys.readouterr()
    chosen = ["--eps", "1e-3", "--probes", "2", "--policies", "exact", "--dtypes", "float32", "bfloat16"]
    assert main(["profile", str(config), *chosen, "--out", str(tmp_path / "out"), "--copy", str(file), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads(file.read_text())
    assert not said.err
    found = {row["dtype"]: row for row in json.loads(file.read_text())["rows"]}
    assert found["float32"]["reference_error"] == 0.0
    assert found["bfloat16"]["reference_error"] > 0.01


def test_where_prefixes_are_shared_exactly_what_applies_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.config(tmp_path, **{**FULL, "trainable": {"kind": "activated", "rank": 2}})
    assert main(["profile", str(config), "--eps", "1e-2", "--probes", "2", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert {row["policy"] for row in found["rows"]} == {"exact", "one_sided"}
    assert all(row["hit_rate"] > 0 for row in found["rows"])
    assert "comparing exact, one_sided" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "sections", "message"),
    [
        (["--probes", "1"], {}, "--probes 1: a fidelity needs at least 2"),
        (["--eps", "0"], {}, "--eps: expected positive numbers"),
        ([], {"estimator": {"kind": "one_sided"}}, 'set kind = "spsa"'),
        (
            ["--policies", "exact", "frozen", "reflected"],
            {"trainable": {"kind": "activated", "rank": 2}},
            "--policies frozen reflected: these weights share prefixes exactly",
        ),
        ([], {"reuse": {"policy": "nonsense"}}, "there is no 'nonsense'"),
    ],
)
def test_what_cannot_be_profiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sections: dict[str, Any], message: str
) -> None:
    config = tiny.config(tmp_path, **{**FULL, **sections})
    assert main(["profile", str(config), *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_approximate_policy_is_compared() -> None:
    approximate = {kind for kind in SECTIONS["reuse"].kinds.values() if kind.approximate}
    assert approximate <= {type(policy) for policy in POLICIES.values()}
