"""``twinpass replay``."""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpass.cli.lines import HELP, loading, say
from twinpass.cli.runs import require_run
from twinpass.errors import JournalError

if TYPE_CHECKING:
    from rich.console import Console

    from twinpass.config.compose import Session
    from twinpass.engine.embedded.engine import TorchEngine
    from twinpass.train.folder import RunFolder
    from twinpass.train.history import History, Keep
    from twinpass.train.journal import Contents


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "replay",
        help="rebuild the weights of any step from a run's journal",
        description="Rebuild the weights or the adapter of any step from the base model and the journal, to the bit.",
    )
    command.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run")
    command.add_argument(
        "--step", type=int, metavar="N", help="after N steps (default: those whose weights the run keeps)"
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: RUN/step-N)")
    command.add_argument("--json", action="store_true", help=HELP.format("the result"))
    command.set_defaults(run=run)


def restore(path: Path, step: int | None, console: "Console") -> "tuple[Session[TorchEngine], int]":
    """The run of a folder, on the embedded engine, brought to the weights after ``step`` steps (default: those it keeps).

    Raises:
        JournalError: the run has no such step, or the journal does not fit the base model.
    """
    from twinpass.config.compose import build_embedded
    from twinpass.config.engines import TorchSettings
    from twinpass.config.load import load_run
    from twinpass.report.terminal import safe
    from twinpass.train.descent import descent_of
    from twinpass.train.folder import RunFolder
    from twinpass.train.header import FINETUNE, changes, header, require_same
    from twinpass.train.journal import read
    from twinpass.train.spaces import advance

    folder = RunFolder(path)
    contents = read(folder.journal)
    if FINETUNE in folder.settings():
        raise JournalError(
            f"{path} was written by twinpass.finetune, whose rows only Python knows: rebuild its weights with 'twinpass replay', "
            "or go on with twinpass.finetune(..., resume=True)"
        )
    config = load_run(path, _elsewhere(folder.settings()))
    history, wanted = _wanted(folder, contents, step, config.run.keep)
    console.print(f"replaying {wanted} steps of {safe(path)} ...")
    embedded = config.engine
    if not isinstance(embedded, TorchSettings):
        embedded = TorchSettings(noise=embedded.noise, perturbation=embedded.perturbation)
    session = build_embedded(replace(config, engine=embedded))
    require_same(folder.journal, contents.header, header(config.values, session.engine))
    stands_on = {**contents.header.get("ground", {}), **history.changed}
    for change in changes(stands_on, session.ground).values() if stands_on else ():
        console.print(f"[yellow]note: {safe(change)} than in the run[/yellow]")
    plan = session.plan if session.plan.optimizer.along_probes else session.plan.held(session.engine)
    with _bar(console) as told:
        if (descent := descent_of(session.engine, plan, path)) is not None:
            descent.replay(history, wanted, told)
        else:
            advance(session.engine, history.steps[:wanted], folder.spaces, told)
    return session, wanted


def rebuild(path: Path, step: int | None, console: "Console") -> "tuple[TorchEngine, int]":
    """The same without the rows, also for a run of ``twinpass.finetune``, if its model can be loaded from where it came from."""
    from twinpass.config.finetuned import begun
    from twinpass.report.terminal import safe
    from twinpass.train.folder import RunFolder
    from twinpass.train.header import FINETUNE, header, require_same
    from twinpass.train.journal import read
    from twinpass.train.spaces import advance

    folder = RunFolder(path)
    contents = read(folder.journal)
    settings = folder.settings()
    if FINETUNE not in settings:
        session, wanted = restore(path, step, console)
        return session.engine, wanted
    history, wanted = _wanted(folder, contents, step, settings["run"].get("keep", "best"))
    console.print(f"replaying {wanted} steps of {safe(path)} ...")
    if not all(step.estimate.probes for step in history.steps):
        raise JournalError(
            f"{path} follows exact gradients, which takes its rows, and only Python knows them; use its snapshots, "
            "or go on with twinpass.finetune(..., resume=True)"
        )
    engine = begun(folder.path, settings)
    require_same(folder.journal, contents.header, header(settings, engine))
    with _bar(console) as told:
        advance(engine, history.steps[:wanted], folder.spaces, told)
    return engine, wanted


@contextmanager
def _bar(console: "Console") -> Iterator[Callable[[int, int], None]]:
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("restoring", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def _wanted(folder: "RunFolder", contents: "Contents", step: int | None, keep: "Keep") -> "tuple[History, int]":
    from twinpass.train.history import History

    history = History.of(contents.records)
    wanted = history.kept(keep) if step is None else step
    if not 0 <= wanted <= len(history.steps):
        raise JournalError(f"{folder.journal}: there is no step {wanted}; the run has steps 0 to {len(history.steps)}")
    return history, wanted


def _elsewhere(settings: Mapping[str, Any]) -> list[str]:
    """What to set so that a run on a GPU can be replayed without one."""
    engine = settings.get("engine", {})
    return ["engine.device=auto"] if isinstance(engine, Mapping) and engine.get("device") == "cuda" else []


def run(args: argparse.Namespace, console: "Console") -> int:
    """Replay and save."""
    require_run(args.folder)
    loading(console, args.folder)
    from twinpass.train.folder import making

    if args.out is not None:
        with making(args.out, "--out"):
            return _save(args, console)
    return _save(args, console)


def _save(args: argparse.Namespace, console: "Console") -> int:
    from twinpass.report.terminal import safe
    from twinpass.train.folder import making, save_weights
    from twinpass.train.lock import hold

    engine, step = rebuild(args.folder, args.step, console)
    out = args.out or args.folder / f"step-{step}"
    with making(out, "--out"), hold(out):
        weights = save_weights(engine, out)
    if args.json:
        say({"step": step, "weights": str(weights)})
    else:
        console.print(f"weights after step {step}: {safe(weights)}")
    return 0
