"""``twinpass replay``."""

import argparse
import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpass.errors import JournalError

if TYPE_CHECKING:
    from rich.console import Console

    from twinpass.config.compose import Run
    from twinpass.engine.embedded.engine import TorchEngine
    from twinpass.train.folder import RunFolder


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "replay",
        help="rebuild the weights of any step from a run's journal",
        description="Rebuild the weights or the adapter of any step from the base model and the journal, to the bit.",
    )
    command.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run")
    command.add_argument("--step", type=int, metavar="N", help="after N steps (default: the last)")
    command.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: RUN/step-N)")
    command.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    command.set_defaults(run=run)


def restore(path: Path, step: int | None, console: "Console") -> "tuple[Run[TorchEngine], int]":
    """The run of a folder, on the embedded engine, brought to the weights after ``step`` steps (default: the last).

    Raises:
        JournalError: the run has no such step, or the journal does not fit the base model.
    """
    from twinpass.config.compose import build_embedded
    from twinpass.config.engines import TorchSettings
    from twinpass.config.load import load_config
    from twinpass.train.descent import descent_of
    from twinpass.train.folder import RunFolder, header, require_same
    from twinpass.train.journal import History, read
    from twinpass.train.spaces import advance

    folder = RunFolder(path)
    contents = read(folder.journal)
    history = History.of(contents.records)
    wanted = len(history.steps) if step is None else step
    if not 0 <= wanted <= len(history.steps):
        raise JournalError(f"{folder.journal}: there is no step {wanted}; the run has steps 0 to {len(history.steps)}")
    console.print(f"replaying {wanted} steps of {path} ...")
    config = load_config(folder.config, _elsewhere(folder))
    embedded = config.engine if isinstance(config.engine, TorchSettings) else TorchSettings()
    session = build_embedded(replace(config, engine=embedded))
    require_same(folder.journal, contents.header, header(config.values, session.engine))
    if (descent := descent_of(session.engine, session.plan, path)) is not None:
        descent.replay(history, wanted)
    else:
        advance(session.engine, history.steps[:wanted], folder.spaces)
    return session, wanted


def _elsewhere(folder: "RunFolder") -> list[str]:
    """What to set so that a run on a GPU can be replayed without one."""
    values = tomllib.loads(folder.config.read_text()) if folder.config.is_file() else {}
    return ["engine.device=auto"] if values.get("engine", {}).get("device") == "cuda" else []


def run(args: argparse.Namespace, console: "Console") -> int:
    """Replay and save."""
    session, step = restore(args.folder, args.step, console)
    weights = session.engine.save(args.out or args.folder / f"step-{step}")
    if args.json:
        print(json.dumps({"step": step, "weights": str(weights)}))
    else:
        console.print(f"weights after step {step}: {weights}")
    return 0
