"""Images with all that is said of them: the files of REFER's kind, read image by image instead of sentence by sentence.

<root>/refcoco, refcoco+/   refs(unc).p, instances.json             train, val, testA, testB
<root>/refcocog/            refs(umd).p or refs(google).p, ...      train, val, and by umd test
<root>/refclef/             refs(unc).p, instances.json             train, val, testA, testB, testC
<root>/grefcoco/            grefs(unc).json or .p, instances.json   train, val, testA, testB
<root>/refzom/              Ref_ZOM.p, instances.json               train, test
<root>/images/              mscoco/images/train2014/<image>, of refclef saiapr_tc-12/<folder>/<image>

A ref is an object with its sentences; images come in the order of their first ref, sentences in that of the refs. In
gRefCOCO `ann_id` is a list of objects, [-1] where there are none; in Ref-ZOM it is a number or a list, [] for none.

Polygons of less than three points or an odd count of numbers are left away, and an object of which nothing remains
with them. A sentence that loses all its objects so is left out: what it names cannot be known. All of it is listed.
(MLLMSeg drops such polygons of gRefCOCO and Ref-ZOM alone, and stops at a sentence that has lost its only object.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import meta_expressions, plain_pickle
from rvseg_jax.formats.refcoco import IMAGE_FOLDERS, SPLITS, by_id, compact, form_of, in_split

Box = tuple[float, float, float, float]
# Name here: folder, files of refs (the first that is there is read), splits.
SETS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "refcoco": ("refcoco", ("refs(unc).p",), SPLITS["unc"]),
    "refcoco+": ("refcoco+", ("refs(unc).p",), SPLITS["unc"]),
    "refcocog": ("refcocog", ("refs(umd).p",), SPLITS["umd"]),
    "refcocog_google": ("refcocog", ("refs(google).p",), SPLITS["google"]),
    "refclef": ("refclef", ("refs(unc).p",), (*SPLITS["unc"], "testC")),
    "grefcoco": ("grefcoco", ("grefs(unc).json", "grefs(unc).p"), SPLITS["unc"]),
    "refzom": ("refzom", ("Ref_ZOM.p",), ("train", "test")),
}
SAIAPR = "images/saiapr_tc-12"
# Ref-ZOM has images of both of COCO's parts.
_MORE_FOLDERS = ("images/mscoco/images/val2014", "images/val2014", "val2014", "images/trainval2014", "trainval2014")
_LEAST_NUMBERS = 6


@dataclass(frozen=True)
class Annotation:
    """An object.

    Attributes:
      segmentation: COCO's "segmentation", without polygons that cannot be drawn.
      box: x, y, width, height in pixels as the list has it; None where it has none.
    """

    segmentation: Any
    box: Box | None


@dataclass(frozen=True)
class Sentence:
    """A sentence, its id, and the objects that it names; none where it names nothing."""

    key: str
    text: str
    objects: tuple[Annotation, ...]


@dataclass(frozen=True)
class ReferredImage:
    """An image: its file below the folder of images, (H, W) in pixels as the list has it, and its sentences."""

    file: str
    size: tuple[int, int]
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True)
class ReferredImages:
    """A split.

    Attributes:
      images: in the order of their first ref.
      dropped: polygons that were left away, by what to call their object.
      left_out: sentences that have lost all that they name, by image and id.
    """

    images: tuple[ReferredImage, ...]
    dropped: Mapping[str, int]
    left_out: tuple[str, ...]


def read(root: Path, dataset: str, split: str) -> ReferredImages:
    """The images of a split.

    Args:
      root: holds the folder of the dataset.
      dataset: one of `SETS`.
      split: as the dataset calls it.

    Raises: InputError for an unknown dataset or split, and files that are missing, damaged or do not fit.
    """
    if dataset not in SETS:
        raise InputError(f"no dataset of images with sentences is called {dataset!r}; choose from {', '.join(SETS)}")
    folder, _, splits = SETS[dataset]
    if split not in splits:
        raise InputError(f"{dataset} has no split {split!r}; choose from {', '.join(splits)}")
    path, instances = refs_file(root, dataset), root / folder / "instances.json"
    refs = _read_refs(path)
    with form_of(instances, "COCO's"):
        coco = meta_expressions.read_json(instances)
        images, shapes = by_id(coco["images"], instances), by_id(coco["annotations"], instances)
    with form_of(path, "REFER's"):
        return _Collector(path, instances, images, shapes).of(ref for ref in refs if in_split(ref["split"], split))


def refs_file(root: Path, dataset: str) -> Path:
    """The file of refs that is there.

    Raises: InputError, naming what was looked for.
    """
    folder, files, _ = SETS[dataset]
    for name in files:
        if (root / folder / name).is_file():
            return root / folder / name
    raise InputError(f"{root / folder} holds no {' and no '.join(files)}; is {root} the right folder?")


def splits_on_disk(root: Path, dataset: str) -> list[str]:
    """The splits of a dataset that hold sentences.

    Raises: InputError where the file of refs is missing or cannot be read.
    """
    path = refs_file(root, dataset)
    with form_of(path, "REFER's"):
        own = {ref["split"] for ref in _read_refs(path)}
        return [split for split in SETS[dataset][2] if any(in_split(name, split) for name in own)]


def image_folders(root: Path, dataset: str) -> list[Path]:
    """The folders that are there of those in which the images of a dataset may lie.

    Raises: InputError where there is none, naming the places that were looked at.
    """
    names = (SAIAPR, "saiapr_tc-12") if dataset == "refclef" else IMAGE_FOLDERS
    names = (*names, *_MORE_FOLDERS) if dataset == "refzom" else names
    found = [root / name for name in names if (root / name).is_dir()]
    if not found:
        raise InputError(f"{root} holds no images of {dataset}; looked for {', '.join(names)}")
    return found


def relative_name(name: Any, path: Path) -> str:
    """`name` if it is a plain path below a folder, with "/" between its parts.

    Raises: InputError for anything that could lead out of the folder; `path` is the file that it stands in.
    """
    if not isinstance(name, str):
        raise InputError(f"{path} names {name!r}, which is no plain file name")
    return "/".join(meta_expressions.bare_name(part, path) for part in name.split("/"))


def usable(segmentation: Any) -> tuple[Any, int]:
    """A segmentation without the polygons that cannot be drawn, and how many those were."""
    if not isinstance(segmentation, list):
        return segmentation, 0
    kept = [part for part in segmentation if isinstance(part, Mapping) or _drawable(part)]
    return kept, len(segmentation) - len(kept)


def _drawable(outline: Any) -> bool:
    return len(outline) >= _LEAST_NUMBERS and len(outline) % 2 == 0


def _read_refs(path: Path) -> Any:
    return meta_expressions.read_json(path) if path.suffix == ".json" else plain_pickle.read(path)


class _Collector:
    """Puts refs together image by image."""

    def __init__(
        self, path: Path, instances: Path, images: Mapping[Any, Mapping[str, Any]], shapes: Mapping[Any, Any]
    ) -> None:
        self._path, self._instances, self._images, self._shapes = path, instances, images, shapes
        self._annotations: dict[Any, Annotation | None] = {}
        self._dropped: dict[str, int] = {}
        self._left_out: list[str] = []

    def of(self, refs: Any) -> ReferredImages:
        sentences: dict[Any, list[Sentence]] = {}
        for ref in refs:
            image = self._images.get(ref["image_id"])
            if image is None:
                raise self._lacking(ref, f"image {ref['image_id']}")
            numbers = self._numbers(ref)
            found = [self._annotation(ref, number) for number in numbers]
            objects = tuple(one for one in found if one is not None)
            own = sentences.setdefault(ref["image_id"], [])
            for item in ref["sentences"]:
                key, text = meta_expressions.bare_name(str(item["sent_id"]), self._path), item["sent"]
                if not isinstance(text, str):
                    raise TypeError(f"sentence {key} is {text!r}")
                if numbers and not objects:
                    self._left_out.append(f"{image['file_name']}/{key}")
                else:
                    own.append(Sentence(key, text, objects))
        images = [self._image(number, tuple(own)) for number, own in sentences.items() if own]
        return ReferredImages(tuple(images), self._dropped, tuple(self._left_out))

    def _image(self, number: Any, sentences: tuple[Sentence, ...]) -> ReferredImage:
        entry = self._images[number]
        size = int(entry["height"]), int(entry["width"])
        if min(size) < 1:
            raise InputError(f"{self._instances}: image {number} has size {size}; it should have pixels")
        return ReferredImage(relative_name(entry["file_name"], self._instances), size, sentences)

    def _numbers(self, ref: Mapping[str, Any]) -> Sequence[Any]:
        """Ids of the objects that a ref names."""
        numbers = ref["ann_id"] if isinstance(ref["ann_id"], list | tuple) else [ref["ann_id"]]
        if -1 in numbers:
            if len(numbers) > 1:
                raise InputError(f"{self._path}: ref {ref['ref_id']} names -1, no object, beside others: {numbers}")
            numbers = []
        if ref.get("no_target") and numbers:
            raise InputError(f"{self._path}: ref {ref['ref_id']} has no target, but names annotations {numbers}")
        return numbers

    def _annotation(self, ref: Mapping[str, Any], number: Any) -> Annotation | None:
        """An object, None where it has polygons and none can be drawn."""
        if number in self._annotations:
            return self._annotations[number]
        shape = self._shapes.get(number)
        if shape is None:
            raise self._lacking(ref, f"annotation {number}")
        kept, dropped = usable(shape["segmentation"])
        if dropped:
            self._dropped[f"annotation {number} of image {shape.get('image_id', ref['image_id'])}"] = dropped
        box = shape.get("bbox")
        x, y, width, height = (float(part) for part in box) if box else (0.0, 0.0, 0.0, 0.0)
        found = Annotation(compact(kept), (x, y, width, height) if box else None)
        self._annotations[number] = None if dropped and not kept else found
        return self._annotations[number]

    def _lacking(self, ref: Mapping[str, Any], what: str) -> InputError:
        return InputError(f"{self._path}: ref {ref['ref_id']} names {what}, which {self._instances.name} lacks")
