"""Writes images with sentences in the layouts of RefCOCO and gRefCOCO, which `formats.refcoco` and
`formats.referred_images` describe and read."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import meta_expressions, rle
from rvseg_jax.formats.mevis import write_jpegs
from rvseg_jax.formats.refcoco import IMAGE_FOLDERS, MADE_BY, SPLITS

_CATEGORIES = {"info": {}, "licenses": [], "categories": [{"id": 1, "name": "object", "supercategory": "object"}]}


class _ImageWriter:
    """Writes images, and keeps what COCO's lists and the refs say of them."""

    def __init__(self, root: Path, split: str) -> None:
        self._root, self._split = root, split
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._refs: list[dict[str, Any]] = []
        self._sentences = 0

    def _add_image(self, image: np.ndarray) -> str:
        """Writes one image, uint8 [H, W, 3], and returns its name without suffix."""
        number = len(self._images) + 1
        name = f"COCO_train2014_{number:012d}"
        write_jpegs(self._root / IMAGE_FOLDERS[0], [name], image[None])
        height, width = image.shape[:2]
        self._images.append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
        return name

    def _add_object(self, mask: np.ndarray, polygons: bool) -> int:
        """Adds an object, bool [H, W], of the last image, and returns its number."""
        number = len(self._annotations) + 1
        self._annotations.append(_annotation(number, len(self._images), mask, polygons))
        return number

    def _add_ref(self, annotation: int | list[int], file_name: str, texts: Sequence[str], **more: Any) -> None:
        """Adds a ref of the last image with its sentences."""
        first = self._sentences
        self._sentences += len(texts)
        categories = [-1 if one < 0 else 1 for one in annotation] if isinstance(annotation, list) else 1
        self._refs.append(
            {
                "ref_id": len(self._refs) + 1,
                "ann_id": annotation,
                "image_id": len(self._images),
                "category_id": categories,
                "file_name": file_name,
                "split": self._split,
                "sent_ids": list(range(first, self._sentences)),
                "sentences": [
                    {"sent_id": first + place, "sent": text, "raw": text, "tokens": text.split()}
                    for place, text in enumerate(texts)
                ],
                **more,
            }
        )

    def _write_instances(self, folder: Path) -> None:
        whole = {**_CATEGORIES, "images": self._images, "annotations": self._annotations}
        meta_expressions.write_json(folder / "instances.json", whole)


class SplitWriter(_ImageWriter):
    """Writes sentences about images in both layouts of RefCOCO; `close` writes the lists."""

    def __init__(self, root: Path, dataset: str, split: str) -> None:
        """Starts at `root`; the splits are those in common use."""
        made_by = MADE_BY[dataset][0]
        if split not in SPLITS[made_by]:
            raise InputError(f"{dataset} has no split {split!r}; choose from {', '.join(SPLITS[made_by])}")
        super().__init__(root, split)
        self._dataset, self._made_by = dataset, made_by

    def add(self, image: np.ndarray, masks: np.ndarray, sentences: Sequence[Sequence[str]], *, polygons: bool) -> str:
        """Writes one image, and returns its name without suffix.

        Args:
          image: uint8 [H, W, 3].
          masks: bool [N, H, W], of the objects.
          sentences: of each object.
          polygons: writes masks as polygons, one around every run of a column; otherwise run-length coded.
        """
        name = self._add_image(image)
        for mask, texts in zip(masks, sentences, strict=True):
            annotation = self._add_object(mask, polygons)
            self._add_ref(annotation, f"{name}_{annotation}.jpg", texts)
        return name

    def close(self) -> None:
        """Writes REFER's two files and FlowRVS's one."""
        folder = self._root / self._dataset
        self._write_instances(folder)
        (folder / f"refs({self._made_by}).p").write_bytes(pickle.dumps(self._refs, protocol=2))
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for ref in self._refs:
            for item in ref["sentences"]:
                number = len(images) + 1
                image, annotation = self._images[ref["image_id"] - 1], self._annotations[ref["ann_id"] - 1]
                images.append({**image, "id": number, "original_id": image["id"], "caption": item["sent"]})
                annotations.append({**annotation, "id": number, "image_id": number, "original_id": annotation["id"]})
        listed = {**_CATEGORIES, "images": images, "annotations": annotations}
        meta_expressions.write_json(folder / f"instances_{self._dataset}_{self._split}.json", listed)


class GrefSplitWriter(_ImageWriter):
    """Writes sentences about images in the layout of gRefCOCO; `close` writes the lists."""

    def __init__(self, root: Path, split: str) -> None:
        """Starts at `root`."""
        if split not in SPLITS["unc"]:
            raise InputError(f"grefcoco has no split {split!r}; choose from {', '.join(SPLITS['unc'])}")
        super().__init__(root, split)

    def add(
        self, image: np.ndarray, masks: np.ndarray, sentences: Sequence[tuple[str, Sequence[int]]], *, polygons: bool
    ) -> str:
        """Writes one image, and returns its name without suffix.

        Args:
          image: uint8 [H, W, 3].
          masks: bool [N, H, W], of the objects.
          sentences: each with places of what it names in `masks`, none of them for one that names nothing.
          polygons: as `SplitWriter.add`.
        """
        name = self._add_image(image)
        numbers = [self._add_object(mask, polygons) for mask in masks]
        for text, places in sentences:
            chosen = [numbers[place] for place in places] or [-1]
            self._add_ref(chosen, f"{name}.jpg", [text], no_target=not places)
        return name

    def close(self) -> None:
        """Writes `grefs(unc).json` and `instances.json`."""
        folder = self._root / "grefcoco"
        self._write_instances(folder)
        meta_expressions.write_json(folder / "grefs(unc).json", self._refs)


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
