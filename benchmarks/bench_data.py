"""Samples a second of FlowRVS's training data, by worker processes: what a step must not be faster than.

    python benchmarks/bench_data.py [--workers 0,1,2] [--samples 24] [--root MEVIS]

Without a dataset, clips of moving shapes at 480x854 and 30 frames are written in the layout of MeViS first; writing
is not timed. A sample is 17 decoded, augmented frames with masks, padded to 480x832.
"""

import argparse
import platform
import tempfile
import time
from pathlib import Path

import numpy as np

from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapes, MovingShapesConfig, to_mevis
from rvseg_jax.input_pipeline.loader import make_loader
from rvseg_jax.systems.flowrvs.data import DatasetsConfig, training_samples, training_source

CLIPS = 4


class Row:
    """The arrays of a sample, without its sentence."""

    def __init__(self, step: object) -> None:
        self.step = step

    def __call__(self, sample: object, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Shapes: frames [T, H, W, 3], masks [T, H, W]."""
        drawn = self.step(sample, rng)
        return {"frames": drawn.frames, "masks": drawn.masks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="0,1,2", help="worker processes, comma-separated")
    parser.add_argument("--samples", type=int, default=24, help="samples timed, after one that starts the workers")
    parser.add_argument("--root", type=Path, help="a MeViS folder with a split train")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = args.root or Path(name)
        if args.root is None:
            to_mevis(root / "train", MovingShapes(MovingShapesConfig(size=(480, 854), frames=30)), range(CLIPS))
        config = DatasetsConfig(sets=(("mevis", str(root), "train", 1),))
        source = training_source(config)
        print(f"{platform.machine()}, {len(source)} items of {root if args.root else 'moving shapes'}")
        for workers in map(int, args.workers.split(",")):
            row = Row(training_samples(config, source))
            stream = iter(make_loader(source, transform=row, batch_size=1, seed=0, num_workers=workers, prefetch=2))
            next(stream)
            start = time.perf_counter()
            for _ in range(args.samples):
                next(stream)
            rate = args.samples / (time.perf_counter() - start)
            stream.close()
            print(f"{workers} workers: {rate:.2f} samples a second, {1 / rate:.2f} s a sample", flush=True)


if __name__ == "__main__":
    main()
