"""What is damaged, gone or somebody else's on disk is not used, and neither is what depends on it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from spilling import FIRST, IDENTITY, LAYERS, LONGER, OTHER, fetch, flip_last_byte, reopened, store, stored

from twinpass.cache.spill import Spill


def replace(old: bytes, new: bytes) -> Callable[[Path], None]:
    """Change metadata, keeping its length."""

    def damage(path: Path) -> None:
        whole = path.read_bytes()
        assert whole.count(old) == 1
        assert len(old) == len(new)
        path.write_bytes(whole.replace(old, new))

    return damage


def test_a_shard_of_another_model_under_this_ones_name(tmp_path: Path) -> None:
    path = stored(tmp_path, (FIRST, 0))
    store(Spill(tmp_path / "theirs", IDENTITY | {"base": "4567"}, LAYERS), (FIRST, 0))
    (theirs,) = (tmp_path / "theirs").iterdir()
    theirs.replace(path)
    with pytest.warns(UserWarning, match=f"{path.name} cannot be used.*it was written for another model"):
        assert fetch(reopened(tmp_path), FIRST) == []


def test_a_shard_of_fewer_layers(tmp_path: Path) -> None:
    stored(tmp_path, (FIRST, 0))
    with pytest.warns(UserWarning, match="it was written for another model"):
        assert fetch(Spill(tmp_path, IDENTITY, LAYERS + 1), FIRST) == []


def test_damaged_tensors_are_not_used_and_neither_is_what_depends_on_them(tmp_path: Path) -> None:
    path = stored(tmp_path, (FIRST, 0))
    stored(tmp_path, (LONGER, 3))
    stored(tmp_path, (OTHER, 0))
    flip_last_byte(path)
    spill = reopened(tmp_path)
    with pytest.warns(UserWarning, match=f"{path.name} cannot be used, what it holds is computed again: its checksum"):
        assert fetch(spill, LONGER) == []
    assert fetch(spill, FIRST) == []
    assert fetch(spill, OTHER) == [0, 1]
    store(spill, (LONGER, 0))
    assert fetch(spill, LONGER) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("damage", [flip_last_byte, replace(b'"keys":{"dtype":"F32"', b'"keys":{"dtype":"I32"')])
def test_a_prefix_of_damaged_tensors_is_used(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    stored(tmp_path, (FIRST, 0))
    damage(stored(tmp_path, (LONGER, 3)))
    spill = reopened(tmp_path)
    with pytest.warns(UserWarning, match="its checksum"):
        assert fetch(spill, LONGER) == [0, 1, 2]
    assert fetch(spill, LONGER) == [0, 1, 2]


def test_what_a_damaged_shard_holds_is_looked_for_in_the_others(tmp_path: Path) -> None:
    flip_last_byte(stored(tmp_path, (FIRST, 0)))
    spill = reopened(tmp_path)
    stored(tmp_path, (FIRST, 0))
    with pytest.warns(UserWarning, match="its checksum"):
        assert fetch(spill, FIRST) == [0, 1, 2]


@pytest.mark.parametrize(
    "damage",
    [
        replace(b"[1, 2, 3], 0, 0]", b"[1, 2, 9], 0, 0]"),
        replace(b"[7, 8], 0, 3]", b"[7, 8], 0, 1]"),
        replace(b"[7, 8], 0, 3]", b"[7, 8], 0, 9]"),
        replace(b"[7, 8], 0, 3]", b"[7, 8], {, 3]"),
        replace(b"twinpass-kv-1", b"twinpass-kv-9"),
        replace(b'"check"', b'"chess"'),
    ],
    ids=["token", "row", "row outside", "no json", "format", "no checksum"],
)
def test_damaged_metadata(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = stored(tmp_path, (FIRST, 0), (OTHER, 0))
    stored(tmp_path, ((5,) * 9, 0))
    damage(path)
    with pytest.warns(UserWarning, match=f"{path.name} cannot be used"):
        spill = reopened(tmp_path)
    assert fetch(spill, (1, 2, 9)) == fetch(spill, FIRST) == fetch(spill, OTHER) == []
    assert fetch(spill, (5,) * 9) == list(range(9))


@pytest.mark.parametrize("keep", [0, 7, 100, -1], ids=["nothing", "length", "header", "all but a byte"])
def test_truncated(tmp_path: Path, keep: int) -> None:
    path = stored(tmp_path, (FIRST, 0))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.warns(UserWarning, match=f"{path.name} cannot be used"):
        spill = reopened(tmp_path)
    assert fetch(spill, FIRST) == []


def test_not_a_shard_at_all(tmp_path: Path) -> None:
    path = stored(tmp_path, (FIRST, 0))
    path.with_stem(path.stem + "0").write_text("something else " * 40)
    with pytest.warns(UserWarning, match="cannot be used"):
        spill = reopened(tmp_path)
    assert fetch(spill, FIRST) == [0, 1, 2]


def test_truncated_after_the_folder_was_opened(tmp_path: Path) -> None:
    path = stored(tmp_path, (FIRST, 0))
    spill = reopened(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=f"{path.name} cannot be used"):
        assert fetch(spill, FIRST) == []


@pytest.mark.parametrize("read_before", [False, True])
def test_removed_after_the_folder_was_opened(tmp_path: Path, read_before: bool) -> None:
    path = stored(tmp_path, (FIRST, 0))
    spill = reopened(tmp_path)
    if read_before:
        fetch(spill, FIRST)
    path.unlink()
    with pytest.warns(UserWarning, match=f"{path.name} cannot be used"):
        assert fetch(spill, FIRST) == []


# --- whose a file is


def as_link(path: Path) -> None:
    path.replace(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [as_link, as_pipe, as_folder])
@pytest.mark.parametrize("when", ["before it is opened", "before it is read", "after it was read"])
def test_what_is_no_plain_file_is_left_out_and_nothing_waits_for_it(
    tmp_path: Path, change: Callable[[Path], None], when: str
) -> None:
    path = stored(tmp_path, (FIRST, 0))
    if when == "before it is opened":
        change(path)
        with pytest.warns(UserWarning, match="it is no plain file"):
            spill = reopened(tmp_path)
    else:
        spill = reopened(tmp_path)
        if when == "after it was read":
            assert fetch(spill, FIRST) == [0, 1, 2]
        change(path)
        with pytest.warns(UserWarning, match="it is no plain file"):
            assert fetch(spill, FIRST) == []
    assert fetch(spill, FIRST) == []


def test_a_shard_of_another_user_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path, (FIRST, 0))
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    owner = (tmp_path.stat().st_uid,)
    if owner == (0,):
        (path,) = tmp_path.iterdir()
        os.chown(path, 1234, -1)
        owner = (1234,)
    with pytest.warns(UserWarning, match=f"written by another user .number {owner[0]}"):
        assert fetch(reopened(tmp_path), FIRST) == []


def test_a_shard_that_changes_after_it_was_read_is_checked_again(tmp_path: Path) -> None:
    path = stored(tmp_path, (FIRST, 0))
    spill = reopened(tmp_path)
    assert fetch(spill, FIRST) == [0, 1, 2]
    flip_last_byte(path)
    with pytest.warns(UserWarning, match="its checksum does not match"):
        assert fetch(spill, FIRST) == []
