"""MLLMSeg's mask decoder at its published size (34 million parameters) beside the original, in one process.

    python benchmarks/bench_mllmseg.py [--upstream CHECKOUT] [--phrases 1] [--dtype float32|bfloat16]

CHECKOUT is a clone of jcwang0602/MLLMSeg; without it only our side runs. Weights are random; figures are medians. Ours
looks at the image once for all phrases, the original once for each.
"""

import argparse
import sys
import types
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from side_by_side import compare, machine, random_model

from rvseg_jax.core.precision import by_name
from rvseg_jax.models.mllmseg.config import MaskDecoderConfig
from rvseg_jax.models.mllmseg.mask_decoder import MaskDecoder

PATCHES, READ = 32 * 32, 16 * 16


def ours(args: argparse.Namespace, inputs: tuple[np.ndarray, ...]) -> Callable[[], object]:
    """A call that waits for the masks."""
    cfg = MaskDecoderConfig(text_width=args.width, precision=by_name(args.dtype))
    graph, state = random_model(lambda rngs: MaskDecoder(cfg, rngs=rngs))
    run = jax.jit(lambda state, *inputs: jax.nn.sigmoid(nnx.merge(graph, state)(*inputs)))
    given = [jnp.asarray(array) for array in inputs]
    return lambda: jax.block_until_ready(run(state, *given))


def theirs(args: argparse.Namespace, inputs: tuple[np.ndarray, ...]) -> Callable[[], object] | None:
    """The same of the original, whose module is imported without the InternVL and the losses that it names."""
    if args.upstream is None:
        return None
    import torch

    def stub(name: str, **names: object) -> None:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(names)

    for name in ("internvl", "internvl.model", "internvl.model.internvl_chat"):
        stub(name)
    stub("internvl.model.internvl_chat.modeling_internvl_chat", InternVLChatModel=torch.nn.Module)
    stub("utils.losses", **dict.fromkeys(("dice_loss_plvl", "sigmoid_focal_loss", "mask_iou")))
    sys.path.insert(0, str(args.upstream))
    from mllmseg.mllmseg_internvl import RESDecoder

    decoder = RESDecoder(args.width).eval().to(getattr(torch, args.dtype))
    patches, read, words = (torch.from_numpy(array).to(getattr(torch, args.dtype)) for array in inputs)
    phrases = words.shape[1]

    def run() -> None:
        with torch.inference_mode():
            repeated = (patches.repeat(phrases, 1, 1), read.repeat(phrases, 1, 1), words[0][:, None])
            decoder(None, *repeated)[0].float().sum().item()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, help="clone of jcwang0602/MLLMSeg")
    parser.add_argument("--phrases", type=int, default=1)
    parser.add_argument("--width", type=int, default=4096, help="of the language model")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    shapes = ((1, PATCHES, 1024), (1, READ, args.width), (1, args.phrases, args.width))
    inputs = tuple(rng.standard_normal(shape, np.float32) for shape in shapes)
    peer = theirs(args, inputs)
    sides = {"ours": ours(args, inputs)} | ({"original": peer} if peer else {})
    print(f"{machine()}, {args.dtype}")
    compare(f"mask decoder, {args.phrases} phrases of a 448x448 image", sides, repeats=args.repeats)


if __name__ == "__main__":
    main()
