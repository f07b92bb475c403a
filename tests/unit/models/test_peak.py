"""Peak memory counts what happened since it was reset."""

import ctypes
import mmap
import sys

import psutil
import pytest
import torch

from editkit.models.peak import give_back, peak_mb, reset_peak


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


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc alone is asked"
)
def test_what_is_free_between_what_is_held_goes_back_to_the_system():
    process = psutil.Process()
    pieces = [bytearray(b"1" * 60_000) for _ in range(4000)]  # on the heap: too small to be mapped by themselves
    held = pieces[::100]
    before = process.memory_info().rss
    del pieces
    give_back()
    assert before - process.memory_info().rss > 150 * 2**20 and all(piece[0] == ord("1") for piece in held)
