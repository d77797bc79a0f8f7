"""The folder of a run: where everything lies, and how a run begins, resumes and ends."""

import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from twinpass.engine.base import Engine
from twinpass.errors import ConfigError, JournalError
from twinpass.report.checksums import add_checksums
from twinpass.report.files import put, reason, storing, sync_folder, write_json, write_text
from twinpass.train.earlier import current
from twinpass.train.header import changes, header, require_same, without_none
from twinpass.train.history import History
from twinpass.train.journal import INSTEAD, Contents, Journal, read, require_new, unbegun
from twinpass.train.lock import hold
from twinpass.train.spaces import Spaces


@dataclass(frozen=True)
class RunFolder:
    """``config.toml``, ``journal.jsonl``, ``metrics.jsonl``, ``summary.json``, ``plots/``, and what was trained.

    The rest are words for messages: what names the folder, what to do where it holds a run, what accepts other ground.
    """

    path: Path
    named: str = "run.out"
    instead: str = INSTEAD
    accepting: str = "--accept-changes"

    @property
    def journal(self) -> Path:
        """The list of updates, from which everything else can be rebuilt."""
        return self.path / "journal.jsonl"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.toml"

    def settings(self) -> dict[str, Any]:
        """What the configuration says, as it is written now.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            return current(tomllib.loads(self.config.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(str(self.config), [f"cannot be read: {reason(error)}"]) from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(str(self.config), [f"not valid TOML: {error}"]) from error

    @property
    def spaces(self) -> Spaces:
        """Directions that were fitted to the task."""
        return Spaces.of(self.path)

    @property
    def metrics(self) -> Path:
        """What happened, a line an event."""
        return self.path / "metrics.jsonl"

    @contextmanager
    def claim(self, *, new: bool) -> Iterator[None]:
        """Be the only process that writes here. A folder that is made for it and stays empty goes again.

        Raises:
            BusyError: another process is.
            ConfigError: the folder cannot be made.
            JournalError: a ``new`` run would find another one here; or there is none to go on with.
        """
        if not new and not self.journal.exists():
            raise JournalError(f"{self.journal}: there is no journal here; give the folder of a run")
        with making(self.path, self.named), hold(self.path):
            if new:
                require_new(self.path, self.instead)
            yield

    def begin(self, values: Mapping[str, Any], engine: Engine, ground: Mapping[str, str] | None = None) -> Journal:
        """Write the resolved configuration and the journal's header; the folder has to be claimed."""
        write_text(self.config, tomli_w.dumps(without_none(values)))
        if self.journal.exists() and unbegun(self.journal):
            self.journal.unlink()
        return Journal.create(self.journal, header(values, engine, ground))

    def resume(
        self,
        values: Mapping[str, Any],
        engine: Engine,
        ground: Mapping[str, str],
        *,
        accept: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> tuple[Journal, Contents, Mapping[str, Any] | None]:
        """Continue the journal that is here; with ``accept`` on other ``ground`` than it stands on.

        That is the last of what is returned, a record for the journal once the run stands where it did, or None. ``settings``: as for :func:`require_same`.

        Raises:
            JournalError: it was written for another base model, noise or configuration, or on other ground, or it is damaged.
        """
        found = read(self.journal)
        require_same(self.journal, found.header, header(values, engine), settings)
        changed = changes({**found.header.get("ground", {}), **History.of(found.records).changed}, ground)
        if changed and not accept:
            raise JournalError(
                f"{self.journal} does not belong to this run: {'; '.join(changed.values())}. Restore what it began with, "
                f"or go on with {self.accepting}, which goes into the journal; the run's result is then of both"
            )
        journal, contents = Journal.open(self.journal)
        accepted = {
            "kind": "changes",
            "step": len(History.of(contents.records).steps),
            "ground": {k: ground[k] for k in changed},
        }
        return journal, contents, accepted if changed else None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, the mark of a finished run."""
        write_json(self.path / "summary.json", summary)


@contextmanager
def making(folder: Path, named: str) -> Iterator[None]:
    """Make a folder, with those above it; what is empty of them at the end goes again.

    Raises:
        ConfigError: it cannot be made; ``named`` is the setting it comes from.
    """
    made: list[Path] = []
    try:
        above = folder
        while not above.exists():
            made.append(above)
            above = above.parent
        folder.mkdir(parents=True, exist_ok=True)
        for each in made:
            sync_folder(each.parent)
    except (OSError, ValueError) as error:
        raise ConfigError(named, [f"{folder} cannot be made: {reason(error)}"]) from error
    try:
        yield
    finally:
        for each in made:
            with suppress(OSError):
                each.rmdir()


def save_weights(engine: Engine, folder: Path) -> Path:
    """Write what was trained into ``folder``, with hashes of its files, all of it or nothing; returns the folder inside."""
    part = folder / ".weights.part"
    with storing(folder):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            written = engine.save(part)
            add_checksums(written)
            return put(written, folder / written.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)
