"""Keys and values come back from disk bit for bit, or not at all."""

import os
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from spilling import (
    BITS,
    FIRST,
    HEADS,
    IDENTITY,
    LAYERS,
    LONGER,
    OTHER,
    ROW_BYTES,
    SLOTS,
    WIDTH,
    empty_pool,
    fetch,
    flip_last_byte,
    of_prefixes,
    reopened,
    same_bits,
    store,
    stored,
)

from twinpass.cache import spill as spill_module
from twinpass.cache.pool import Pool
from twinpass.cache.spill import Spill
from twinpass.core import Tokens


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
