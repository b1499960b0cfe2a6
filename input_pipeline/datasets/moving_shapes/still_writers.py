"""Writes still images in the layouts of datasets, so that loaders and evaluators run on known truth."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from rvseg_jax.formats import refcoco_writer, rle
from rvseg_jax.input_pipeline.datasets.moving_shapes.stills import StillReferrals, StillShapes

# Layouts of `rvseg data make`: the folder below the output and the split if none is given.
LAYOUTS = {"refcoco_stills": ("coco", "val"), "grefcoco": ("coco", "val"), "referral_json": ("referrals", "val")}


def write_layout(layout: str, root: Path, source: StillShapes, indices: Iterable[int], split: str) -> int:
    """Writes images as a dataset of `LAYOUTS`.

    Returns:
      The number of expressions.
    """
    writers = {"refcoco_stills": to_refcoco_stills, "grefcoco": to_grefcoco, "referral_json": to_referral_json}
    return writers[layout](root, source, indices, split=split)


def to_refcoco_stills(
    root: str | Path,
    source: StillShapes,
    indices: Iterable[int],
    *,
    dataset: str = "refcoco",
    split: str = "train",
    polygons: bool = True,
) -> int:
    """Writes images as a split of RefCOCO, without the expressions that name nothing or several objects.

    Args:
      root: holds the datasets of this kind and the images.
      source: the images.
      indices: which.
      dataset: "refcoco", "refcoco+" or "refcocog".
      split: as that dataset calls it.
      polygons: whether masks are polygons, or run-length coded.

    Returns:
      The number of expressions.
    """
    writer = refcoco_writer.SplitWriter(Path(root), dataset, split)
    count = 0
    for index in indices:
        item = source[index]
        sentences: dict[int, list[str]] = {}
        for expression, ids in zip(item.expressions, item.targets, strict=True):
            if len(ids) == 1:
                sentences.setdefault(ids[0], []).append(expression.text)
        writer.add(item.image(), item.object_masks[list(sentences)], [*sentences.values()], polygons=polygons)
        count += sum(map(len, sentences.values()))
    writer.close()
    return count


def to_grefcoco(
    root: str | Path, source: StillShapes, indices: Iterable[int], *, split: str = "train", polygons: bool = True
) -> int:
    """Writes images as a split of gRefCOCO, with all their expressions in order.

    Args:
      root, source, indices, polygons: as `to_refcoco_stills`.
      split: "train", "val", "testA" or "testB".

    Returns:
      The number of expressions.
    """
    writer = refcoco_writer.GrefSplitWriter(Path(root), split)
    count = 0
    for index in indices:
        item = source[index]
        said = [(one.text, ids) for one, ids in zip(item.expressions, item.targets, strict=True)]
        writer.add(item.image(), item.object_masks, said, polygons=polygons)
        count += len(said)
    writer.close()
    return count


def to_referral_json(root: str | Path, source: StillShapes, indices: Iterable[int], *, split: str = "train") -> int:
    """Writes images as `<split>.jsonl` beside lossless images, with all their expressions in order.

    Args:
      root: folder of the file.
      source, indices: as `to_refcoco_stills`.
      split: what the file is called.

    Returns:
      The number of expressions.
    """
    folder, lines = Path(root), []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    count = 0
    for index in indices:
        item = source[index]
        Image.fromarray(item.image()).save(folder / "images" / f"{item.name}.png")
        lines.append(json.dumps(_entry(item)))
        count += len(item.expressions)
    (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return count


def _entry(item: StillReferrals) -> dict[str, Any]:
    said = [
        {"text": one.text, "kind": one.kind, "masks": [rle.encode(item.object_masks[i]) for i in ids] or None}
        for one, ids in zip(item.expressions, item.targets, strict=True)
    ]
    return {"image": f"images/{item.name}.png", "id": item.name, "expressions": said}
