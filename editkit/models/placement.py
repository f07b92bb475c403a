"""Devices that a model is put on while transformers reads it, by accelerate where one is too small; and cores."""

import os
from typing import Any

import torch

from editkit.models.base import pick_device
from editkit.models.peak import free_bytes

ROOM = 0.7  # share of a device's free memory that weights may take; the rest is for what is computed with them


def usable_cores() -> int:
    """Return on how many cores this process may run, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def placing(device: str) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that place a model while it is read.

    ``auto`` fills one GPU after the other and then the machine's memory.
    """
    where = pick_device(device)
    if device != "auto" or where.type == "cpu":
        return {"device_map": {"": where}}
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    memory = {gpu.index: int(ROOM * free_bytes(gpu)) for gpu in gpus}
    return {"device_map": "sequential", "max_memory": memory | {"cpu": int(ROOM * free_bytes(torch.device("cpu")))}}
