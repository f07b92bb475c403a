"""Where the paths among parameters lead: each becomes absolute, or is refused, before anything runs.

A relative path counts from the first of some folders in which it exists: the parameter file's, then the caller's.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from editkit.config import shown
from editkit.language.texts import REFERENCE, SAMPLES, WIKIPEDIA
from editkit.models import language, pick_device, vision
from editkit.models.packaged import HUB_ID, find_file

Folders = Sequence[str | Path]
TEXT_NAMES = "|".join((SAMPLES, REFERENCE, WIKIPEDIA))
CHAPTERS = "notebooks/[0-9][0-9]_*.ipynb"  # by which a checkout is told


def checkout(folder: str | Path = ".") -> Path:
    """Return the folder of the checkout that ``folder`` lies in: itself or the next above it that has chapters.

    Where there is none that is ``folder`` itself, as an absolute path.
    """
    here = Path(folder).resolve()
    return next((place for place in (here, *here.parents) if any(place.glob(CHAPTERS))), here)


def run_folder(value: str) -> str:
    """Return a run's folder as an absolute path.

    A relative one counts from the working directory or, where that would leave the checkout, from its ``notebooks/``:
    ``../reports/notebook`` is the same folder from the checkout's root and from its notebooks.
    """
    path, root = os.path.expanduser(value), checkout()
    here = Path(os.path.abspath(path))
    stays = os.path.isabs(path) or here.is_relative_to(root)
    return str(here) if stays else os.path.abspath(root / "notebooks" / path)


def locate(values: Mapping[str, Any], folders: Folders) -> dict[str, Any]:
    """Return those of a run's parameters that name files, with absolute paths.

    Args:
        values: parameters of :class:`editkit.studies.params.RunParams`, by name; others than ``PLACES`` are left out.
        folders: where relative paths are looked for, in this order; ``~`` is the home folder.

    Raises ``ValueError``, with parameter, value and folders, for a file or folder that is not there or of another kind.
    """
    found: dict[str, Any] = {name: _each(name, name, values[name], folders) for name in PLACES if name in values}
    if options := values.get("vit_data_options"):
        found["vit_data_options"] = {
            _one("vit_data_options", "vit_data", data, folders): own | _options(data, own, folders)
            for data, own in options.items()
        }
    return found


def _options(data: str, own: Mapping[str, Any], folders: Folders) -> dict[str, Any]:
    """Return those of one data set's options that name files, with absolute paths."""
    texts = {name: value for name, value in own.items() if f"vit_{name}" in PLACES and isinstance(value, str)}
    said = f"vit_data_options of {data}: "
    return {name: _one(said + name, f"vit_{name}", value, folders) for name, value in texts.items()}


def _each(said: str, name: str, value: str | list[str], folders: Folders) -> str | list[str]:
    """Read a parameter's value, or each of several; ``said`` is what errors call it."""
    if isinstance(value, list):
        return [_one(said, name, one, folders) for one in value]
    return _one(said, name, value, folders)


def _one(said: str, name: str, value: str, folders: Folders) -> str:
    try:
        return PLACES[name](value, folders)
    except ValueError as error:
        raise ValueError(f"{said} = {shown(value)}: {error}") from None


def _find(value: str, folders: Folders) -> str | None:
    """Return the absolute path of the first that exists."""
    path = os.path.expanduser(value)
    tried = (os.path.abspath(os.path.join(folder, path)) for folder in folders if "\0" not in value)
    return next(filter(os.path.exists, tried), None)


def _file(value: str, folders: Folders) -> str:
    found = _find(value, folders)
    if found is None:
        raise ValueError(f"there is no such file{_in(value, folders)}")
    if not os.path.isfile(found):
        raise ValueError(f"{found} is a folder; a file is needed")
    return found


def _present_folder(value: str, folders: Folders) -> str:
    found = _find(value, folders)
    if found is None:
        raise ValueError(f"there is no such folder{_in(value, folders)}")
    return _folder(found, folders)


def _folder(value: str, folders: Folders) -> str:
    """Return the absolute path of a folder; one that is not there will be made in the last of the folders."""
    found = _find(value, folders) or os.path.abspath(os.path.join(folders[-1], os.path.expanduser(value)))
    if os.path.isfile(found):
        raise ValueError(f"{found} is a file; a folder is needed")
    return found


def _model(known: Iterable[str]) -> Callable[[str, Folders], str]:
    def read(value: str, folders: Folders) -> str:
        if value in known:
            return value
        found = _find(value, folders)
        if found and os.path.isfile(os.path.join(found, "config.json")):
            return found
        near = difflib.get_close_matches(value.lower(), known, n=1, cutoff=0.7)
        if near and "/" not in value:  # which the hub would be asked for, over minutes
            raise ValueError(f"it is no known name, did you mean {near[0]}?")
        if re.fullmatch(HUB_ID, value):
            return value
        raise ValueError(
            f"it is neither a known name ({', '.join(known)}), nor a hub id, nor a folder with a transformers model"
            + _in(value, folders)
        )

    return read


def _unless(names: str, read: Callable[[str, Folders], str]) -> Callable[[str, Folders], str]:
    """Read a value as a path unless it is empty or matches ``names``, a regular expression that errors show."""

    def read_path(value: str, folders: Folders) -> str:
        if not value or re.fullmatch(names, value):
            return value
        try:
            return read(value, folders)
        except ValueError as error:
            raise ValueError(f"{error} (what is no path: {names})" if names else str(error)) from None

    return read_path


def _in(value: str, folders: Folders) -> str:
    """Say where a relative path was looked for."""
    absolute = os.path.isabs(os.path.expanduser(value))
    return "" if absolute else f" in {' or '.join(dict.fromkeys(os.path.abspath(folder) for folder in folders))}"


PLACES = {  # how each parameter that can be a path is read; an empty one names nothing
    "model": _model(language.WHEELS),
    "facts_path": _unless(r"https?://.+", _file),
    "downstream_path": _unless("", _present_folder),
    "snippets_path": _unless(r"https?://.+", _file),
    "text_path": _unless(TEXT_NAMES, _file),
    "survival_text": _unless(TEXT_NAMES, _file),
    "vit_model": _model(vision.WHEELS),
    "vit_data": _unless(r"\w+", _file),
    "vit_folder": _unless("", _folder),
    "vit_checkpoint": _unless("", _file),
}


PATHS = {*PLACES, "vit_data_options"}  # parameters that locate() may change


def require_machine(values: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for a device, or with what to install for a package, that is asked for and not here."""
    pick_device(values.get("device", "auto"))
    for name in ("text_path", "survival_text"):
        if values.get(name) == WIKIPEDIA and find_spec("datasets") is None:
            raise ValueError(f"{name} = {WIKIPEDIA!r} needs the datasets package: make setup, or pip install datasets")
    for name, wheels in (("model", language.WHEELS), ("vit_model", vision.WHEELS)):
        if wheel := wheels.get(values.get(name)):
            find_file(wheel)
