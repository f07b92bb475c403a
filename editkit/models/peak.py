"""Peak memory of a piece of work."""

import resource
import sys
from pathlib import Path

import torch


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
