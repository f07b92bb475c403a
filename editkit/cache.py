"""A content-addressed store on disk: an entry is named by what determines it.

An entry is one safetensors file, named by the hash of its key (:func:`entry_key`) and carrying key and
checksum in its metadata. Writes are atomic; a damaged or foreign file is reported, and the caller computes
again.
"""

import ast
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

PACKAGE = Path(__file__).parent
LIBRARIES = ("torch", "transformers", "tokenizers")  # whose version may change a result
PARTIAL = ".partial-"  # how the names of files begin that are not complete
TIMEOUT = 60  # seconds without an answer after which a download has failed


def cache_root() -> Path:
    """Return ``$EDITKIT_CACHE``, or ``~/.cache/editkit`` where it is not set. Raises ``ValueError`` for a file."""
    root = Path(os.environ.get("EDITKIT_CACHE") or Path.home() / ".cache" / "editkit").expanduser()
    there = next(place for place in (root, *root.parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is a file, not a folder for a cache: set EDITKIT_CACHE to a folder")
    return root


def digest(key: Any) -> str:
    """Return the SHA-256 (hex) of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is either complete or not there at all. Raises ``OSError`` that names it."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide results from other users
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name what is written in an ``OSError`` that names nothing or a temporary file, as on a full disk.

    One of safetensors, which has an error of its own, becomes an ``OSError`` too.
    """
    try:
        yield
    except SafetensorError as problem:
        if not (number := re.search(r"\(os error (\d+)\)", str(problem))):
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    except OSError as problem:
        if problem.errno is None or (problem.filename and PARTIAL not in os.fsdecode(problem.filename)):
            raise
        raise OSError(problem.errno, problem.strerror, str(path)) from None


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill, which takes the place of ``path`` once the block has ended well.

    On any error what was at ``path`` stays, and nothing else is left. Where the process is killed between the two
    renames, :func:`restore_folder` puts back what was there. Raises ``OSError`` that names it.
    """
    with naming(path), _replacing(path) as building:
        yield building


def restore_folder(path: Path) -> None:
    """Put back a folder that somebody who was killed had moved aside to replace it."""
    if not path.exists() and (aside := _aside(path)).exists():
        with suppress(OSError):  # another process was faster, or it may only be read
            os.rename(aside, path)


def _aside(path: Path) -> Path:
    return path.with_name(f"{PARTIAL}{path.name}-old")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=path.parent, prefix=PARTIAL))
    try:
        building.chmod(0o755)  # mkdtemp's 0700 would hide results from other users
        yield building
        while not _placed(building, path):
            shutil.rmtree(_aside(path), ignore_errors=True)  # of one that was killed when its folder was in place
            os.rename(path, _aside(path))
        if _aside(path).exists():
            os.rename(_aside(path), building)  # deleted below: half of it must not be taken for what was there
    finally:
        restore_folder(path)
        shutil.rmtree(building, ignore_errors=True)


def _placed(building: Path, path: Path) -> bool:
    """Rename a folder, unless there is one at ``path``, also one that was put back in this moment."""
    try:
        if not path.exists():
            os.rename(building, path)
            return True
    except OSError as problem:
        if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    return False


class Identified(Protocol):
    """A model that tells what determines everything it computes."""

    def identity(self) -> dict[str, Any]: ...


def entry_key(code: str, model: Identified | None = None, **determines: Any) -> dict[str, Any]:
    """Return the key of an entry: everything that determines it.

    Args:
        code: dotted name of the module that computes the entry. Its source counts, and that of every module of
            this package it imports, directly or not: a change elsewhere recomputes nothing.
        model: what computes it, by its weights, configuration, tokenizer or pixels, and device.
        determines: whatever else the entry depends on, JSON-able.
    """
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return determines | {"code": code_hash(code), "versions": versions, "model": model.identity() if model else None}


def code_hash(module: str) -> str:
    """Hash the source of a module and of every module of this package that it imports, directly or not."""
    found, open_ = set(), [module]
    while open_:
        if (name := open_.pop()) not in found:
            found.add(name)
            open_ += _source(name)[1]
    return digest(sorted((name, _source(name)[0]) for name in found))


@functools.cache
def _source(module: str) -> tuple[str, tuple[str, ...]]:
    """Return the hash of a module's source, and the modules of this package that it imports when it runs."""
    text = _file(module).read_text(encoding="utf-8")
    nodes: list[ast.AST] = [ast.parse(text)]
    imported: set[str] = set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= {name if _file(name) else node.module for name in names}
        nodes += ast.iter_child_nodes(node)
    return hashlib.sha256(text.encode()).hexdigest(), tuple(sorted(name for name in imported if _file(name)))


def _file(module: str) -> Path | None:
    """Return the source file of a module of this package; None for any other module."""
    package, *parts = module.split(".")
    if package != PACKAGE.name:
        return None
    path = PACKAGE.joinpath(*parts)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def download(url: str, path: Path, *, md5: str | None = None) -> Path:
    """Fetch a file to ``path``, unless it is there (with that md5, where one is given).

    Raises ``ConnectionError`` where it cannot be fetched or has another md5; the message says where to get it and
    where to put it.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    try:
        downloader = pooch.HTTPDownloader(timeout=TIMEOUT)
        pooch.retrieve(url, md5 and f"md5:{md5}", fname=path.name, path=path.parent, downloader=downloader)
        path.chmod(0o644)  # a temporary file's 0600 would hide it from other users
    except (OSError, ValueError) as problem:
        raise ConnectionError(
            f"{url} could not be downloaded ({problem}): without a network, get it elsewhere and put it at {path}"
        ) from None
    return path


def json_tensor(value: Any) -> Tensor:
    """Return a JSON-able value as bytes, to lie beside tensors in an entry; floats come back bit for bit."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def from_json_tensor(tensor: Tensor) -> Any:
    return json.loads(tensor.cpu().numpy().tobytes())


class Store:
    """Tensors under a folder, one file per entry; ``root`` defaults to :func:`cache_root`."""

    def __init__(self, root: Path | str | None = None):
        self.root = Path(root) if root else cache_root()

    def path(self, kind: str, key: dict) -> Path:
        return self.root / kind / f"{digest(key)[:32]}.safetensors"

    def get(self, kind: str, key: dict) -> dict[str, Tensor] | None:
        """Return the entry's tensors, or None where it is missing or, with a warning, damaged or foreign."""
        path = self.path(kind, key)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            if metadata.get("key") != json.dumps(key, sort_keys=True, default=str):
                raise ValueError("it belongs to another key")
            if metadata.get("checksum") != _checksum(tensors):
                raise ValueError("its checksum does not match")
        except (SafetensorError, ValueError, OSError, KeyError) as problem:
            warnings.warn(f"cache file {path} cannot be used ({problem}); computing it again", stacklevel=2)
            return None
        return tensors

    def plain(self, kind: str, key: dict, compute: Callable[[], Any]) -> Any:
        """Return an entry's plain values, or compute and store them, as JSON: nothing to unpickle."""
        if (entry := self.get(kind, key)) is not None:
            return from_json_tensor(entry["json"])
        value = compute()
        self.put(kind, key, {"json": json_tensor(value)})
        return value

    def put(self, kind: str, key: dict, tensors: dict[str, Tensor]) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"key": json.dumps(key, sort_keys=True, default=str), "checksum": _checksum(tensors)}
        write_atomic(self.path(kind, key), save(tensors, metadata))


def _checksum(tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
