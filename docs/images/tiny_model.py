"""Makes the pictures of the bundled model from a run of `rvseg eval flowrvs moving_shapes -o DIR`.

    python docs/images/tiny_model.py DIR --rows runs/tiny/dit/metrics.jsonl

`tiny_model_clips.png`: six held-out clips, from one of the best to the worst by J&F; each row has the first, middle and
last frame with the truth outlined in white and the mask in colour. `tiny_model_curve.svg`: loss and
validation J of the training run.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import rvseg_jax as rv
from rvseg_jax.formats.overlay import outline, paint
from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapesSample, held_out

HERE = Path(__file__).parent
SCALE, GAP, CAPTION = 2, 8, 22


def chosen(folder: Path) -> list[dict]:
    """Scores of the clips to show, best first."""
    lines = (folder / "samples.jsonl").read_text().splitlines()
    scores = [score for score in map(json.loads, lines) if score["expression"] == "target"]
    scores.sort(key=lambda score: score["j"] + score["f"], reverse=True)
    count = len(scores)
    return [
        scores[place] for place in (count // 20, count // 3, count // 2, 2 * count // 3, 9 * count // 10, count - 1)
    ]


def row(sample: MovingShapesSample, masks: np.ndarray, caption: str) -> Image.Image:
    """Three frames side by side under a caption."""
    pictures = []
    for frame in (0, len(masks) // 2, len(masks) - 1):
        big = [np.kron(m[frame], np.ones((SCALE, SCALE), bool)) for m in (masks, sample.masks)]
        image = paint(np.kron(sample.frames[frame], np.ones((SCALE, SCALE, 1), np.uint8)), big[0][None])
        image[outline(big[1], 1)] = 255
        pictures.append(np.pad(image, ((0, 0), (0, GAP), (0, 0)), constant_values=255))
    strip = np.concatenate(pictures, axis=1)
    canvas = Image.new("RGB", (strip.shape[1], strip.shape[0] + CAPTION), "white")
    canvas.paste(Image.fromarray(strip), (0, CAPTION))
    ImageDraw.Draw(canvas).text((2, 4), caption, fill="black")
    return canvas


def clips(folder: Path) -> Image.Image:
    """Six rows in two columns."""
    model, source = rv.load("flowrvs"), held_out()
    rows = []
    for score in chosen(folder):
        sample = source[int(score["video"].rsplit("_", 1)[-1])]
        masks = model.predict(sample.frames, sample.text).masks[0]
        both = (score["j"] + score["f"]) / 2
        rows.append(row(sample, masks, f"{sample.text} ({score['kind']}): J&F {both:.2f}"))
    width, height = rows[0].size
    canvas = Image.new("RGB", (2 * width + GAP, 3 * (height + GAP)), "white")
    for place, picture in enumerate(rows):
        canvas.paste(picture, (place // 3 * (width + GAP), place % 3 * (height + GAP)))
    return canvas


def curve(rows: list[dict], loss: str, title: str, clips: int) -> str:
    """A loss, smoothed, and validation J over the steps, as SVG.

    Args:
      loss: its name among the metrics.
      title: what to call it.
      clips: of validation.
    """
    steps = rows[-1]["step"]
    losses = [(r["step"], r[loss]) for r in rows if loss in r]
    window = max(1, len(losses) // 100)
    smooth = [
        (losses[i][0], float(np.mean([loss for _, loss in losses[i : i + window]])))
        for i in range(0, len(losses), window)
    ]
    validation = [(r["step"], r["evaluation/j"]) for r in rows if "evaluation/j" in r]
    width, height, margin = 640, 260, 40

    def line(points: list[tuple[int, float]], colour: str) -> str:
        places = [
            f"{margin + (width - 2 * margin) * s / steps:.1f},{height - margin - (height - 2 * margin) * min(v, 1):.1f}"
            for s, v in points
        ]
        return f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{" ".join(places)}"/>'

    def text(x: float, y: float, words: str, colour: str = "#333") -> str:
        return f'<text x="{x}" y="{y}" fill="{colour}" font-family="sans-serif" font-size="12">{words}</text>'

    grid = "".join(
        f'<line x1="{margin}" x2="{width - margin}" y1="{y}" y2="{y}" stroke="#ddd"/>{text(12, y + 4, f"{level:.1f}")}'
        for level in (0, 0.5, 1)
        for y in [height - margin - (height - 2 * margin) * level]
    )
    body = [
        grid,
        line(smooth, "#c33"),
        line(validation, "#26c"),
        text(margin, 20, title, "#c33"),
        text(margin + 260, 20, f"J on {clips} validation clips", "#26c"),
        text(width - 130, height - 12, f"{steps:,} steps"),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(body)}</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path, help="folder that `rvseg eval` wrote")
    parser.add_argument("--rows", type=Path, required=True, help="metrics.jsonl of the training run")
    args = parser.parse_args()
    clips(args.evaluation).save(HERE / "tiny_model_clips.png", optimize=True)
    rows = [json.loads(text) for text in args.rows.read_text().splitlines()]
    (HERE / "tiny_model_curve.svg").write_text(curve(rows, "start_loss", "velocity loss at the start of the path", 64))


if __name__ == "__main__":
    main()
