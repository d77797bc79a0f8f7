"""One process at a time writes a folder, and whoever comes second is told who."""

import os
import socket
from pathlib import Path

import pytest

from twinpass.errors import BusyError, StorageError
from twinpass.train.lock import NAME, hold


def refused(folder: Path) -> str:
    with pytest.raises(BusyError) as caught, hold(folder):
        pass
    return str(caught.value)


def test_the_second_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    with hold(tmp_path):
        assert f"is being written by process {os.getpid()} on {socket.gethostname()!r}" in refused(tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is left of the lock"
    with hold(tmp_path):
        pass


def test_another_process_is_refused_and_its_crash_leaves_the_lock_free(tmp_path: Path) -> None:
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            with hold(tmp_path):
                os.write(write, b"x")
                os.kill(os.getpid(), 9)
        finally:
            os._exit(1)
    os.read(read, 1)
    os.waitpid(child, 0)
    assert (tmp_path / NAME).exists(), "the file of a process that was killed"
    with hold(tmp_path):
        assert str(os.getpid()) in refused(tmp_path)


def test_while_another_process_holds_it_its_id_is_named(tmp_path: Path) -> None:
    read, write = os.pipe()
    stay, go = os.pipe()
    if not (child := os.fork()):
        try:
            with hold(tmp_path):
                os.write(write, b"x")
                os.close(go)
                os.read(stay, 1)
        finally:
            os._exit(0)
    os.read(read, 1)
    assert f"process {child} on" in refused(tmp_path)
    os.write(go, b"x")
    os.waitpid(child, 0)
    with hold(tmp_path):
        pass


def test_a_holder_that_wrote_nothing_is_still_one(tmp_path: Path) -> None:
    with hold(tmp_path):
        (tmp_path / NAME).write_text("{")
        assert "another process" in refused(tmp_path)


def test_what_a_crash_left_in_it_is_written_over(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"pid": 1, "host": "' + 200 * "a" + '"}')
    with hold(tmp_path):
        assert f"process {os.getpid()} on {socket.gethostname()!r}" in refused(tmp_path)


def test_others_may_read_it_and_no_file_stays_open(tmp_path: Path) -> None:
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    with hold(tmp_path):
        refused(tmp_path)
        assert (tmp_path / NAME).stat().st_mode & 0o777 in (0o644, 0o640, 0o600)
    again = os.open(os.devnull, os.O_RDONLY)
    os.close(again)
    assert again == free


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("elsewhere"), lambda path: path.mkdir()])
def test_a_link_or_folder_in_its_place_is_refused(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / NAME)
    with pytest.raises(StorageError, match=r"\.lock cannot be locked"), hold(tmp_path):
        pass
