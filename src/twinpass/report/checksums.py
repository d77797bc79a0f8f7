"""Hashes of a folder's files, as a file in it that ``sha256sum -c`` reads, too."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

NAME = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64})  ([^/\0]+)")


def checksum(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def add_checksums(folder: Path) -> None:
    """Write those of all files that lie in ``folder``.

    Raises:
        OSError: the system refuses it.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != NAME)
    lines = "".join(f"{checksum(file)}  {file.name}\n" for file in files)
    (folder / NAME).write_text(lines, encoding="utf-8")


def checksums(folder: Path) -> Mapping[str, str] | None:
    """By the name of its file, what was written there; None: nothing was.

    Raises:
        ValueError: they cannot be read.
        OSError: the system refuses it.
    """
    try:
        lines = (folder / NAME).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    found = [_LINE.fullmatch(line) for line in lines]
    known = {each[2]: each[1] for each in found if each is not None}
    if not known or len(known) < len(lines):
        raise ValueError("its lines are not a hash and the name of a file each")
    return known
