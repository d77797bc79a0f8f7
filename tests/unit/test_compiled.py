"""Compiled noise is that of the sources it runs beside, wherever its cache can be kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core import config

import twinpass
from twinpass.perturb import compiled
from twinpass.perturb.noise import UNIT, reference

CALLER = """
import numpy as np
from twinpass.perturb.compiled import FOLDER, kernel
from twinpass.perturb.draw import CODES, draw
from twinpass.perturb.noise import UNIT, name_key

@kernel()
def whole_unit(out, code, seed, high):
    draw(out, 0, 1, code, seed, high)

def main():
    z = np.empty(UNIT, np.float32)
    whole_unit(z, CODES["binomial"], np.uint64(7), np.uint64(name_key("w")))
    print(FOLDER)
    print(sum(whole_unit.stats.cache_hits.values()))
    print(*z)
"""
"""A module that compiles the noise into a function of its own, as ``kernels.py`` and others do, without what they import."""


class Copy:
    """An installation of its own, in which noise can be drawn by a new process."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.package, self._root, self._home = folder / "twinpass", folder, home
        shutil.copytree(Path(twinpass.__file__).parent, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "caller.py").write_text(CALLER)

    def draw(self) -> tuple[str, int, np.ndarray]:
        """The folder of the cache, how often it was of use, and the noise."""
        environment = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
        environment |= {"PYTHONPATH": str(self._root), "HOME": str(self._home), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", "import caller; caller.main()"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        folder, hits, numbers = done.stdout.splitlines()
        return folder, int(hits), np.array([float(each) for each in numbers.split()], np.float32)


@pytest.mark.full
def test_an_edit_in_a_file_that_is_imported_gives_the_new_noise(tmp_path: Path) -> None:
    copy, expected = Copy(tmp_path / "copy", tmp_path), reference(7, "w", 0, UNIT, "binomial")
    first, _, noise = copy.draw()
    assert np.array_equal(noise, expected)
    again, hits, noise = copy.draw()
    assert (again, hits) == (first, 1)
    assert np.array_equal(noise, expected)

    source = copy.package / "perturb" / "draw.py"
    before, times = source.read_text(), source.stat()
    after = before.replace("_i(8)) * _f(0.5)", "_i(8)) * _f(2.0)")
    assert after != before
    source.write_text(after)
    os.utime(source, (times.st_atime, times.st_mtime))
    changed, hits, noise = copy.draw()
    assert (changed != first, hits) == (True, 0)
    assert np.array_equal(noise, 4 * expected)


@pytest.mark.full
def test_an_installation_that_cannot_be_written_to_works(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy", tmp_path / "file")
    for place in (tmp_path / "file", copy.package / "perturb" / "__pycache__"):
        place.write_text("no folder")
    folder, hits, noise = copy.draw()
    assert (folder, hits) == ("None", 0)
    assert np.array_equal(noise, reference(7, "w", 0, UNIT, "binomial"))


def test_folders_are_tried_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    assert compiled.writable([tmp_path / "file", tmp_path / "new", tmp_path / "other"], "it") == tmp_path / "new" / "it"
    assert not (tmp_path / "other").exists()
    assert compiled.writable([tmp_path / "file"], "it") is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "numba"))
    assert list(compiled.candidates()) == [tmp_path / "numba", compiled.PACKAGE / "__pycache__", tmp_path / "twinpass"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(compiled.candidates())[-1] == tmp_path / ".cache" / "twinpass"


def test_names_follow_sources_and_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gemm").mkdir()
    (tmp_path / "gemm" / "a.py").write_text("1")
    found = [compiled.fingerprint(tmp_path)]
    (tmp_path / "gemm" / "a.py").write_text("2")
    found.append(compiled.fingerprint(tmp_path))
    (tmp_path / "gemm" / "a.py").rename(tmp_path / "b.py")
    found.append(compiled.fingerprint(tmp_path))
    assert compiled.fingerprint(tmp_path) == found[-1]
    monkeypatch.setattr(config, "CPU_NAME", "generic")
    found.append(compiled.fingerprint(tmp_path))
    assert len(set(found)) == 4
