"""Parameters of a report run: the chapters' own, composed, and the files that state them."""

from pathlib import Path
from typing import Any, Self

import yaml

from editkit.studies.lora import LoraParams
from editkit.studies.repair_spec import ImageParams
from editkit.studies.runs import BaselineParams
from editkit.studies.sequences import SequenceParams
from editkit.studies.setting import SettingParams

BASE = "base.yaml"  # beside a parameter file: what it does not state


class RunParams(ImageParams, LoraParams, SequenceParams, BaselineParams, SettingParams):
    """Every parameter of a report run; notebooks declare the ones they use.

    ``params/*.yaml`` holds them flat; a notebook's ``parameters`` cell holds the same names. The defaults
    are small, so that a notebook opened by hand runs in about a minute.
    """

    report_title: str = "Model editing, measured"
    """Title of the report."""
    run_dir: str = "../reports/notebook"
    """Folder of the run; the report command sets it."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and validate a parameter file, over ``base.yaml`` beside it where there is one.

        Raises ``ValueError`` that names the file.
        """
        path, base = Path(path), Path(path).with_name(BASE)
        stated = read_values(path)
        try:
            return cls(**(read_values(base) if base.is_file() else {}) | stated)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> Self:
        """Validate what a notebook holds after its ``parameters`` cell: every plain value is a parameter.

        Args:
            namespace: ``globals()``, before any other value is bound; Jupyter's own names are left out.
        """
        plain, own = (bool, int, float, str, list, dict, type(None)), ("In", "Out")
        return cls(
            **{
                name: value
                for name, value in namespace.items()
                if isinstance(value, plain) and not name.startswith("_") and name not in own
            }
        )


def read_values(path: Path) -> dict[str, Any]:
    """Read what a flat YAML file states, as it stands there. Raises ``ValueError`` that names the file."""
    if not path.is_file():
        raise ValueError(f"parameter file {path} does not exist")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold 'key: value' lines, got {type(values).__name__}")
    return values
