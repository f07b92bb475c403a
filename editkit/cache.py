"""A content-addressed store on disk: what determines a result is its name.

An entry is one safetensors file, named by the hash of its key (a JSON-able dict of everything that
determines the tensors) and carrying key and checksum in its metadata. Writes are atomic; a damaged or
foreign file is reported, and the caller computes again.
"""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def cache_root() -> Path:
    """``$EDITKIT_CACHE`` where set, else ``~/.cache/editkit``."""
    return Path(os.environ.get("EDITKIT_CACHE") or Path.home() / ".cache" / "editkit").expanduser()


def digest(key: Any) -> str:
    """SHA-256 (hex) of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is either complete or not there at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide results from other users
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of ``path`` once the block has ended well.

    On any error what was at ``path`` stays, and nothing else is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=path.parent, prefix=".partial-"))
    try:
        building.chmod(0o755)  # mkdtemp's 0700 would hide results from other users
        yield building
        if not path.exists():
            os.replace(building, path)
            return
        os.replace(path, aside := building.with_name(building.name + "-old"))
        try:
            os.replace(building, path)
        except BaseException:
            os.replace(aside, path)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def source_hash() -> str:
    """Hash of this package's own source, for results that depend on the code as a whole."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return digest([(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])


def json_tensor(value: Any) -> Tensor:
    """A JSON-able value as bytes, to lie beside tensors in an entry; floats come back bit for bit."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def from_json_tensor(tensor: Tensor) -> Any:
    return json.loads(tensor.cpu().numpy().tobytes())


class Store:
    """Tensors under a folder, one file an entry; ``root`` defaults to :func:`cache_root`."""

    def __init__(self, root: Path | str | None = None):
        self.root = Path(root) if root else cache_root()

    def path(self, kind: str, key: dict) -> Path:
        return self.root / kind / f"{digest(key)[:32]}.safetensors"

    def get(self, kind: str, key: dict) -> dict[str, Tensor] | None:
        """The entry's tensors, or ``None`` where it is missing, damaged or foreign (then with a warning)."""
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
