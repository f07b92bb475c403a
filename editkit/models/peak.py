"""Memory of the device a model runs on: what is free, and the peak of a piece of work."""

import ctypes
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

GROUPS = {  # of Linux's control groups, by version: where they lie, a limit, what is used, and what of it is only cache
    "2": ("", "memory.max", "memory.current", "inactive_file"),
    "1": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_bytes(device: torch.device) -> int:
    """Return the free memory in bytes: of a GPU, else of the machine or what a container or job may have of it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([psutil.virtual_memory().available, *_left_by_groups()])


def _left_by_groups(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Yield what each of the process's control groups that has a limit leaves: a container's, a Slurm job's."""
    for line in own.read_text().splitlines() if own.is_file() else ():
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        below, limit, used, cache = GROUPS["2" if number == "0" else "1"]
        top = root / below
        folder = top / path.strip("/")
        for place in [folder, *folder.parents]:
            if not place.is_relative_to(top):
                break
            try:
                most, now, kept = ((place / name).read_text() for name in (limit, used, "memory.stat"))
            except OSError:
                continue  # no limit can be read there
            if most.strip() != "max":
                parts = dict(line.split() for line in kept.splitlines())
                yield max(int(most) - int(now) + int(parts.get(cache, 0)), 0)


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out: that of a GPU, of torch on a CPU, or Python's own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def give_back() -> None:
    """Give memory that nobody uses back to the system, where its C library can: glibc keeps what tensors leave.

    Pieces of changing sizes break that up, so that a process grows although nothing it holds does.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def reset_peak(device: torch.device) -> None:
    """Reset the peak where that is possible: on a GPU, and for the process on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # not Linux, or not allowed: the peak since the process began stands


def peak_mb(device: torch.device) -> float:
    """Return the peak memory in MB since :func:`reset_peak`: allocated on a GPU, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's peak cannot be reset
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
