"""Time and memory of chunked attention and the platform's kernel beside the reference, forward and backward.

    python benchmarks/bench_attention.py                         # 4,096 tokens, seconds
    python benchmarks/bench_attention.py --tokens 32768 --heads 12 --width 128    # Wan 1.3B, 81 frames
    python benchmarks/bench_attention.py --tokens 32760 --heads 12 --width 128 --dtype bfloat16    # on a GPU or TPU

All run in one process, taking turns, so that their ratio holds on a noisy machine. Bytes are what the compiler
plans beside arguments and results; a back end whose bytes do not fit is not run, but its bytes are printed.
"""

import argparse
import os
import platform
import statistics
import time

import jax
import jax.numpy as jnp

from rvseg_jax.ops.attention import Causal, Full, attention

# The kernel of the platform, if it has one, between the two that run anywhere.
KERNELS = {"tpu": ("splash",), "gpu": ("cudnn",)}
BACKENDS = ("chunked", *KERNELS.get(jax.default_backend(), ()), "reference")


def compiled(backend: str, array: jax.ShapeDtypeStruct, causal: bool, backward: bool):
    """The executable of one back end, and the bytes of its temporaries."""
    mask = Causal() if causal else Full()

    def forward(q, k, v):
        return attention(q, k, v, mask=mask, backend=backend)

    def loss(q, k, v):
        return jnp.sum(forward(q, k, v).astype(jnp.float32) ** 2)

    function = jax.grad(loss, (0, 1, 2)) if backward else forward
    executable = jax.jit(function).lower(array, array, array).compile()
    return executable, executable.memory_analysis().temp_size_in_bytes


def free_bytes() -> int:
    """Memory that a run may take on the default device."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024


def seconds(executables: dict, inputs: tuple, repeats: int) -> dict[str, float]:
    """Median seconds of each, after one warm-up, in turns."""
    times: dict[str, list[float]] = {name: [] for name in executables}
    for turn in range(repeats + 1):
        for name, run in executables.items():
            start = time.perf_counter()
            jax.block_until_ready(run(*inputs))
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-gib", type=float, default=float("inf"), help="run nothing that takes more")
    args = parser.parse_args()

    shape = (args.batch, args.tokens, args.heads, args.width)
    array = jax.ShapeDtypeStruct(shape, jnp.dtype(args.dtype))
    device = jax.devices()[0]
    print(f"q, k, v {list(shape)} {args.dtype}, {'causal' if args.causal else 'full'}, jax {jax.__version__}")
    print(f"{device.device_kind} ({device.platform}), {os.cpu_count()} cores of {platform.machine()}")
    inputs = tuple(jax.random.normal(key, shape, array.dtype) for key in jax.random.split(jax.random.key(0), 3))
    for backward in (False, True):
        runs = {name: compiled(name, array, args.causal, backward) for name in BACKENDS}
        fitting = {name: run for name, (run, size) in runs.items() if size < min(free_bytes(), args.max_gib * 2**30)}
        medians = seconds(fitting, inputs, args.repeats)
        for name, (_, size) in runs.items():
            spent = f"{medians[name] * 1e3:9.1f} ms" if name in medians else "not run"
            print(f"{'backward' if backward else 'forward ':8} {name:10} {spent:>12} {size / 2**20:10.1f} MiB")
        for name in BACKENDS[:-1]:
            both = {name, "reference"} <= medians.keys()
            ratio = f"{medians['reference'] / medians[name]:.2f}x" if both else "not measured"
            less = runs["reference"][1] / max(runs[name][1], 1)
            print(f"         reference / {name}: time {ratio}, temporaries {less:.1f}x")


if __name__ == "__main__":
    main()
