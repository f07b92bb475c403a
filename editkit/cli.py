"""Command line: ``python -m editkit report params/quick.yaml``."""

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import get_origin

from editkit.config import Parameters


def report(arguments: argparse.Namespace) -> int:
    """Execute the notebooks and write the report. Returns 1 where a notebook failed."""
    from editkit.report.run import build_report, summarise

    built = build_report(arguments.params, arguments.out)
    print(summarise(built))
    return 0 if built.ok else 1


def vit(arguments: argparse.Namespace) -> int:
    """Run a stage of a repair study into a folder of its own."""
    from editkit.report import stages
    from editkit.studies.repair_spec import RepairSpec

    spec = RepairSpec.from_texts({n: v for n, v in vars(arguments).items() if n in RepairSpec.model_fields})
    name = arguments.run_name or f"vit-{Path(spec.data).stem}"
    if Path(name).name != name or name.startswith("."):
        raise ValueError(f"--run-name {name!r}: must be the name of a folder, without a path")
    folder = Path(arguments.out) / (f"{name}-{datetime.now():%Y%m%d-%H%M%S}" if arguments.timestamp else name)
    print("\n\n".join([*stages.run(spec, arguments.stage, folder), f"written to {folder}"]))
    return 0


def add_options(command: argparse.ArgumentParser, model: type[Parameters]) -> None:
    """Add an option for each parameter, ``--like-this``, given as text; what is not given keeps its default."""
    for name, field in model.model_fields.items():
        several = get_origin(field.annotation) is list
        default = "" if field.default in ([], "", {}, None) else f" Default: {field.default}."
        command.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=argparse.SUPPRESS,
            nargs="+" if several else None,
            metavar=name.split("_")[-1].upper(),
            help=f"{field.description}{default}".replace("%", "%%"),
        )


def parser() -> argparse.ArgumentParser:
    """Build the command line with its subcommands."""
    from editkit.report.stages import STAGES
    from editkit.studies.repair_spec import RepairSpec

    top = argparse.ArgumentParser(prog="python -m editkit", description="Model editing, measured.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("report", help="execute the notebooks and write HTML and PDF")
    command.add_argument("params", help="parameter file, such as params/quick.yaml")
    command.add_argument("--out", help="Folder of the report. Default: reports/<name of the parameter file>.")
    command.set_defaults(run=report)

    command = commands.add_parser("vit", help="repair a Vision Transformer's misclassified images")
    stages = {"choices": [*STAGES, "full"], "default": "full"}
    command.add_argument("--stage", **stages, help="Stage to run; full runs all of them. Default: full.")
    command.add_argument("--run-name", help="Name of the folder that the stage writes into. Default: vit-<data>.")
    command.add_argument("--timestamp", action="store_true", help="Add date and time to the name of the run's folder.")
    command.add_argument("--out", default="runs", help="Folder in which the runs' folders are made. Default: runs.")
    add_options(command, RepairSpec)
    command.set_defaults(run=vit)
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Run a subcommand. Returns the exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    arguments = parser().parse_args(words)
    try:
        return arguments.run(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
