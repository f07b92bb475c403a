"""Memory of the device a model runs on: what is free, and the peak of a piece of work."""

import ctypes
import resource
import sys
from pathlib import Path

import psutil
import torch


def free_bytes(device: torch.device) -> int:
    """Return the free memory in bytes: of a GPU, else of the machine."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


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
