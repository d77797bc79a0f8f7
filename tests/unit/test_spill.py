"""Keys and values come back from disk bit for bit, or not at all."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from twinpass.cache import spill as spill_module
from twinpass.cache.pool import Pool
from twinpass.cache.spill import Spill
from twinpass.core import Tokens

LAYERS, HEADS, WIDTH, SLOTS = 2, 2, 4, 24
ROW_BYTES = 4 * LAYERS * 2 * HEADS * WIDTH
IDENTITY = {"base": "0123", "dtype": "torch.float32"}
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
FIRST, LONGER, OTHER = (1, 2, 3), (1, 2, 3, 4, 5), (7, 8)


def of_prefixes(tokens: Tokens, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random bits, NaN and all, that only depend on the tokens up to there: [layers, 2, n, heads, width]."""
    each = []
    for stop in range(1, len(tokens) + 1):
        generator = torch.Generator().manual_seed(hash(tokens[:stop]) % 2**32)
        shape, bits = (LAYERS, 2, HEADS, WIDTH), torch.iinfo(BITS[dtype])
        each.append(torch.randint(bits.min, bits.max, shape, generator=generator, dtype=BITS[dtype]))
    return torch.stack(each, 2).view(dtype)


def empty_pool(dtype: torch.dtype = torch.float32) -> Pool:
    pool, everywhere = Pool(SLOTS), torch.arange(SLOTS)
    for layer in range(LAYERS):
        pool.write(layer, everywhere, *torch.zeros(2, SLOTS, HEADS, WIDTH, dtype=dtype))
    return pool


def content(pool: Pool, slots: Sequence[int]) -> Tensor:
    """[layers, 2, n, heads, width]."""
    at = torch.tensor(slots, dtype=torch.long)
    return torch.stack([torch.stack(pool.read(layer, at)) for layer in range(LAYERS)])


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(BITS[one.dtype]), other.view(BITS[other.dtype]))


def store(spill: Spill, *sequences: tuple[Tokens, int], dtype: torch.dtype = torch.float32) -> None:
    """Write a file of the ends of these sequences, which lie in the pool's last slots, backwards."""
    new = torch.cat([of_prefixes(tokens, dtype)[:, :, start:] for tokens, start in sequences], 2)
    slots = np.arange(SLOTS - 1, SLOTS - 1 - new.shape[2], -1)
    pool = empty_pool(dtype)
    for layer in range(LAYERS):
        pool.write(layer, torch.from_numpy(slots), *new[layer])
    spill.store(sequences, slots, pool)


def stored(folder: Path, *sequences: tuple[Tokens, int]) -> Path:
    """Write a file; its path."""
    before = set(folder.iterdir())
    store(Spill(folder, IDENTITY, LAYERS), *sequences)
    (path,) = set(folder.iterdir()) - before
    return path


def fetch(
    spill: Spill, tokens: Tokens, wanted: Sequence[int] | None = None, dtype: torch.dtype = torch.float32
) -> list[int]:
    """What is found of ``tokens``: those slots have the right content, all others are as they were."""
    asked = list(range(len(tokens))) if wanted is None else list(wanted)
    pool, slots = empty_pool(dtype), np.arange(len(tokens))[::-1] + 3
    found: list[int] = spill.fetch(tokens, np.array(asked, np.int64), slots, pool).tolist()
    assert same_bits(content(pool, slots[found].tolist()), of_prefixes(tokens, dtype)[:, :, found])
    untouched = sorted(set(range(SLOTS)) - set(slots[found].tolist()))
    assert not content(pool, untouched).view(BITS[dtype]).any()
    return found


def reopened(folder: Path) -> Spill:
    return Spill(folder, IDENTITY, LAYERS)


def flip_last_byte(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)


def replace(old: bytes, new: bytes) -> Callable[[Path], None]:
    """Change metadata, keeping its length."""

    def damage(path: Path) -> None:
        whole = path.read_bytes()
        assert whole.count(old) == 1
        assert len(old) == len(new)
        path.write_bytes(whole.replace(old, new))

    return damage


@pytest.mark.parametrize("dtype", BITS)
def test_the_next_run_finds_the_same_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    spill = Spill(tmp_path / "made" / "here", IDENTITY, LAYERS)
    store(spill, (FIRST, 0), (OTHER, 0), dtype=dtype)
    assert spill.written == sum(path.stat().st_size for path in spill.folder.iterdir()) > 0
    for one in (spill, reopened(spill.folder)):
        assert fetch(one, FIRST, dtype=dtype) == [0, 1, 2]
        assert fetch(one, (*OTHER, 9), dtype=dtype) == [0, 1]
        assert fetch(one, (1, 2, 9), dtype=dtype) == [0, 1]
        assert fetch(one, (3,), dtype=dtype) == []
    assert reopened(spill.folder).written == 0


def test_files_are_as_large_as_they_may_be_or_of_one_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill_module, "FILE_BYTES", 4 * ROW_BYTES)
    store(Spill(tmp_path, IDENTITY, LAYERS), (OTHER, 0), ((*OTHER, 7), 2), (LONGER, 0), (FIRST, 0))
    rows = []
    for path in sorted(tmp_path.iterdir()):
        with safe_open(path, framework="pt") as file:
            rows.append(file.get_slice("keys").get_shape()[1])
    assert rows == [3, 5, 3]
    spill = reopened(tmp_path)
    for tokens in ((*OTHER, 7), LONGER, FIRST):
        assert fetch(spill, tokens) == list(range(len(tokens)))


def test_a_prefix_in_one_shard_and_its_end_in_another(tmp_path: Path) -> None:
    stored(tmp_path, (FIRST, 0))
    stored(tmp_path, (LONGER, 3), ((1, 2, 6), 2), (OTHER, 0))
    stored(tmp_path, ((*LONGER, 6, 7), 5))
    spill = reopened(tmp_path)
    assert fetch(spill, (*LONGER, 6, 7)) == [0, 1, 2, 3, 4, 5, 6]
    assert fetch(spill, (1, 2, 6)) == [0, 1, 2]
    assert fetch(spill, OTHER) == [0, 1]


def test_a_prefix_that_comes_earlier_in_the_same_shard(tmp_path: Path) -> None:
    stored(tmp_path, (FIRST, 0), (LONGER, 3))
    assert fetch(reopened(tmp_path), LONGER) == [0, 1, 2, 3, 4]


def test_what_is_on_disk_twice(tmp_path: Path) -> None:
    stored(tmp_path, (FIRST, 0))
    stored(tmp_path, (LONGER, 0))
    assert fetch(reopened(tmp_path), LONGER) == [0, 1, 2, 3, 4]


def test_an_end_without_its_prefix_is_not_found(tmp_path: Path) -> None:
    stored(tmp_path, (LONGER, 3))
    assert fetch(reopened(tmp_path), LONGER) == []


@pytest.mark.parametrize("identity", [IDENTITY | {"base": "4567"}, IDENTITY | {"dtype": "torch.bfloat16"}, {}])
def test_another_model_finds_nothing(tmp_path: Path, identity: dict[str, str]) -> None:
    stored(tmp_path, (FIRST, 0))
    other = Spill(tmp_path, identity, LAYERS)
    assert fetch(other, FIRST) == []
    store(other, (OTHER, 0))
    assert fetch(reopened(tmp_path), OTHER) == []
    assert fetch(Spill(tmp_path, dict(reversed(IDENTITY.items())), LAYERS), FIRST) == [0, 1, 2]


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


def test_a_crash_while_writing_leaves_nothing_to_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    spill = reopened(tmp_path)
    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store(spill, (FIRST, 0))
    monkeypatch.undo()
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    spill = reopened(tmp_path)
    assert fetch(spill, FIRST) == []
    store(spill, (FIRST, 0))
    assert fetch(reopened(tmp_path), FIRST) == [0, 1, 2]


def test_two_runs_write_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    one, two = reopened(tmp_path), reopened(tmp_path)
    store(one, (FIRST, 0))
    store(two, (OTHER, 0))
    store(two, (FIRST, 0))
    assert len(list(tmp_path.iterdir())) == 3
    assert fetch(one, OTHER) == []
    assert fetch(one, FIRST) == fetch(two, FIRST) == [0, 1, 2]
    assert fetch(reopened(tmp_path), FIRST) == [0, 1, 2]
    assert fetch(reopened(tmp_path), OTHER) == [0, 1]


def test_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    path = stored(tmp_path, (FIRST, 0))
    stored(tmp_path, (LONGER, 3))
    assert fetch(reopened(tmp_path), LONGER, wanted=[0, 2, 4, 5]) == [0, 2, 4]
    assert fetch(reopened(tmp_path), LONGER, wanted=[4, 2, 0, 3]) == [4, 2, 0, 3]
    assert fetch(reopened(tmp_path), LONGER, wanted=[]) == []
    flip_last_byte(path)
    assert fetch(reopened(tmp_path), LONGER, wanted=[3, 4]) == [3, 4]


texts = st.lists(st.integers(0, 1), min_size=1, max_size=5).map(tuple)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(texts, min_size=1, max_size=3), max_size=4),
    texts,
    st.sets(st.integers(0, 5)),
    st.booleans(),
    st.sampled_from([1, 3 * ROW_BYTES, spill_module.FILE_BYTES]),
)
def test_any_sequences_in_any_files(
    files: list[list[Tokens]], tokens: Tokens, wanted: set[int], again: bool, size: int
) -> None:
    known: set[Tokens] = {()}
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(spill_module, "FILE_BYTES", size):
        spill = reopened(Path(folder))
        for file in files:
            runs = list[tuple[Tokens, int]]()
            for text in file:
                prefixes = [text[:n] for n in range(len(text) + 1)]
                start = sum(prefix in known for prefix in prefixes) - 1
                known.update(prefixes)
                if start < len(text):
                    runs.append((text, start))
            if runs:
                store(spill, *runs)
        spill = reopened(Path(folder)) if again else spill
        expected = [i for i in sorted(wanted) if i < len(tokens) and tokens[: i + 1] in known]
        assert fetch(spill, tokens, wanted=sorted(wanted)) == expected


def test_what_comes_after_a_shard_that_cannot_be_written_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kv"
    spill = Spill(folder, IDENTITY, LAYERS)
    monkeypatch.setattr(spill_module, "FILE_BYTES", ROW_BYTES)
    folder.rmdir()
    with pytest.warns(UserWarning, match="cannot be written") as warned:
        store(spill, (FIRST, 0), (OTHER, 0))
    assert len(warned) == 1


def test_a_folder_that_went_away_costs_the_run_nothing_but_the_spill(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    spill = Spill(folder, IDENTITY, LAYERS)
    folder.rmdir()
    with pytest.warns(UserWarning, match="cannot be written, the run goes on without it"):
        store(spill, (FIRST, 0))
    assert spill.written == 0
    assert not len(spill.fetch(FIRST, np.arange(3), np.arange(3), empty_pool()))


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


def test_what_a_crash_left_is_taken_away_once_it_is_old(tmp_path: Path) -> None:
    path = stored(tmp_path, (FIRST, 0))
    old, new = (path.with_name(f"{path.stem}{i}.part") for i in (1, 2))
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert fetch(reopened(tmp_path), FIRST) == [0, 1, 2]
    assert (old.exists(), new.exists()) == (False, True)


def test_what_was_begun_an_hour_ago_is_not_yet_old(tmp_path: Path) -> None:
    path = stored(tmp_path, (FIRST, 0))
    part = path.with_suffix(".part")
    part.write_bytes(b"half")
    os.utime(part, (1000, 1000))
    for now, there in ((4600.0, True), (4600.5, False)):
        with mock.patch("time.time", return_value=now):
            reopened(tmp_path)
        assert part.exists() == there


def test_a_model_may_have_a_single_layer(tmp_path: Path) -> None:
    pools = [Pool(SLOTS) for _ in range(2)]
    for pool in pools:
        pool.write(0, torch.arange(SLOTS), *torch.zeros(2, SLOTS, HEADS, WIDTH))
    written = of_prefixes(FIRST)[0]
    pools[0].write(0, torch.tensor([2, 3, 4]), *written)
    Spill(tmp_path, IDENTITY, 1).store([(FIRST, 0)], np.array([2, 3, 4]), pools[0])
    found = Spill(tmp_path, IDENTITY, 1).fetch(FIRST, np.arange(3), np.array([9, 8, 7]), pools[1])
    assert found.tolist() == [0, 1, 2]
    assert same_bits(torch.stack(pools[1].read(0, torch.tensor([9, 8, 7]))), written)
