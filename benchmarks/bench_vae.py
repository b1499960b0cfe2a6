"""Wan autoencoder at its published width: encode and decode beside diffusers, in one process.

    python benchmarks/bench_vae.py [--shapes 5x64x64,9x128x128] [--dtype float32|bfloat16] [--chunk 1]

Weights are random; figures are medians. Without diffusers only our side runs.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from side_by_side import compare, machine, random_model

from rvseg_jax.core.precision import by_name
from rvseg_jax.models.wan.vae import WanVAE, WanVAEConfig


def ours(dtype: str, chunk: int | None) -> dict[str, Callable[[np.ndarray], object]]:
    """Jitted encode and decode that wait for their result."""
    cfg = WanVAEConfig.wan2_1(by_name(dtype))
    graph, state = random_model(lambda rngs: WanVAE(cfg, rngs=rngs))
    encode = jax.jit(lambda state, video: nnx.merge(graph, state).encode(video, chunk=chunk).mean)
    decode = jax.jit(lambda state, latents: nnx.merge(graph, state).decode(latents, chunk=chunk))
    return {
        "encode": lambda x: jax.block_until_ready(encode(state, x)),
        "decode": lambda x: jax.block_until_ready(decode(state, x)),
    }


def theirs(dtype: str) -> dict[str, Callable[[np.ndarray], object]]:
    """The same of diffusers, or nothing where it is not installed."""
    try:
        import diffusers
        import torch
    except ImportError:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = diffusers.AutoencoderKLWan().eval().to(device, getattr(torch, dtype))

    def run(function: Callable[[Any], Any], x: np.ndarray) -> None:
        with torch.inference_mode():
            function(torch.tensor(np.moveaxis(x, -1, 1).copy()).to(device, model.dtype)).cpu()

    return {
        "encode": lambda x: run(lambda t: model.encode(t).latent_dist.mean, x),
        "decode": lambda x: run(lambda t: model.decode(t).sample, x),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="5x64x64,9x128x128", help="frames x height x width, comma-separated")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--chunk", type=int, help="latent frames at a time; all at once if absent")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    sides = {"ours": ours(args.dtype, args.chunk), "diffusers": theirs(args.dtype)}
    print(f"{machine()}, {args.dtype}, chunk {args.chunk}")
    rng = np.random.default_rng(1)
    for shape in args.shapes.split(","):
        frames, height, width = map(int, shape.split("x"))
        latents = (1, (frames - 1) // 4 + 1, height // 8, width // 8, 16)
        inputs = {"encode": rng.uniform(-1, 1, (1, frames, height, width, 3)), "decode": rng.normal(size=latents)}
        for name, values in inputs.items():
            x = values.astype(np.float32)
            calls = {side: (lambda run=runs[name], x=x: run(x)) for side, runs in sides.items() if runs}
            compare(f"{name} {shape}", calls, repeats=args.repeats)


if __name__ == "__main__":
    main()
