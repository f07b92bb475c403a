"""Command line: ``python -m editkit report params/quick.yaml``."""

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, get_args, get_origin

from editkit.config import Parameters

SMALLER = {  # what takes less memory, by the command that ran out of it; a report's chapters run elsewhere
    "vit": "--batch-size, --max-edits, --copies or --n-train",
    "tune": "--first-batch, --n-facts or --dtype (bfloat16)",
    "sweep": "--workers, target_batch, batch_sizes or dtype (bfloat16)",
}


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, takes options by their whole names alone, and wraps no list."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {_one_line(message)}; {self.prog} --help lists what there is\n")


def report(arguments: argparse.Namespace) -> int:
    """Execute the notebooks and write the report. Returns 1 where a notebook failed."""
    from editkit.report.run import build_report, summarise

    built = build_report(arguments.params, arguments.out, only=arguments.only, at_once=arguments.at_once)
    print(summarise(built))
    return 0 if built.ok else 1


def vit(arguments: argparse.Namespace) -> int:
    """Run a stage of a repair study into a folder of its own."""
    from editkit.report.vit import vit

    for told in vit({name: value for name, value in vars(arguments).items() if name not in ("command", "run")}):
        print(told, end="\n\n", flush=True)
    return 0


def tune(arguments: argparse.Namespace) -> int:
    """Search for a model's hyperparameters and write them as its defaults."""
    from editkit.report.tune import tune

    for told in tune({name: value for name, value in vars(arguments).items() if name not in ("command", "run")}):
        print(told, flush=True)
    return 0


def sweep(arguments: argparse.Namespace) -> int:
    """Run the cells of a sweep that are not finished. Returns 1 where one failed."""
    from editkit.report.sweep import sweep

    given = {name: value for name, value in vars(arguments).items() if name not in ("command", "run", "params")}
    return 0 if sweep(arguments.params, given) else 1


def add_options(
    command: argparse.ArgumentParser, model: type[Parameters], also: Mapping[str, Sequence[str]], skip: Sequence[str]
) -> None:
    """Add an option for each parameter, ``--like-this``, given as text; what is not given keeps its default.

    One that is true or false is a switch, ``--like-this`` or ``--no-like-this``.

    Args:
        also: further names of options.
        skip: parameters that the caller adds.
    """
    for name, field in model.model_fields.items():
        if name in skip:
            continue
        default = "" if field.default in ([], "", {}, None) else f" Default: {field.default}."
        about: dict[str, Any] = {
            "dest": name,
            "default": argparse.SUPPRESS,
            "help": f"{field.description}{default}".replace("%", "%%"),
        }
        if bool in (field.annotation, *get_args(field.annotation)):
            about["action"] = argparse.BooleanOptionalAction
        else:
            about["nargs"] = "*" if get_origin(field.annotation) is list else None
            about["metavar"] = name.split("_")[-1].upper()
        command.add_argument(f"--{name.replace('_', '-')}", *also.get(name, ()), **about)


def parser() -> argparse.ArgumentParser:
    """Build the command line with its subcommands."""
    top = Parser(prog="python -m editkit", description="Model editing, measured.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_report, _add_vit, _add_tune, _add_sweep):
        add(commands)
    return top


def _add_report(commands: Any) -> None:
    command = commands.add_parser("report", help="execute the notebooks and write HTML and PDF")
    command.add_argument("params", help="parameter file, such as params/quick.yaml")
    command.add_argument("--out", help="Folder of the report. Default: reports/<name of the parameter file>.")
    command.add_argument(
        "--only", nargs="+", default=[], metavar="CHAPTER", help="Chapters to run, such as 01_baselines. Default: all."
    )
    command.add_argument(
        "--at-once",
        type=int,
        choices=range(9),
        default=0,
        metavar="N",
        help="Chapters that run beside each other, each with a model in memory. Default: two on a CPU, one on a GPU.",
    )
    command.set_defaults(run=report)


def _add_vit(commands: Any) -> None:
    from editkit.report.vit import ALSO, VitOptions, files
    from editkit.studies.repair_spec import RepairSpec

    command = commands.add_parser("vit", help="repair a Vision Transformer's misclassified images", epilog=files())
    resume = VitOptions.model_fields["resume"].description
    command.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help=f"{resume} With FILE: as --checkpoint FILE. Default: True.",
    )
    command.add_argument(
        "--no-resume", dest="resume", action="store_false", default=argparse.SUPPRESS, help="Train anew."
    )
    add_options(command, VitOptions, {}, ["resume"])
    add_options(command, RepairSpec, ALSO, [])
    command.set_defaults(run=vit)


def _add_tune(commands: Any) -> None:
    from editkit.studies.tune import TuneParams

    command = commands.add_parser("tune", help="search for a model's hyperparameters and write them as its defaults")
    add_options(command, TuneParams, {}, ["facts_part"])
    command.set_defaults(run=tune)


def _add_sweep(commands: Any) -> None:
    from editkit.report.sweep import SweepOptions, keys

    told = "run the matrix of methods, batches and memories on many workers"
    command = commands.add_parser("sweep", help=told, epilog=keys())
    command.add_argument("params", help="parameter file, such as params/sweep/matrix.yaml")
    add_options(command, SweepOptions, {}, [])
    command.set_defaults(run=sweep)


def main(words: Sequence[str] | None = None) -> int:
    """Run a subcommand. Returns the exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as of stderr: an ASCII locale knows few letters
    arguments = parser().parse_args(words)
    try:
        return arguments.run(arguments)
    except ValueError as error:
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except (FloatingPointError, OSError) as error:
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        from editkit.models.peak import out_of_memory  # loads torch, as what needs so much memory has done before

        if not out_of_memory(error):
            raise
        told = _one_line(str(error).partition("\n")[0])
        hint = f"; lower {SMALLER[arguments.command]}" if arguments.command in SMALLER else ""
        print(f"error: memory ran out{told and f' ({told})'}{hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _one_line(told: str) -> str:
    """Return what is told, several problems one after another, with a terminal's control characters written out."""
    line = "; ".join(part.strip() for part in told.split("\n"))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
