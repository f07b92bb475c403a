"""Write the parameters where people read them: ``python -m editkit.studies.declare``, from the checkout's root.

The code holds every default, with its documentation. ``params/base.yaml`` and the ``parameters`` cells of the
notebooks are written from it.
"""

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import yaml

from editkit.cache import write_atomic
from editkit.studies.params import BASE, RunParams
from editkit.studies.repair_spec import ImageParams

HEADER = "# Every parameter and its default, written by `make params` from editkit/studies: change it there."
SET_BY_THE_COMMAND = "run_dir"


def base_yaml() -> str:
    """Compose the text of ``params/base.yaml``."""
    lines = [HEADER]
    for name, value in RunParams().model_dump().items():
        if name != SET_BY_THE_COMMAND:
            text = yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False).removesuffix("...\n")
            lines += ["", f"# {RunParams.model_fields[name].description}", f"{name}: {text.strip()}"]
    return "\n".join(lines) + "\n"


def parameters_cell(declared: list[str]) -> str:
    """Source of a ``parameters`` cell that declares these names; one that has any ``vit_`` name gets all of them."""
    images = list(ImageParams.model_fields)
    names = dict.fromkeys(declared + images if set(declared) & set(images) else declared)
    defaults = RunParams()
    return "\n".join(f"{name} = {_literal(getattr(defaults, name))}" for name in names)


def declare(root: Path) -> None:
    """Write ``params/base.yaml`` and the ``parameters`` cell of every notebook under ``root``."""
    write_atomic(root / "params" / BASE, base_yaml().encode())
    for path in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = parameters_cell(re.findall(r"^(\w+) =", cell.source, re.MULTILINE))
        write_atomic(path, (nbformat.writes(notebook) + "\n").encode())


def _literal(value: Any) -> str:
    """Write a plain value as ruff formats it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    declare(Path())
