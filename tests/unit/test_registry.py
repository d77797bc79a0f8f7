"""Other packages' kinds: found by name, imported when chosen, refused with the package's name if they are of no use."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from extensions import install

from twinpass.config.load import parse
from twinpass.config.schema import SECTIONS
from twinpass.errors import ConfigError

HALF = """
from typing import ClassVar

from pydantic.dataclasses import dataclass

from twinpass.estimate.base import Estimator
from twinpass.settings import STRICT, Positive


@dataclass(frozen=True, config=STRICT)
class Half(Estimator):
    bias_order: ClassVar[int] = 1
    share: Positive = 0.5

    def lanes(self, probes, eps):
        return []

    def estimate(self, probes, eps, losses):
        raise NotImplementedError


class Loose(Half):
    def __init__(self, **anything):
        pass


@dataclass(frozen=True, config=STRICT)
class Partial(Estimator):
    bias_order: ClassVar[int] = 1


@dataclass(config=STRICT)
class Soft:
    pass
"""
OLDER = """
from twinpass.reuse.base import Policy


class Older(Policy):
    def plan(self, lanes, situation):
        return lanes
"""
"""Of a form that is refused when it is imported."""

ESTIMATORS = "twinpass.estimators"


def chosen(estimator: Mapping[str, Any]) -> Any:
    values: dict[str, dict[str, Any]] = {
        "model": {"path": "some/model"},
        "trainable": {"kind": "full"},
        "task": {"train": "a.jsonl", "eval": "b.jsonl", "prompt": "{text}", "options": [" no", " yes"]},
        "estimator": dict(estimator),
        "run": {"out": "runs/it"},
    }
    return parse(values, "it.toml", Path("/nowhere")).estimator


def problem(estimator: Mapping[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        chosen(estimator)
    (only,) = caught.value.problems
    return only


def test_a_kind_of_another_package_is_chosen_by_name_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, {"half_of.py": HALF}, {ESTIMATORS: {"half": "half_of:Half"}})
    found = chosen({"kind": "half", "share": 0.25, "probes": 3})
    assert (type(found).__name__, found.share, found.probes) == ("Half", 0.25, 3)
    assert problem({"kind": "half", "shar": 1.0}).startswith("[estimator] shar: no such key (did you mean 'share'?)")
    assert problem({"kind": "half", "share": -1.0}).startswith("[estimator] share:")


def test_names_are_had_without_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        tmp_path, monkeypatch, {"half_of.py": "raise SystemExit('imported')"}, {ESTIMATORS: {"half": "half_of:Half"}}
    )
    assert type(chosen({"kind": "spsa"})).__name__ == "Spsa"
    message = problem({"kind": "hal"})
    assert "did you mean 'half'?" in message
    assert message.endswith("choose from spsa, one_sided, jvp, line, gauss_newton, backprop, feedback, half")
    assert "half_of" not in sys.modules


def test_a_name_of_ours_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, {"half_of.py": HALF}, {ESTIMATORS: {"spsa": "half_of:Half"}})
    assert type(chosen({"kind": "spsa"})).__name__ == "Spsa"
    assert list(SECTIONS["estimator"].kinds).count("spsa") == 1


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nowhere_at_all:Half", "cannot be imported: No module named 'nowhere_at_all'"),
        ("half_of:Hal", "cannot be imported: module 'half_of' has no attribute 'Hal'"),
        ("older:Older", "cannot be imported: Older: plan() is asked of what planner() returns"),
        ("half_of:Soft", "is no complete twinpass.estimate.base.Estimator; its entry point in 'twinpass.estimators'"),
        ("half_of:Partial", "is no complete twinpass.estimate.base.Estimator"),
        ("half_of:STRICT", "is no complete twinpass.estimate.base.Estimator"),
        ("half_of:Loose", "does not check its settings; declare it with @pydantic.dataclasses.dataclass(frozen=True"),
    ],
)
def test_what_is_of_no_use_is_refused_with_its_package(
    place: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, {"half_of.py": HALF, "older.py": OLDER}, {ESTIMATORS: {"half": place}})
    message = problem({"kind": "half"})
    assert message.startswith(f"[estimator] kind: 'half' is {place} of some-extension 1.0, which ")
    assert words in message


def test_two_packages_cannot_share_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, place in (("one", "half_of:Half"), ("other", "half_of:Partial")):
        install(tmp_path / name, monkeypatch, {"half_of.py": HALF}, {ESTIMATORS: {"half": place}}, name)
    assert problem({"kind": "half"}) == (
        "[estimator] kind: 'half' is offered by one 1.0 and other 1.0; uninstall all but one"
    )


@pytest.mark.parametrize("section", [name for name, section in SECTIONS.items() if hasattr(section.kinds, "group")])
def test_every_family_is_open_and_every_kind_of_ours_is_complete(section: str) -> None:
    family: Any = SECTIONS[section].kinds
    assert family.group.startswith("twinpass.")
    for name in family.own:
        assert family._checked(name, family[name]) is family[name]
