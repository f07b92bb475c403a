"""Peak memory counts what happened since it was reset."""

import sys

import pytest
import torch

from editkit.memory import peak_mb, reset_peak


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process reset its own peak")
def test_the_peak_is_that_since_the_reset():
    cpu = torch.device("cpu")
    torch.ones(100 * 2**18)  # 100 MB, given back at once
    reset_peak(cpu)
    before = peak_mb(cpu)
    torch.ones(60 * 2**18)
    assert 50 < peak_mb(cpu) - before < 90
