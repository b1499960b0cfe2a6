"""Time and peak memory of converting a file of random weights, in a process of its own.

    python benchmarks/bench_convert.py [--layers 6] [--dtype source|float32|bfloat16]

The file holds blocks of the Wan2.1-1.3B transformer in float32; 6 of them make 1.2 GB.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def write(folder: Path, layers: int) -> int:
    """Writes the weights and their config; returns the bytes of the largest tensor once stacked over layers."""
    import jax
    from flax import nnx
    from safetensors.numpy import save_file

    from rvseg_jax import convert
    from rvseg_jax.convert.manifest import config_fields
    from rvseg_jax.core.precision import FLOAT32
    from rvseg_jax.models.wan.transformer import WanTransformer
    from rvseg_jax.models.wan.transformer_config import WanTransformerConfig

    cfg = dataclasses.replace(WanTransformerConfig.t2v_1_3b(FLOAT32), num_layers=layers)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: WanTransformer(cfg, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    tensors = convert.to_torch("wan_dit", nnx.merge(graph, state))
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_fields(cfg)))
    return max(4 * int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def measured(folder: Path, dtype: str) -> None:
    """Converts, and prints seconds and peak bytes; runs in a process of its own."""
    from rvseg_jax.convert.__main__ import main as convert
    from rvseg_jax.core.memory import peak_resident_bytes

    start = time.perf_counter()
    words = ["convert", "wan_dit", str(folder / "model.safetensors"), "--config", str(folder / "config.json")]
    code = convert([*words, "-o", str(folder / "converted"), "--dtype", dtype, "--quiet"])
    print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak_resident_bytes(), "code": code}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dtype", default="source", choices=["source", "float32", "bfloat16"])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measured(args.measure, args.dtype)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        largest = write(folder, args.layers)
        size = (folder / "model.safetensors").stat().st_size
        command = [sys.executable, __file__, "--measure", name, "--dtype", args.dtype]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = json.loads(printed.splitlines()[-1])
        over = found["peak"] - largest
        print(
            f"{size / 1e9:.2f} GB to {args.dtype}: {found['seconds']:.1f} s, peak {found['peak'] / 2**30:.2f} GiB, "
            f"largest leaf {largest / 2**30:.2f} GiB, {over / 2**30:.2f} GiB over it"
        )


if __name__ == "__main__":
    main()
