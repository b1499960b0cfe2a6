"""Wan autoencoder at its published width: encode and decode beside diffusers, in one process.

    python benchmarks/bench_vae.py [--shapes 5x64x64,9x128x128] [--dtype float32|bfloat16] [--chunk 1]

Weights are random. Calls of both sides alternate, so that a slow spell of the machine meets both; the figures
are medians, and the ratio is ours / theirs. Without diffusers only our side runs.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.precision import by_name
from rvseg_jax.models.wan.vae import WanVAE, WanVAEConfig


def ours(args: argparse.Namespace) -> dict[str, Callable[[np.ndarray], object]]:
    """Jitted encode and decode that wait for their result."""
    cfg = WanVAEConfig.wan2_1(by_name(args.dtype))
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: WanVAE(cfg, rngs=nnx.Rngs(0))))
    leaves, treedef = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    fans = [max(1, int(np.prod(leaf.shape[:-1]))) for leaf in leaves]
    arrays = [rng.standard_normal(leaf.shape, np.float32) / fan**0.5 for leaf, fan in zip(leaves, fans, strict=True)]
    state = jax.tree.unflatten(treedef, [jnp.asarray(a, leaf.dtype) for a, leaf in zip(arrays, leaves, strict=True)])

    @jax.jit
    def encode(state: nnx.State, video: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state).encode(video, chunk=args.chunk).mean

    @jax.jit
    def decode(state: nnx.State, latents: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state).decode(latents, chunk=args.chunk)

    return {
        "encode": lambda x: jax.block_until_ready(encode(state, x)),
        "decode": lambda x: jax.block_until_ready(decode(state, x)),
    }


def theirs(args: argparse.Namespace) -> dict[str, Callable[[np.ndarray], object]]:
    """The same of diffusers, or nothing where it is not installed."""
    try:
        import diffusers
        import torch
    except ImportError:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = diffusers.AutoencoderKLWan().eval().to(device, getattr(torch, args.dtype))

    def run(function: Callable[[torch.Tensor], torch.Tensor], x: np.ndarray) -> None:
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
    sides = {"ours": ours(args), "diffusers": theirs(args)}
    print(
        f"{platform.machine()} {jax.devices()[0].device_kind}, jax {jax.__version__}, {args.dtype}, chunk {args.chunk}"
    )
    rng = np.random.default_rng(1)
    for shape in args.shapes.split(","):
        frames, height, width = map(int, shape.split("x"))
        latent_shape = (1, (frames - 1) // 4 + 1, height // 8, width // 8, 16)
        inputs = {"encode": rng.uniform(-1, 1, (1, frames, height, width, 3)), "decode": rng.normal(size=latent_shape)}
        for name, x in inputs.items():
            x, times = x.astype(np.float32), {side: [] for side, runs in sides.items() if runs}
            for repeat in range(args.repeats + 1):
                for side, taken in times.items():
                    start = time.perf_counter()
                    sides[side][name](x)
                    if repeat:  # the first call compiles
                        taken.append(time.perf_counter() - start)
            medians = {side: statistics.median(taken) for side, taken in times.items()}
            line = ", ".join(f"{side} {1000 * value:.0f} ms" for side, value in medians.items())
            ratio = f", ratio {medians['ours'] / medians['diffusers']:.2f}" if "diffusers" in medians else ""
            print(f"{name} {shape}: {line}{ratio}", flush=True)


if __name__ == "__main__":
    main()
