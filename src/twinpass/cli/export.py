"""``twinpass export``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpass.cli.lines import HELP, say

if TYPE_CHECKING:
    from rich.console import Console


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
        "--step", type=int, metavar="N", help="the weights that 'twinpass replay RUN --step N' rebuilt"
    )
    command.add_argument("--json", action="store_true", help=HELP.format("the result"))
    command.set_defaults(run=run)


def run(args: argparse.Namespace, console: "Console") -> int:
    """Export."""
    from twinpass.use.export import export

    out = export(args.folder, args.out, args.format, merge=args.merge, step=args.step)
    merged = args.format != "peft" and (args.folder / "adapter").is_dir()
    if args.json:
        say({"folder": str(out), "format": args.format, "merged": merged})
    else:
        console.print(f"{'adapter' if args.format == 'peft' else 'model'} and model card: {out}")
    return 0
