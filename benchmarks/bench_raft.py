"""RAFT at published size beside torchvision's `raft_large`, in one process: one pair, twelve updates, float32.

    python benchmarks/bench_raft.py [--shapes 128x160,440x1024] [--lookup auto] [--repeats 5] [--stages]

Weights are random and the same on both sides; figures are medians. Without torchvision only our side runs. torchvision
brings all twelve predictions to the size of the image, ours the last.
"""

import argparse
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from side_by_side import compare, machine

from rvseg_jax.convert import from_torch
from rvseg_jax.convert.engine import plan_for
from rvseg_jax.convert.registry import part
from rvseg_jax.core.precision import FLOAT32
from rvseg_jax.models.raft.config import RaftConfig
from rvseg_jax.parity.weights_rule import rule_weights

Call = Callable[[np.ndarray, np.ndarray], np.ndarray]


def weights() -> dict[str, np.ndarray]:
    """Random weights under torchvision's keys."""
    plan, _ = plan_for(part("raft"), RaftConfig.large())
    return rule_weights({key: list(shape) for key, shape in plan.key_shapes.items()}, 0, [])


def ours(tensors: Mapping[str, np.ndarray], lookup: str) -> tuple[Call, dict[str, Call]]:
    """The whole model, and its stages one by one."""
    cfg = replace(RaftConfig.large(FLOAT32), corr_lookup=lookup)
    graph, state = nnx.split(from_torch("raft", tensors, cfg))

    def jitted(function: Callable[..., Any]) -> Call:
        compiled = jax.jit(lambda state, *images: function(nnx.merge(graph, state), *images))
        return lambda *images: np.asarray(jax.block_until_ready(compiled(state, *images)))

    stages = {
        "features": jitted(lambda model, *images: model.encode_features(jnp.concatenate(images))),
        "context": jitted(lambda model, first, _: model.encode_context(first)),
        "one update": jitted(lambda model, *images: model(*images, num_flow_updates=1)),
        "two updates": jitted(lambda model, *images: model(*images, num_flow_updates=2)),
    }
    return jitted(lambda model, *images: model(*images)), stages


def theirs(tensors: Mapping[str, np.ndarray]) -> tuple[Call | None, dict[str, Call]]:
    """The same of torchvision, or nothing where it is not installed."""
    try:
        import torch

        # torchvision's compiled operators do not load beside the CPU build of torch; nothing here calls them.
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from torchvision.models.optical_flow import raft_large
    except ImportError:
        return None, {}
    model = cast(Any, raft_large(weights=None).eval())
    model.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()}, strict=False)
    model.torchvision_operators = library  # they go when it goes

    def called(function: Callable[..., Any]) -> Call:
        def run(*images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return function(*(torch.tensor(np.moveaxis(image, -1, 1).copy()) for image in images)).numpy()

        return run

    stages = {
        "features": called(lambda *images: model.feature_encoder(torch.cat(images))),
        "context": called(lambda first, _: model.context_encoder(first)),
        "one update": called(lambda *images: model(*images, num_flow_updates=1)[-1]),
        "two updates": called(lambda *images: model(*images, num_flow_updates=2)[-1]),
    }
    return called(lambda *images: model(*images)[-1]), stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="128x160,440x1024", help="height x width, comma-separated")
    parser.add_argument("--lookup", default="auto", choices=("auto", "all_pairs", "on_demand"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stages", action="store_true", help="time parts of the model too")
    args = parser.parse_args()
    tensors = weights()
    (our_model, our_stages), (their_model, their_stages) = ours(tensors, args.lookup), theirs(tensors)
    print(f"{machine()}, float32, lookup {args.lookup}", flush=True)
    rng = np.random.default_rng(0)
    for shape in args.shapes.split(","):
        height, width = map(int, shape.split("x"))
        images = rng.uniform(-1, 1, (2, 1, height, width, 3)).astype(np.float32)
        rows = {"flow": (our_model, their_model)}
        if args.stages:
            rows |= {name: (stage, their_stages.get(name)) for name, stage in our_stages.items()}
        for name, sides in rows.items():
            named = zip(("ours", "torchvision"), sides, strict=True)
            calls = {side: functools.partial(call, *images) for side, call in named if call}
            compare(f"{name} {shape}", calls, repeats=args.repeats)
        if their_model:
            found, wanted = our_model(*images), np.moveaxis(their_model(*images), 1, -1)
            print(f"largest difference {np.abs(found - wanted).max():.1e} of {np.abs(wanted).max():.1f} pixels")


if __name__ == "__main__":
    main()
