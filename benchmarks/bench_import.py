"""Time that `import rvseg_jax` adds to importing jax and flax.nnx, each in new processes.

python benchmarks/bench_import.py [--repeats 10]
"""

import argparse
import statistics
import subprocess
import sys

TIMED = "import time; s = time.perf_counter(); {}; print(time.perf_counter() - s)"
BASE = "import jax; import flax.nnx"


def seconds(code: str) -> float:
    """Time of a statement in a new process."""
    command = [sys.executable, "-c", TIMED.format(code)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    base, both = [], []
    for _ in range(args.repeats + 1):  # in turn; the first round warms the file cache
        base.append(seconds(BASE))
        both.append(seconds(f"{BASE}; import rvseg_jax"))
    low, high = statistics.median(base[1:]), statistics.median(both[1:])
    print(f"jax and flax.nnx {low:.2f} s, with rvseg_jax {high:.2f} s: {1000 * (high - low):.0f} ms more")


if __name__ == "__main__":
    main()
