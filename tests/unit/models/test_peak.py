"""Peak memory counts what happened since it was reset."""

import ctypes
import mmap
import sys

import psutil
import pytest
import torch

from editkit.models import peak
from editkit.models.peak import free_bytes, give_back, peak_mb, reset_peak


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


def test_a_container_or_job_has_what_its_groups_leave(tmp_path, monkeypatch):
    (job := tmp_path / "slurm" / "job").mkdir(parents=True)
    (own := tmp_path / "cgroup").write_text("3:cpu:/elsewhere\n0::/slurm/job\n")
    for place, limit in ((job, "max"), (job.parent, "1000")):
        (place / "memory.max").write_text(f"{limit}\n")
        (place / "memory.current").write_text("700\n")
        (place / "memory.stat").write_text("anon 600\ninactive_file 50\n")
    assert list(peak._left_by_groups(own, tmp_path)) == [350]
    (job / "memory.max").write_text("720")
    assert list(peak._left_by_groups(own, tmp_path)) == [70, 350]
    own.write_text("0::/\n")
    assert list(peak._left_by_groups(own, tmp_path)) == []
    (first := tmp_path / "memory" / "docker").mkdir(parents=True)
    (first / "memory.limit_in_bytes").write_text("500")
    (first / "memory.usage_in_bytes").write_text("600")
    (first / "memory.stat").write_text("total_inactive_file 0\n")
    own.write_text("5:memory,cpu:/docker\n")
    assert list(peak._left_by_groups(own, tmp_path)) == [0]
    assert list(peak._left_by_groups(tmp_path / "none", tmp_path)) == []
    monkeypatch.setattr(peak, "_left_by_groups", lambda: [123])
    assert free_bytes(torch.device("cpu")) == 123
