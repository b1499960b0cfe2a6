"""Wan2.1-1.3B transformer blocks beside diffusers: forward, and the loss with all gradients.

    python benchmarks/bench_dit.py [--latents 3x30x52] [--layers 1] [--dtype float32|bfloat16] [--gradients]

The default is one block at the published width and 1,170 tokens, with 512 tokens of text. `--layers 30` is the
whole transformer. Weights are random; figures are medians. Without diffusers only our side runs.
"""

import argparse
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from side_by_side import compare, machine, random_model

from rvseg_jax.core.precision import by_name
from rvseg_jax.models.wan.transformer import WanTransformer
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig

TEXT = 512


def ours(args: argparse.Namespace, latents: np.ndarray, text: np.ndarray) -> Callable[[], object]:
    """One jitted call that waits for its result."""
    cfg = dataclasses.replace(WanTransformerConfig.t2v_1_3b(by_name(args.dtype)), num_layers=args.layers)
    graph, state = random_model(lambda rngs: WanTransformer(cfg, rngs=rngs))
    time = jnp.array([1000.0])

    def forward(state: nnx.State, x: jax.Array, text: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x, time, text)

    function = forward
    if args.gradients:
        function = jax.grad(lambda state, x, text: jnp.mean(jnp.square(forward(state, x, text).astype(jnp.float32))))
    call = jax.jit(function)
    x, text = jnp.asarray(np.moveaxis(latents, 1, -1), cfg.precision.compute_dtype), jnp.asarray(text)
    return lambda: jax.block_until_ready(call(state, x, text))


def theirs(args: argparse.Namespace, latents: np.ndarray, text: np.ndarray) -> Callable[[], object] | None:
    """The same of diffusers, or None where it is not installed."""
    try:
        import torch
        from diffusers import WanTransformer3DModel
    except ImportError:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, args.dtype)
    sizes = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": args.layers}
    with torch.device(device):
        model = WanTransformer3DModel(**sizes).to(dtype)
    x, states = torch.from_numpy(latents).to(device, dtype), torch.from_numpy(text).to(device, dtype)
    time = torch.tensor([1000.0], device=device)
    if args.compile:
        model = torch.compile(model)

    def forward() -> None:
        with torch.inference_mode():
            model(x, time, states, return_dict=False)[0].float().sum().item()

    def gradients() -> None:
        model.zero_grad()
        loss = model(x, time, states, return_dict=False)[0].float().square().mean()
        loss.backward()
        loss.item()

    return gradients if args.gradients else forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", default="3x30x52", help="latent frames x height x width")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--gradients", action="store_true", help="time the gradients of all parameters")
    parser.add_argument("--compile", action="store_true", help="torch.compile the other side")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    frames, height, width = map(int, args.latents.split("x"))
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((1, 16, frames, height, width), np.float32)
    text = rng.standard_normal((1, TEXT, 4096), np.float32)
    peer = theirs(args, latents, text)
    sides = {"ours": ours(args, latents, text)} | ({"diffusers": peer} if peer else {})
    what = "gradients" if args.gradients else "forward"
    print(f"{machine()}, {args.dtype}")
    compare(f"{args.layers} blocks, {frames * height * width // 4:,} tokens, {what}", sides, repeats=args.repeats)


if __name__ == "__main__":
    main()
