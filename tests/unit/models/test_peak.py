"""Peak memory counts what happened since it was reset."""

import mmap
import sys

import pytest
import torch

from editkit.models.peak import peak_mb, reset_peak


def _use(megabytes: int) -> None:
    """Touch so much fresh memory and give it back; a tensor could lie in what earlier tests left on the heap."""
    with mmap.mmap(-1, megabytes * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        pages[:: mmap.PAGESIZE] = bytes([1]) * (len(pages) // mmap.PAGESIZE)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process reset its own peak")
def test_the_peak_is_that_since_the_reset():
    cpu = torch.device("cpu")
    _use(100)
    reset_peak(cpu)
    before = peak_mb(cpu)
    _use(60)
    assert 50 < peak_mb(cpu) - before < 90
