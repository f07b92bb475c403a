"""The command line of a repair study: its own options, the presets, and where a run writes."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from editkit.config import Parameters
from editkit.report.stages import FILES, STAGES, Folders, run
from editkit.studies.repair_spec import HEADS, RepairSpec
from editkit.vision.files import is_file

PRESETS = {
    "pathmnist": {  # AlphaEdit and the head on ViT-B/16, one image after another, layers by causal tracing, no budget
        "data": "pathmnist",
        "size": 224,
        "model": "google/vit-base-patch16-224",
        "protocol": "held-out",
        "held_out_ratio": 0.2,
        "seed": 42,
        "epochs": 10,
        "batch_size": 32,
        "lr": 1.0e-4,
        "num_ablations": 32,
        "max_samples": 50,
        "layer_selection": "traced",
        "num_edit_layers": 3,
        "max_edits": 30,
        "sequential": True,
        "edit_method": ["alphaedit"],
        "controls": ["head_ewc"],
        "head_lr": 0.01,
        "head_steps": 50,
        "ewc_lambda": 1000.0,
        "kept_budget": 0.0,
        "frontier_budgets": [],
        "frontier_edits": [],
    },
}
ALSO = {"data": ["--data-path"]}  # further names of the study's options
HEAD = "head"  # among the editors: the head alone
LOG = "log.txt"
if TYPE_CHECKING:  # what pydantic checks is made from the tables, which no type checker reads
    Stage = str
    Preset = str
else:
    Stage = Literal[*STAGES, "baseline", "full"]
    Preset = Literal[*PRESETS]


class VitOptions(Parameters):
    """What only the command line has: the stage, where a run writes, and switches for options of the study."""

    stage: Stage = "full"
    """Stage to run; full runs all of them, baseline trains on the official splits."""
    preset: Preset | None = None
    """Options of a whole study; what else is given wins."""
    run_name: str = ""
    """Name of the folders that the run writes into; empty for vit-<data>."""
    timestamp: bool = False
    """Add date and time to the name of the run."""
    out: str = "runs"
    """Folder in which the runs' folders are made."""
    results_dir: str = ""
    """Folder for the runs' tables and figures; empty for --out."""
    checkpoint_dir: str = ""
    """Folder for the runs' fine-tuned weights and edits; empty for --out."""
    log_dir: str = ""
    """Folder for the runs' logs: options, what is told, warnings and errors; empty writes no log."""
    resume: bool = True
    """Go on after the last epoch that was stored for the same data, model and options; otherwise train anew."""
    closed_form: bool | None = None
    """Repair the head in closed form, otherwise by elastic weight consolidation."""
    astra_layers: bool | None = None
    """Edit the layers that causal tracing ranks first, otherwise the last ones."""

    def folders(self, data: str) -> tuple[Folders, Path | None]:
        """Name where a run on some data writes, and its log. Raises ``ValueError`` for a name that is a path."""
        name = self.run_name or f"vit-{Path(data).stem}"
        if Path(name).name != name or name.startswith("."):
            raise ValueError(f"--run-name {name!r}: must be the name of a folder, without a path")
        name = f"{name}-{datetime.now():%Y%m%d-%H%M%S}" if self.timestamp else name
        results, checkpoints = (Path(where or self.out) / name for where in (self.results_dir, self.checkpoint_dir))
        return Folders(results, checkpoints), Path(self.log_dir) / name / LOG if self.log_dir else None


def study(texts: Mapping[str, Any], options: VitOptions) -> RepairSpec:
    """Make a study's options from the words of the command line, over those of the preset.

    Raises ``ValueError`` for options that are unknown, ill-typed or contradict each other.
    """
    words = texts.get("edit_method", [])
    given = {**texts, "edit_method": [word for word in words if word != HEAD]} if HEAD in words else texts
    open_ended = {name for name, field in RepairSpec.model_fields.items() if field.default is None}
    given = {name: None if name in open_ended and text == "null" else text for name, text in given.items()}
    said = RepairSpec.from_texts(given).model_dump(exclude_unset=True)
    values: dict[str, Any] = PRESETS.get(options.preset, {}) | said
    if options.astra_layers is not None:
        if "layer_selection" in said:
            raise ValueError("--layer-selection and --astra-layers say the same: give one of them")
        values["layer_selection"] = "traced" if options.astra_layers else "last"
    values["controls"] = _controls(RepairSpec(**values).controls, HEAD in words, "controls" in said, options)
    if options.stage == "baseline":
        if said.get("protocol", "official") != "official":
            raise ValueError(f"--protocol {said['protocol']}: the baseline is trained on the official splits")
        values["protocol"] = "official"
    if "size" not in said and is_file(values.get("data", "")):
        values.pop("size", None)  # the preset's, of MedMNIST's files
    return RepairSpec(**values)


def _controls(found: list[str], alone: bool, said: bool, options: VitOptions) -> list[str]:
    """Choose the controls: the head alone, or with those that are said; and in which way the head is repaired."""
    way = next(name for name, how in HEADS.items() if how == ("closed" if options.closed_form else "ewc"))
    if alone:
        return list(dict.fromkeys([way, *(name for name in found if said and name not in HEADS)]))
    if options.closed_form is None:
        return found
    if not HEADS.keys() & {*found}:
        raise ValueError("--closed-form: no head is repaired; add --edit-method head")
    return list(dict.fromkeys(way if name in HEADS else name for name in found))


def vit(texts: Mapping[str, Any]) -> Iterator[str]:
    """Run a stage of a repair study by the words of the command line; yields what there is to tell of it.

    A ``resume`` that is a text is the file of a checkpoint.
    """
    file = texts.get("resume")
    if isinstance(file, str):
        if "checkpoint" in texts:
            raise ValueError(f"--resume {file} and --checkpoint {texts['checkpoint']}: give one of them")
        texts = {name: value for name, value in texts.items() if name != "resume"} | {"checkpoint": file}
    own, other = ({n: v for n, v in texts.items() if (n in VitOptions.model_fields) == mine} for mine in (True, False))
    options = VitOptions.from_texts(own)
    spec = study(other, options)
    folders, log = options.folders(spec.data)
    with logged(log, {"options": options.model_dump(), "study": spec.model_dump()}) as tell:
        for told in chain(run(spec, options.stage, folders, options.resume), [f"written to {folders}"]):
            tell(told)
            yield told


@contextmanager
def logged(path: Path | None, about: Mapping[str, Any]) -> Iterator[Any]:
    """Write a log with date and time: what it is about, what is told, every warning, and the error that ends it.

    Yields what tells a line. Without a path nothing is written.
    """
    if path is None:
        yield lambda text: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    logger, handler = logging.Logger("vit"), logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            logger.warning(str(message))
            shown(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        logger.info("%s\n%s", " ".join(sys.argv), json.dumps(about))
        try:
            yield logger.info
        except BaseException as problem:
            logger.error("%s: %s", type(problem).__name__, problem)
            raise
        finally:
            handler.close()


def files() -> str:
    """List what each stage writes into a run's folder, for ``--help``."""
    rows = [f"  {stage:8}{name}" for stage, names in FILES.items() for name in names]
    beside = "each table has its provenance beside it, a .json of the same name; figures need a browser"
    return "\n".join(["files of a run, by the stage that writes them:", *rows, f"  {'log':8}{LOG}", beside])
