"""Memory and time of a tracker over a long stream: neither may grow with the number of frames.

    python benchmarks/bench_stream.py sam2 xmem --frames 5000 --plot docs/images/stream.svg

The bundled models, or a checkpoint; a clip of moving_shapes runs forwards and backwards without end. Prints
host memory (resident set), device memory (bytes of live arrays) and the median time of a frame, at 200 frames and at
the end, and their ratios.
"""

import argparse
import gc
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rvseg_jax.input_pipeline.datasets.moving_shapes.tracking import TrackingShapes
from rvseg_jax.trackers import base

EVERY = 100
EARLY = 200


def stream(name: str, checkpoint: Path | None, frames: int) -> list[dict[str, Any]]:
    """One line for every hundredth frame: {"frame", "host", "device", "milliseconds"}."""
    tracker = base.module(name).load(checkpoint, dtype="float32", mesh=None)
    clip = TrackingShapes()[0]
    order = [*range(len(clip.frames)), *range(len(clip.frames) - 2, 0, -1)]
    session = tracker.session(objects=len(clip.ids))
    for object_id, mask in zip(clip.ids, clip.masks[:, 0], strict=True):
        session.add(object_id, mask=mask)
    lines, times = [], []
    for index in range(frames):
        start = time.perf_counter()
        session.step(clip.frames[order[index % len(order)]])
        times.append(time.perf_counter() - start)
        if (index + 1) % EVERY == 0:
            gc.collect()
            lines.append(
                {
                    "frame": index + 1,
                    "host": resident_bytes(),
                    "device": sum(array.nbytes for array in jax.live_arrays()),
                    "milliseconds": 1e3 * float(np.median(times[-EVERY:])),
                }
            )
    return lines


def resident_bytes() -> int:
    """Resident set of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trackers", nargs="+", choices=base.names())
    parser.add_argument("--checkpoint", type=Path, help="converted checkpoint; the bundled weights if not given")
    parser.add_argument("--frames", type=int, default=5_000)
    parser.add_argument("--plot", type=Path, help="write a plot (SVG)")
    parser.add_argument("--json", type=Path, help="write all lines")
    args = parser.parse_args()
    found = {}
    for name in args.trackers:
        lines = found[name] = stream(name, args.checkpoint, args.frames)
        early, late = next(line for line in lines if line["frame"] >= EARLY), lines[-1]
        for what, unit, scale in (("host", "MiB", 2**20), ("device", "MiB", 2**20), ("milliseconds", "ms", 1)):
            print(
                f"{name} {what}: {early[what] / scale:.1f} {unit} at frame {early['frame']}, "
                f"{late[what] / scale:.1f} {unit} at frame {late['frame']}, ratio {late[what] / early[what]:.4f}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(found))
    if args.plot:
        plot(found, args.plot)


def plot(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Host and device memory and the time of a frame against the number of frames, as SVG."""
    panels = (("host", "host memory, MiB", 2**20), ("device", "device memory, MiB", 2**20), ("milliseconds", "ms", 1))
    colours, width, height, left, top = ("#1f77b4", "#d62728"), 250, 150, 55, 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {3 * (width + left) + 20} {height + 80}" '
        f'width="{3 * (width + left) + 20}" height="{height + 80}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for place, (what, title, scale) in enumerate(panels):
        x0 = place * (width + left) + left
        top_value = max(line[what] for lines in found.values() for line in lines) / scale * 1.15
        frames = max(lines[-1]["frame"] for lines in found.values())
        parts.append(f'<text x="{x0}" y="{top - 10}">{title}</text>')
        parts.append(f'<rect x="{x0}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>')
        for value in (0, top_value / 2, top_value):
            y = top + height * (1 - value / top_value)
            parts.append(f'<text x="{x0 - 5}" y="{y + 4:.0f}" text-anchor="end">{value:.0f}</text>')
        for colour, (name, lines) in zip(colours, found.items(), strict=False):
            points = " ".join(
                f"{x0 + width * line['frame'] / frames:.1f},{top + height * (1 - line[what] / scale / top_value):.1f}"
                for line in lines
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            y = top + height + 32 + 14 * list(found).index(name)
            parts.append(f'<text x="{left}" y="{y}" fill="{colour}">{name}</text>')
        parts.append(f'<text x="{x0 + width}" y="{top + height + 15}" text-anchor="end">frame {frames}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
