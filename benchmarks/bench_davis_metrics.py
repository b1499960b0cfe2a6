"""Time of J and F against a plain restatement of the DAVIS formulas with OpenCV, on real predictions.

    .venv/bin/python benchmarks/bench_davis_metrics.py [DAVIS16_MINI DAVIS_PREDICTIONS] [--repeats 3]

DAVIS16_MINI holds `Annotations/480p/<sequence>/<frame>.png`, DAVIS_PREDICTIONS `<method>/<sequence>/<frame>.png`.
Without them, objects of moving_shapes are scored against what another sentence of their clip names. Reading or
making the masks is not timed. Needs opencv-python-headless (requirements-dev.txt).
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from rvseg_jax.evaluation.davis import region_and_boundary
from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapes, MovingShapesConfig

Clips = list[tuple[np.ndarray, np.ndarray]]
Metrics = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def read_clips(annotations: Path, predictions: Path) -> Clips:
    """Truth and prediction of every method and sequence, bool [T, H, W] each."""
    clips = []
    for folder in sorted(path for path in predictions.glob("*/*") if path.is_dir()):
        files = sorted(folder.glob("*.png"))
        truth = [np.array(Image.open(annotations / "480p" / folder.name / file.name)) > 0 for file in files]
        clips.append((np.stack(truth), np.stack([np.array(Image.open(file)) > 0 for file in files])))
    return clips


def made_clips(count: int = 6) -> Clips:
    """Truth and a wrong prediction from moving_shapes at the size of DAVIS, bool [T, H, W] each."""
    samples = MovingShapes(MovingShapesConfig(size=(480, 854), frames=9, absent=0.0))
    return [(samples[index].masks, samples[index].other_masks | samples[index].masks) for index in range(count)]


def ours(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """J and F of this library."""
    return region_and_boundary(truth, prediction)


def plain(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """J and F from their definition: whole frames, a disk and cv2.dilate."""
    union = np.sum(truth | prediction, axis=(1, 2))
    similarity = np.where(union == 0, 1, np.sum(truth & prediction, axis=(1, 2)) / np.maximum(union, 1))
    return similarity, np.array([_plain_boundary(*pair) for pair in zip(truth, prediction, strict=True)])


def _plain_boundary(truth: np.ndarray, prediction: np.ndarray) -> float:
    radius = math.ceil(0.008 * np.linalg.norm(truth.shape))
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x * x + y * y <= radius * radius).astype(np.uint8)
    true_edge, edge = _plain_edge(truth), _plain_edge(prediction)
    near_truth, near = (cv2.dilate(e.astype(np.uint8), disk) for e in (true_edge, edge))
    if not true_edge.any() or not edge.any():
        return float(true_edge.any() == edge.any())
    precision, recall = np.sum(edge * near_truth) / np.sum(edge), np.sum(true_edge * near) / np.sum(true_edge)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _plain_edge(mask: np.ndarray) -> np.ndarray:
    east, south, diagonal = (np.zeros_like(mask) for _ in range(3))
    east[:, :-1], south[:-1], diagonal[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edge = (mask ^ east) | (mask ^ south) | (mask ^ diagonal)
    edge[-1], edge[:, -1] = mask[-1] ^ east[-1], mask[:, -1] ^ south[:, -1]
    edge[-1, -1] = False
    return edge


def timed(metrics: Metrics, clips: Clips, repeats: int) -> tuple[float, list[np.ndarray]]:
    """Seconds of the fastest pass over all clips, and the values."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        values = [np.stack(metrics(*clip)) for clip in clips]
        seconds.append(time.perf_counter() - start)
    return min(seconds), values


def main() -> None:
    """Print one JSON object with milliseconds a frame, the ratio and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("davis", nargs="?", type=Path)
    parser.add_argument("predictions", nargs="?", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    real = args.davis is not None and args.predictions is not None
    clips = read_clips(args.davis / "Annotations", args.predictions) if real else made_clips()
    frames = sum(len(truth) for truth, _ in clips)
    our_seconds, our_values = timed(ours, clips, args.repeats)
    plain_seconds, plain_values = timed(plain, clips, args.repeats)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(our_values, plain_values, strict=True))
    result = {
        "data": "real" if real else "moving_shapes 480x854",
        "frames": frames,
        "ms_per_frame": round(1e3 * our_seconds / frames, 3),
        "plain_ms_per_frame": round(1e3 * plain_seconds / frames, 3),
        "times_faster": round(plain_seconds / our_seconds, 1),
        "largest_difference": difference,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
