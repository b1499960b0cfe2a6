"""Host memory of this process."""

import subprocess
import sys

import numpy as np

from rvseg_jax.core.memory import peak_resident_bytes


def test_peak_is_kept_and_is_not_that_of_the_process_that_started_this_one():
    before = peak_resident_bytes()
    block = np.ones(400 * 2**20, np.uint8)
    assert int(block[-1]) == 1
    del block
    peak = peak_resident_bytes()
    assert peak >= 400 * 2**20 and peak >= before
    program = "from rvseg_jax.core.memory import peak_resident_bytes; print(peak_resident_bytes())"
    child = int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    assert 2**20 < child < 300 * 2**20
