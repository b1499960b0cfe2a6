"""UMT5 encoder blocks beside transformers, in one process.

    python benchmarks/bench_umt5.py [--layers 4] [--width 512] [--tokens 64] [--dtype float32|bfloat16]

`--layers 24 --width 4096 --tokens 512` is the published encoder. Weights are random; figures are medians. Without
transformers only our side runs.
"""

import argparse
import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from side_by_side import compare, machine, random_model

from rvseg_jax.core.precision import by_name
from rvseg_jax.models.umt5.encoder import UMT5Config, UMT5Encoder


def sizes(args: argparse.Namespace) -> dict[str, int]:
    """Fields that both sides call by the same names; the published proportions at any width."""
    width = args.width
    return {
        "vocab_size": 4096,
        "d_model": width,
        "d_kv": 64,
        "d_ff": width * 5 // 2,
        "num_layers": args.layers,
        "num_heads": width // 64,
    }


def ours(args: argparse.Namespace, ids: np.ndarray, mask: np.ndarray) -> Callable[[], object]:
    """One jitted call that waits for its result."""
    cfg = dataclasses.replace(UMT5Config.xxl(by_name(args.dtype)), **sizes(args))
    graph, state = random_model(lambda rngs: UMT5Encoder(cfg, rngs=rngs))
    call = jax.jit(lambda state, ids, mask: nnx.merge(graph, state)(ids, mask))
    return lambda: jax.block_until_ready(call(state, ids, mask))


def theirs(args: argparse.Namespace, ids: np.ndarray, mask: np.ndarray) -> Callable[[], object] | None:
    """The same of transformers, or None where it is not installed."""
    try:
        import torch
        from transformers import UMT5Config as TorchConfig
        from transformers import UMT5EncoderModel
    except ImportError:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = TorchConfig(feed_forward_proj="gated-gelu", **sizes(args))
    model = UMT5EncoderModel(config).eval().to(device, getattr(torch, args.dtype))
    ids, mask = torch.from_numpy(ids).long().to(device), torch.from_numpy(mask).long().to(device)

    def run() -> None:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=mask).last_hidden_state.float().sum().item()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    ids = rng.integers(3, 4096, (1, args.tokens), np.int32)
    mask = np.arange(args.tokens)[None] < args.tokens * 3 // 4
    peer = theirs(args, ids, mask)
    sides = {"ours": ours(args, ids, mask)} | ({"transformers": peer} if peer else {})
    print(f"{machine()}, {args.dtype}")
    compare(f"{args.layers} layers of width {args.width}, {args.tokens} tokens", sides, repeats=args.repeats)


if __name__ == "__main__":
    main()
