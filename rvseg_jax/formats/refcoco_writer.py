"""Writes images with sentences in both layouts of RefCOCO; `formats.refcoco` describes and reads them."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import meta_expressions, rle
from rvseg_jax.formats.mevis import write_jpegs
from rvseg_jax.formats.refcoco import IMAGE_FOLDERS, MADE_BY, SPLITS


class SplitWriter:
    """Writes sentences about images in both layouts; `close` writes the lists."""

    def __init__(self, root: Path, dataset: str, split: str) -> None:
        """Starts at `root`; the splits are those in common use."""
        made_by = MADE_BY[dataset][0]
        if split not in SPLITS[made_by]:
            raise InputError(f"{dataset} has no split {split!r}; choose from {', '.join(SPLITS[made_by])}")
        self._root, self._dataset, self._split, self._made_by = root, dataset, split, made_by
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._refs: list[dict[str, Any]] = []
        self._sentences = 0

    def add(self, image: np.ndarray, masks: np.ndarray, sentences: Sequence[Sequence[str]], *, polygons: bool) -> str:
        """Writes one image, and returns its name without suffix.

        Args:
          image: uint8 [H, W, 3].
          masks: bool [N, H, W], of the objects.
          sentences: of each object.
          polygons: writes masks as polygons, one around every run of a column; otherwise run-length coded.
        """
        number = len(self._images) + 1
        name = f"COCO_train2014_{number:012d}"
        write_jpegs(self._root / IMAGE_FOLDERS[0], [name], image[None])
        height, width = image.shape[:2]
        self._images.append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
        for mask, texts in zip(masks, sentences, strict=True):
            annotation = len(self._annotations) + 1
            self._annotations.append(_annotation(annotation, number, mask, polygons))
            first = self._sentences
            self._sentences += len(texts)
            self._refs.append(
                {
                    "ref_id": len(self._refs) + 1,
                    "ann_id": annotation,
                    "image_id": number,
                    "category_id": 1,
                    "file_name": f"{name}_{annotation}.jpg",
                    "split": self._split,
                    "sent_ids": list(range(first, self._sentences)),
                    "sentences": [
                        {"sent_id": first + place, "sent": text, "raw": text, "tokens": text.split()}
                        for place, text in enumerate(texts)
                    ],
                }
            )
        return name

    def close(self) -> None:
        """Writes REFER's two files and FlowRVS's one."""
        folder = self._root / self._dataset
        head = {"info": {}, "licenses": [], "categories": [{"id": 1, "name": "object", "supercategory": "object"}]}
        whole = {**head, "images": self._images, "annotations": self._annotations}
        meta_expressions.write_json(folder / "instances.json", whole)
        (folder / f"refs({self._made_by}).p").write_bytes(pickle.dumps(self._refs, protocol=2))
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for ref in self._refs:
            for item in ref["sentences"]:
                number = len(images) + 1
                image, annotation = self._images[ref["image_id"] - 1], self._annotations[ref["ann_id"] - 1]
                images.append({**image, "id": number, "original_id": image["id"], "caption": item["sent"]})
                annotations.append({**annotation, "id": number, "image_id": number, "original_id": annotation["id"]})
        listed = {**head, "images": images, "annotations": annotations}
        meta_expressions.write_json(folder / f"instances_{self._dataset}_{self._split}.json", listed)


def _annotation(number: int, image: int, mask: np.ndarray, polygons: bool) -> dict[str, Any]:
    code = rle.encode(mask)
    x0, y0, x1, y1 = rle.to_box(code)
    counts = rle.runs(mask).tolist()
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "segmentation": _boxes(mask) if polygons else {"size": list(mask.shape), "counts": counts},
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(mask.sum()),
        "iscrowd": 0 if polygons else 1,
    }


def _boxes(mask: np.ndarray) -> list[list[int]]:
    """Outlines of the runs of every column, which together are exactly the mask."""
    padded = np.pad(mask.astype(np.int8), ((1, 1), (0, 0)))
    columns, tops = np.nonzero(np.diff(padded, axis=0).T == 1)
    _, bottoms = np.nonzero(np.diff(padded, axis=0).T == -1)
    found = zip(columns.tolist(), tops.tolist(), bottoms.tolist(), strict=True)
    return [[x, top, x + 1, top, x + 1, bottom, x, bottom] for x, top, bottom in found]
