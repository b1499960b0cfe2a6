"""Makes the pictures of the bundled trackers.

    python docs/images/tiny_trackers.py sam2 --rows runs/tiny/sam2/metrics.jsonl

`tiny_<tracker>_clips.png`: the first held-out clip of each event; frames 0, 6, 12, 18 and 23 with the truth of every
object outlined in white and its mask in colour. `tiny_<tracker>_curve.svg`: loss and validation J of the run.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tiny_model import CAPTION, GAP, HERE, SCALE, curve

from rvseg_jax.evaluation.tracking import followed, visible_frames
from rvseg_jax.formats.overlay import outline, paint
from rvseg_jax.input_pipeline.datasets.moving_shapes.tracking import EVENTS, tracking_held_out
from rvseg_jax.trackers import base

SHOWN = (0, 6, 12, 18, 23)
# Metric and title of the loss, of which one at the start of a run leaves the picture.
LOSSES = {"sam2": ("dice", "Dice loss, sum over the frames of a clip, / 4"), "xmem": ("dice", "Dice loss")}
SHARE = {"sam2": 0.25, "xmem": 1.0}


def clips(name: str) -> Image.Image:
    """A row for each event."""
    tracker, source = base.module(name).load(None, dtype="float32", mesh=None), tracking_held_out()
    rows = []
    for index in range(len(EVENTS)):
        sample = source[index]
        masks = followed(tracker, sample)
        pictures = []
        for frame in SHOWN:
            big = np.kron(masks[:, frame], np.ones((1, SCALE, SCALE), bool))
            image = paint(np.kron(sample.frames[frame], np.ones((SCALE, SCALE, 1), np.uint8)), big)
            for truth in sample.masks[:, frame]:
                image[outline(np.kron(truth, np.ones((SCALE, SCALE), bool)), 1)] = 255
            pictures.append(np.pad(image, ((0, 0), (0, GAP), (0, 0)), constant_values=255))
        strip = np.concatenate(pictures, axis=1)
        scores = ", ".join(f"{(one['j'] + one['f']) / 2:.2f}" for one in visible_frames(sample, masks))
        canvas = Image.new("RGB", (strip.shape[1], strip.shape[0] + CAPTION + GAP), "white")
        canvas.paste(Image.fromarray(strip), (0, CAPTION))
        ImageDraw.Draw(canvas).text((2, 4), f"{sample.kind}: J&F of its objects {scores}", fill="black")
        rows.append(np.asarray(canvas))
    return Image.fromarray(np.concatenate(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tracker", choices=base.names())
    parser.add_argument("--rows", type=Path, required=True, help="metrics.jsonl of the training run")
    args = parser.parse_args()
    clips(args.tracker).save(HERE / f"tiny_{args.tracker}_clips.png", optimize=True)
    metric, title = LOSSES[args.tracker]
    rows = [json.loads(text) for text in args.rows.read_text().splitlines()]
    rows = [row | {metric: row[metric] * SHARE[args.tracker]} if metric in row else row for row in rows]
    (HERE / f"tiny_{args.tracker}_curve.svg").write_text(curve(rows, metric, title, 16))


if __name__ == "__main__":
    main()
