"""Keys and values on disk, for weights that never change: found again by the next run over the same model.

A folder of files, each a safetensors file written once: ``keys`` and ``values`` [layers, rows, heads, width]. Its
metadata names the weights, which token sequences the rows belong to, and checksums of both. The metadata is verified
when a folder is opened, the tensors, which are memory-mapped, when they are first read, and again if the file is another by
then; a damaged or foreign file is left out, and what it held is computed again. So is what is no plain file, such as a link or
a pipe, and what another user has written: whoever may write a file decides what the model reads.
"""

import hashlib
import json
import os
import stat
import time
import uuid
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from twinpass.cache.pool import Pool
from twinpass.cache.tree import RadixTree, Slots
from twinpass.core import Tokens
from twinpass.errors import CacheError

FORMAT = "twinpass-kv-1"

FILE_BYTES = 1 << 22
"""Of sequences in one file, which is copied twice while it is written."""


Stamp = tuple[int, int, int, int]
"""Device, number, size and time of change of a file."""

STALE_SECONDS = 3600.0
"""What a crash leaves of a file that was being written is taken away after so long."""


@dataclass(slots=True)
class SpillFile:
    """Rows ``start`` to ``stop`` of all that is on disk."""

    path: Path
    start: int
    stop: int
    check: str
    verified: Stamp | None = None
    """Which file it was when its tensors were found to be right."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of a file, from ``row`` on: they hold ``tokens[start:]``, the tokens before ``start`` are elsewhere."""

    tokens: Tokens
    start: int
    row: int

    @property
    def end(self) -> int:
        """The row behind the last."""
        return self.row + len(self.tokens) - self.start


class Spill:
    """Keys and values of one model in one folder.

    Args:
        folder: made if it is not there. Several models may share it, and several runs at once.
        identity: what makes keys and values the same: the base checkpoint, its configuration, dtype.
        layers: how many layers are stored.

    Raises:
        CacheError: the folder cannot be made.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], layers: int) -> None:
        self.folder, self.layers = folder, layers
        self.written = 0
        self.identity = json.dumps(dict(sorted(identity.items())))
        self._prefix = hashlib.blake2b(self.identity.encode(), digest_size=8).hexdigest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise CacheError(f"reuse.spill: {str(folder)!r} cannot be a folder for keys and values: {error}") from error
        self._bad: set[Path] = set()
        self._sweep()
        self._load()

    def fetch(self, tokens: Tokens, wanted: Slots, slots: Slots, pool: Pool) -> Slots:
        """Bring what is on disk of ``tokens[i]``, ``i`` in ``wanted``, into the pool's ``slots[i]``; returns those i."""
        while True:
            rows = self._tree.match(self._prefix, tokens).slots
            found = wanted[wanted < len(rows)]
            if not [spilled for spilled in self._files_of(rows[found]) if not self._verify(spilled)]:
                break
            self._load()
        for spilled in self._files_of(rows[found]):
            here = found[(rows[found] >= spilled.start) & (rows[found] < spilled.stop)]
            local = torch.from_numpy(rows[here] - spilled.start)
            into = torch.from_numpy(slots[here])
            with safe_open(spilled.path, framework="pt") as file:
                keys, values = (file.get_tensor(name) for name in ("keys", "values"))
            for layer in range(self.layers):
                pool.write(layer, into, keys[layer][local], values[layer][local])
        return found

    def store(self, sequences: Sequence[tuple[Tokens, int]], slots: Slots, pool: Pool) -> None:
        """Write files, of as many sequences each as ``FILE_BYTES`` hold, or of one.

        Args:
            sequences: tokens, and the index from which on they are new; the tokens before are on disk or come first.
            slots: where the new tokens of all sequences lie in the pool, one after another.
        """
        room = FILE_BYTES // (self.layers * sum(plane[0].nbytes for plane in pool.of(0)))
        stretches, row, written = list[Stretch](), 0, 0
        for tokens, start in sequences:
            count = len(tokens) - start
            if stretches and row + count > room:
                if not self._write(stretches, slots[written : written + row], pool):
                    return
                stretches, row, written = [], 0, written + row
            stretches.append(Stretch(tokens, start, row))
            row += count
        self._write(stretches, slots[written:], pool)

    def _write(self, stretches: Sequence[Stretch], slots: Slots, pool: Pool) -> bool:
        """One file; whether that succeeded."""
        at = torch.from_numpy(slots)
        tensors = {
            name: torch.empty((self.layers, len(at), *plane.shape[1:]), dtype=plane.dtype)
            for name, plane in zip(("keys", "values"), pool.of(0), strict=True)
        }
        for layer in range(self.layers):
            for own, copied in zip(tensors.values(), pool.read(layer, at), strict=True):
                assert copied.shape == own.shape[1:]
                own[layer] = copied
        check = _check(tensors)
        metadata = {
            "format": FORMAT,
            "identity": self.identity,
            "check": check,
            "runs": json.dumps([astuple(stretch) for stretch in stretches]),
        }
        metadata["seal"] = _seal(metadata)
        path = self.folder / f"{self._prefix}-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.safetensors"
        part = path.with_suffix(".part")
        try:
            save_file(tensors, part, metadata=metadata)
            part.replace(path)
        except (SafetensorError, OSError) as error:
            part.unlink(missing_ok=True)
            warnings.warn(f"{self.folder} cannot be written, the run goes on without it: {error}", stacklevel=5)
            return False
        self.written += path.stat().st_size
        self._add(path, check, stretches, len(slots), _stamp(path))
        return True

    def _sweep(self) -> None:
        """Take away what crashes have left of files half written."""
        for path in self.folder.glob(f"{self._prefix}-*.part"):
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime > STALE_SECONDS:
                    path.unlink()

    def _load(self) -> None:
        """Index the files, those of other models and damaged ones left out."""
        self._tree, self._files, self._rows = RadixTree(), list[SpillFile](), 0
        for path in sorted(self.folder.glob(f"{self._prefix}-*.safetensors")):
            if path in self._bad:
                continue
            try:
                _stamp(path)
                with safe_open(path, framework="pt") as file:
                    metadata = file.metadata() or {}
                    layers, count = file.get_slice("keys").get_shape()[:2]
                if (metadata["format"], metadata["identity"], layers) != (FORMAT, self.identity, self.layers):
                    raise ValueError("it was written for another model")
                if metadata["seal"] != _seal(metadata):
                    raise ValueError("its metadata do not match their checksum")
                stretches = [Stretch(tuple(tokens), start, row) for tokens, start, row in json.loads(metadata["runs"])]
                if any(min(stretch.start, stretch.row) < 0 or stretch.end > count for stretch in stretches):
                    raise ValueError("it does not hold the rows that it names")
            except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                self._reject(path, f"{error}")
                continue
            self._add(path, metadata["check"], stretches, count, None)

    def _add(self, path: Path, check: str, stretches: Sequence[Stretch], count: int, verified: Stamp | None) -> None:
        spilled = SpillFile(path, self._rows, self._rows + count, check, verified)
        for stretch in stretches:
            before = self._tree.match(self._prefix, stretch.tokens).slots
            if len(before) >= stretch.start:
                first = spilled.start + stretch.row - stretch.start
                rows = np.arange(first, first + len(stretch.tokens))
                rows[: len(before)] = before
                self._tree.insert(self._prefix, stretch.tokens, rows)
        self._files.append(spilled)
        self._rows = spilled.stop

    def _files_of(self, rows: Slots) -> list[SpillFile]:
        starts = [spilled.start for spilled in self._files]
        return [self._files[i] for i in sorted({bisect_right(starts, row) - 1 for row in rows.tolist()})]

    def _verify(self, spilled: SpillFile) -> bool:
        try:
            stamp = _stamp(spilled.path)
            if spilled.verified == stamp:
                return True
            with safe_open(spilled.path, framework="pt") as file:
                if _check({name: file.get_tensor(name) for name in ("keys", "values")}) != spilled.check:
                    raise ValueError("its checksum does not match")
        except (SafetensorError, OSError, ValueError) as error:
            self._reject(spilled.path, f"{error}")
            return False
        spilled.verified = stamp
        return True

    def _reject(self, path: Path, reason: str) -> None:
        self._bad.add(path)
        warnings.warn(f"{path} cannot be used, what it holds is computed again: {reason}", stacklevel=4)


def _stamp(path: Path) -> Stamp:
    """Which file this is.

    Raises:
        ValueError: it is no plain file, or another user's.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no plain file")
    if found.st_uid not in (0, os.geteuid()):
        raise ValueError(f"it was written by another user (number {found.st_uid})")
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _seal(metadata: Mapping[str, str]) -> str:
    text = json.dumps([metadata[name] for name in ("format", "identity", "check", "runs")])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
