"""``twinpass export``."""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpass.cli.lines import HELP, loading, say
from twinpass.cli.replay import restore
from twinpass.cli.runs import require_run
from twinpass.report.shown import shown

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel

    from twinpass.engine.base import Engine
    from twinpass.objective.goal import Goal
    from twinpass.task.example import Example


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "export",
        help="write what a run has trained as a folder that others load",
        description=(
            "Write what a run has trained as a folder that PEFT or transformers loads, with tokenizer, generation configuration and a "
            "model card. A folder of --format hf can be a configuration's model.path again."
        ),
    )
    command.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run")
    command.add_argument(
        "--format",
        choices=["peft", "hf", "gguf-ready"],
        required=True,
        help="an adapter for PEFT; a model of its own; or one, merged, with all that llama.cpp's converter reads",
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    command.add_argument(
        "--merge", action="store_true", help="with --format hf: add the adapter to the model's own weights"
    )
    command.add_argument(
        "--everywhere",
        action="store_true",
        help="merge an activated adapter all the same, so that it acts on all tokens, and say what held-out rows make of that",
    )
    command.add_argument(
        "--step", type=int, metavar="N", help="the weights that 'twinpass replay RUN --step N' rebuilt"
    )
    command.add_argument("--json", action="store_true", help=HELP.format("the result"))
    command.set_defaults(run=run)


def run(args: argparse.Namespace, console: "Console") -> int:
    """Export."""
    require_run(args.folder)
    loading(console, args.folder)
    from twinpass.use.export import export

    both = Both(args.folder, args.step, console) if args.everywhere else None
    out = export(args.folder, args.out, args.format, merge=args.merge, step=args.step, everywhere=both)
    merged = args.format != "peft" and (args.folder / "adapter").is_dir()
    known = {} if both is None else {"held_out": both.found}
    if args.json:
        say({"folder": str(out), "format": args.format, "merged": merged, **known})
    else:
        for name, value in () if both is None else both.facts:
            console.print(f"{name}: {value}")
        console.print(f"{'adapter' if args.format == 'peft' else 'model'} and model card: {out}")
    return 0


@dataclass
class Both:
    """What held-out rows make of an activated adapter as it was trained, and of the model that it is merged into, with 95% intervals."""

    run: Path
    step: int | None
    console: "Console"
    found: dict[str, Mapping[str, float]] = field(default_factory=dict)
    measure: str = ""
    why_not: str = ""

    def __call__(self, merged: "PreTrainedModel") -> list[tuple[str, str]]:
        """Measure both; facts for the model card."""
        from twinpass.engine.embedded.engine import TorchEngine
        from twinpass.model.trainable import Full
        from twinpass.train.folder import RunFolder
        from twinpass.train.header import FINETUNE

        if FINETUNE in RunFolder(self.run).settings():
            self.why_not = "only Python knows the rows of a run of finetune"
            return self.facts
        session, _ = restore(self.run, self.step, self.console)
        goal, rows = session.plan.objective, session.plan.held_out
        with closing(session.engine):
            self._measure("adapter", session.engine, goal, rows)
        with closing(TorchEngine(merged, Full())) as engine:
            self._measure("merged", engine, goal, rows)
        return self.facts

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Names and values."""
        if not self.found:
            return [("acting on all tokens", f"not measured: {self.why_not}")]
        return [
            (
                f"held-out {self.measure}, {'acting on all tokens' if name == 'merged' else 'as it was trained'}",
                f"{shown(self.measure, own['value'])} (95% {shown(self.measure, own['low'])} to {shown(self.measure, own['high'])})",
            )
            for name, own in self.found.items()
        ]

    def _measure(self, name: str, engine: "Engine", goal: "Goal", rows: "Sequence[Example]") -> None:
        from twinpass.use.measure import outcomes

        found = outcomes(engine, goal, rows) if rows else None
        if found is None:
            self.why_not = "the task goes by rewards of what is written" if rows else "there are no held-out rows"
            return
        measures = found[0].measures()
        self.measure = next(key for key in ("accuracy", "perplexity") if key in measures)
        self.found[name] = measures[self.measure]
