"""Command line: ``python -m editkit report params/quick.yaml``."""

import argparse
import sys
from collections.abc import Sequence


def report(arguments: argparse.Namespace) -> int:
    """Execute the notebooks and write the report; 1 where a notebook failed."""
    from .report.run import build_report, summarise

    built = build_report(arguments.params, arguments.out)
    print(summarise(built))
    return 0 if built.ok else 1


def parser() -> argparse.ArgumentParser:
    """The command line with its subcommands."""
    top = argparse.ArgumentParser(prog="python -m editkit", description="Model editing, measured.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("report", help="execute the notebooks and write HTML and PDF")
    command.add_argument("params", help="parameter file, such as params/quick.yaml")
    command.add_argument("--out", help="folder of the run (default: reports/<name of the parameter file>)")
    command.set_defaults(run=report)
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Run a subcommand. Returns the exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    arguments = parser().parse_args(words)
    try:
        return arguments.run(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
