"""SAM 2.1 and XMem at published size beside their originals, in one process, frame by frame.

    python benchmarks/bench_trackers.py sam2 --frames 12
    python benchmarks/bench_trackers.py xmem --peer path/to/XMem --frames 12

Random weights, moving shapes at 854x480, one object given in the first frame. "encode" is the image encoder on one
frame, "frame" a whole tracking step, encoder included, in the median over the frames after the eighth (SAM 2, whose
memory is full then) or the third (XMem). Beside other work only the processor time on one core means something
(`taskset -c 0 python ...`): with more, threads that wait for each other count as busy.

The original `sam2` is used where it is installed (`SAM2_BUILD_CUDA=0 pip install --no-deps --no-build-isolation sam2`,
with hydra-core, iopath and torchvision), XMem from its checkout.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image
from side_by_side import compare, machine, random_model

from rvseg_jax.input_pipeline.datasets.moving_shapes.tracking import TrackingShapes, TrackingShapesConfig

SIZE = (480, 854)
WARM = {"sam2": 8, "xmem": 3}


def clip(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [T, H, W, 3] and the first mask bool [H, W]."""
    sample = TrackingShapes(TrackingShapesConfig(size=SIZE, frames=max(frames, 8), objects=(2, 2)))[0]
    return sample.frames[:frames], sample.masks[0, 0]


def ours(name: str, frames: np.ndarray, mask: np.ndarray) -> tuple[Iterator[object], Callable[[], object]]:
    """A run over the frames that yields after each, and a call of the image encoder."""
    if name == "sam2":
        from rvseg_jax.models.sam2.config import Sam2Config
        from rvseg_jax.models.sam2.model import Sam2
        from rvseg_jax.processing.sam2 import square_frame
        from rvseg_jax.trackers.sam2 import Sam2Tracker

        cfg = Sam2Config.sam2_1_tiny()
        graph, state = random_model(lambda rngs: Sam2(cfg, rngs=rngs))
        tracker: Any = Sam2Tracker(nnx.merge(graph, state))
        image = jnp.asarray(square_frame(frames[0], cfg.image_size))[None]

        def encode() -> object:
            return jax.block_until_ready(tracker.programs.encode_image(image))
    else:
        from rvseg_jax.models.xmem.config import MemoryConfig, XMemConfig
        from rvseg_jax.models.xmem.network import XMem
        from rvseg_jax.trackers.xmem import XMemTracker

        cfg_xmem = XMemConfig.published()
        graph, state = random_model(lambda rngs: XMem(cfg_xmem, rngs=rngs))
        tracker = XMemTracker(nnx.merge(graph, state), MemoryConfig())
        picture = jnp.zeros((1, 480, 864, 3))
        program = jax.jit(lambda weights, x: nnx.merge(graph, weights).encode_key(x))

        def encode() -> object:
            return jax.block_until_ready(program(state, picture))

    def run() -> Iterator[object]:
        session = tracker.session()
        session.add(1, mask=mask)
        for frame in frames:
            yield session.step(frame)

    return run(), encode


def original_sam2(frames: np.ndarray, mask: np.ndarray) -> tuple[Iterator[object], Callable[[], object]]:
    """The same of the original."""
    import torch

    # torchvision's compiled operators do not load beside the CPU build of torch; nothing here calls them.
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from sam2.build_sam import build_sam2_video_predictor

    model = build_sam2_video_predictor("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu")
    model.torchvision_operators = library  # they go when it goes
    image = torch.zeros(1, 3, 1024, 1024)

    def encode() -> object:
        with torch.inference_mode():
            return model.forward_image(image)

    def run() -> Iterator[object]:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode(), contextlib.redirect_stderr(io.StringIO()):
            for index, frame in enumerate(frames):
                Image.fromarray(frame).save(Path(folder) / f"{index:05d}.jpg", quality=100)
            state = model.init_state(folder)
            model.add_new_mask(state, 0, 1, mask)
            yield from model.propagate_in_video(state)

    return run(), encode


def original_xmem(peer: Path, frames: np.ndarray, mask: np.ndarray) -> tuple[Iterator[object], Callable[[], object]]:
    """The same of the original, from a checkout."""
    import torch
    from torch.utils import model_zoo

    sys.path.insert(0, str(peer))
    model_zoo.load_url = lambda url: {}
    from inference.inference_core import InferenceCore
    from model import resnet
    from model.network import XMem

    resnet.load_weights_add_extra_dim = lambda *_, **__: None
    config = {"key_dim": 64, "value_dim": 512, "hidden_dim": 64, "single_object": False}
    config |= {"enable_long_term": True, "enable_long_term_count_usage": True, "mem_every": 5, "deep_update_every": -1}
    config |= {"top_k": 30, "max_mid_term_frames": 10, "min_mid_term_frames": 5, "num_prototypes": 128}
    config |= {"max_long_term_elements": 10_000}
    with contextlib.redirect_stdout(io.StringIO()):
        model = XMem(dict(config)).eval()
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255

    def encode() -> object:
        with torch.inference_mode():
            return model.encode_key(torch.zeros(1, 3, 480, 864))

    def run() -> Iterator[object]:
        core = InferenceCore(model, dict(config))
        core.set_all_labels([1])
        with torch.inference_mode():
            yield core.step(images[0], torch.from_numpy(mask[None]).float(), [1])
            for image in images[1:]:
                yield core.step(image)

    return run(), encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tracker", choices=("sam2", "xmem"))
    parser.add_argument("--peer", type=Path, help="checkout of the original XMem")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3, help="of the image encoder")
    args = parser.parse_args()
    frames, mask = clip(args.frames)
    sides = {"ours": ours(args.tracker, frames, mask)}
    if args.tracker == "xmem" and args.peer:
        sides["original"] = original_xmem(args.peer, frames, mask)
    elif args.tracker == "sam2":
        with contextlib.suppress(ImportError):
            sides["original"] = original_sam2(frames, mask)
    print(f"{machine()}, float32, one object, frames of {SIZE[1]}x{SIZE[0]}", flush=True)
    compare(f"{args.tracker} encode", {side: encode for side, (_, encode) in sides.items()}, repeats=args.repeats)
    # Frame by frame in turn, so that a slow spell meets both.
    clocks = {"frame": time.perf_counter, "frame, processor time": time.process_time}
    times: dict[str, dict[str, list[float]]] = {name: {side: [] for side in sides} for name in clocks}
    for index in range(len(frames)):
        for side, (run, _) in sides.items():
            start = {name: clock() for name, clock in clocks.items()}
            next(run)
            if index >= WARM[args.tracker]:
                for name, clock in clocks.items():
                    times[name][side].append(clock() - start[name])
    for name, taken in times.items():
        medians = {side: statistics.median(each) for side, each in taken.items()}
        line = ", ".join(f"{side} {1000 * value:.0f} ms" for side, value in medians.items())
        ratio = f", ratio {medians['ours'] / medians['original']:.2f}" if "original" in medians else ""
        print(f"{args.tracker} {name}: {line}{ratio}")


if __name__ == "__main__":
    main()
