"""RefCOCO, RefCOCO+ and RefCOCOg on disk, in the two layouts that people have.

REFER's, as published:
<root>/<set>/refs(<by>).p    pickled list: {"ref_id", "ann_id", "image_id", "split", "sentences": [{"sent_id", "sent"}]}
<root>/<set>/instances.json  COCO: "images" and "annotations" of all that is referred to
<root>/images/mscoco/images/train2014/<image>.jpg

FlowRVS's, one image entry and one annotation a sentence:
<root>/<set>/instances_<set>_<split>.json    COCO, with a "caption" in every entry of "images"
<root>/train2014/<image>.jpg

<by> says who made the splits: unc for the first two sets, umd or google for RefCOCOg. Splits are train, val and, by
unc, testA (people) and testB (other things), by umd test. An annotation's "segmentation" is a list of polygons, one
run-length coded mask, or a list of such masks.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import meta_expressions, plain_pickle, polygon, rle

SPLITS = {"unc": ("train", "val", "testA", "testB"), "umd": ("train", "val", "test"), "google": ("train", "val")}
MADE_BY = {"refcoco": ("unc",), "refcoco+": ("unc",), "refcocog": ("umd", "google")}
# The names that datasets go by here: a set and who made its splits.
VARIANTS = {
    "refcoco": ("refcoco", "unc"),
    "refcoco+": ("refcoco+", "unc"),
    "refcocog": ("refcocog", "umd"),
    "refcocog_google": ("refcocog", "google"),
}
IMAGE_FOLDERS = ("images/mscoco/images/train2014", "images/train2014", "train2014")


@dataclass(frozen=True)
class Referral:
    """A sentence about an image.

    Attributes:
      image: file name of the image.
      size: (H, W) of the image in pixels.
      key: id of the sentence, unique within its split.
      text: the sentence.
      segmentations: COCO's "segmentation" of each object that it names.
    """

    image: str
    size: tuple[int, int]
    key: str
    text: str
    segmentations: tuple[Any, ...]

    @property
    def name(self) -> str:
        """Image and id, for messages."""
        return f"{Path(self.image).stem}/{self.key}"


class ImageTrack(Sequence[Mapping[str, object] | None]):
    """The mask of one object as a track of one frame, drawn when it is asked for."""

    def __init__(self, referral: Referral, number: int) -> None:
        self._referral, self._number = referral, number

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        if index not in (0, -1):
            raise IndexError(f"an image has no frame {index}")
        return mask_of(self._referral.segmentations[self._number], self._referral.size, self._referral.name)


def mask_of(segmentation: Any, size: tuple[int, int], where: str) -> rle.RLE:
    """The mask of an annotation; an empty list is an empty mask.

    Args:
      segmentation: polygons, a run-length coded mask, or a list of those.
      size: (H, W) of the image in pixels.
      where: what to call the sentence in messages.

    Raises: InputError for anything else, or a mask of another size.
    """
    try:
        if isinstance(segmentation, Mapping):
            segmentation = [segmentation]
        if not isinstance(segmentation, Sequence) or isinstance(segmentation, str):
            raise InputError(f"a segmentation is {type(segmentation).__name__}, expected polygons or an RLE")
        parts = [part if isinstance(part, Mapping) else polygon.to_rle(part, *size) for part in segmentation]
        for part in parts:
            if list(part.get("size", ())) != list(size):
                raise InputError(f"a mask has size {part.get('size')}, the image {list(size)}")
        if len(parts) == 1:
            return {"size": list(size), "counts": rle.compress(rle.counts_of(parts[0]))}
        masks = [rle.decode(part) for part in parts]
        return rle.encode(np.logical_or.reduce(masks)) if masks else rle.empty(*size)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def image_folder(root: Path) -> Path:
    """Where the images of train2014 lie.

    Raises: InputError, naming the places that were looked at.
    """
    for name in IMAGE_FOLDERS:
        if (root / name).is_dir():
            return root / name
    raise InputError(f"{root} holds no images of COCO's train2014; looked for {', '.join(IMAGE_FOLDERS)}")


def read(root: Path, dataset: str, split: str, made_by: str | None = None) -> list[Referral]:
    """The sentences of a split, from REFER's files or, where those are missing, from FlowRVS's.

    Args:
      root: holds the folder of the dataset and the images.
      dataset: "refcoco", "refcoco+" or "refcocog".
      split: as the maker of the splits calls it.
      made_by: "unc", "umd" or "google"; None takes the one in common use: unc, and umd for RefCOCOg.

    Raises: InputError for an unknown dataset or split, and files that are missing or damaged.
    """
    if dataset not in MADE_BY:
        raise InputError(f"no dataset of RefCOCO's kind is called {dataset!r}; choose from {', '.join(MADE_BY)}")
    made_by = made_by or MADE_BY[dataset][0]
    if made_by not in MADE_BY[dataset]:
        raise InputError(f"{dataset} has no splits by {made_by!r}; choose from {', '.join(MADE_BY[dataset])}")
    if split not in SPLITS[made_by]:
        raise InputError(f"{dataset} by {made_by} has no split {split!r}; choose from {', '.join(SPLITS[made_by])}")
    folder = root / dataset
    refs, listed = folder / f"refs({made_by}).p", folder / f"instances_{dataset}_{split}.json"
    if refs.is_file():
        return read_refer(refs, folder / "instances.json", split)
    # FlowRVS's files do not say who made the splits; its converter takes the ones in common use.
    if listed.is_file() and made_by == MADE_BY[dataset][0]:
        return read_listed(listed)
    raise InputError(f"{refs} is missing, and so is {listed.name} of FlowRVS's layout; is {root} the right folder?")


def splits_on_disk(root: Path, dataset: str, made_by: str) -> list[str]:
    """The splits of a dataset that hold sentences, in the order of `SPLITS`.

    Raises: InputError where REFER's pickle cannot be read.
    """
    refs = root / dataset / f"refs({made_by}).p"
    if refs.is_file():
        with form_of(refs, "REFER's"):
            own = {ref["split"] for ref in plain_pickle.read(refs)}
            return [split for split in SPLITS[made_by] if any(in_split(name, split) for name in own)]
    if made_by != MADE_BY[dataset][0]:
        return []
    folder = root / dataset
    return [split for split in SPLITS[made_by] if (folder / f"instances_{dataset}_{split}.json").is_file()]


def read_refer(refs: Path, instances: Path, split: str) -> list[Referral]:
    """The sentences of a split from REFER's files, in their order.

    Raises: InputError where a file is missing, has another form, or lacks what the other names.
    """
    listed = plain_pickle.read(refs)
    with form_of(instances, "COCO's"):
        coco = meta_expressions.read_json(instances)
        images, shapes = by_id(coco["images"], instances), by_id(coco["annotations"], instances)
    found = []
    with form_of(refs, "REFER's"):
        for ref in listed:
            if not in_split(ref["split"], split):
                continue
            image, shape = images.get(ref["image_id"]), shapes.get(ref["ann_id"])
            if image is None or shape is None:
                what = f"image {ref['image_id']}" if image is None else f"annotation {ref['ann_id']}"
                raise InputError(f"{refs}: ref {ref['ref_id']} names {what}, which {instances.name} lacks")
            segmentations = (compact(shape["segmentation"]),)
            found += [
                _referral(image, item["sent_id"], item["sent"], segmentations, instances) for item in ref["sentences"]
            ]
    return found


def in_split(own: str, wanted: str) -> bool:
    """Whether a ref of split `own` belongs to `wanted`, as REFER has it: "testAB" is in testA and in testB."""
    if wanted in ("testA", "testB", "testC"):
        return wanted[-1] in own
    return wanted in own if wanted == "test" else own == wanted


def read_listed(path: Path) -> list[Referral]:
    """The sentences of a file with one image entry and its annotations a sentence, in its order.

    Raises: InputError where the file is missing or has another form.
    """
    with form_of(path, "FlowRVS's"):
        coco = meta_expressions.read_json(path)
        images = by_id(coco["images"], path)
        shapes: dict[Any, list[Any]] = {number: [] for number in images}
        for item in coco["annotations"]:
            if item["image_id"] not in shapes:
                raise InputError(f"{path}: annotation {item['id']} names image {item['image_id']}, which is not there")
            shapes[item["image_id"]].append(compact(item["segmentation"]))
        return [
            _referral(image, number, image["caption"], tuple(shapes[number]), path) for number, image in images.items()
        ]


def by_id(items: Sequence[Mapping[str, Any]], path: Path) -> dict[Any, Mapping[str, Any]]:
    found = {item["id"]: item for item in items}
    if len(found) != len(items):
        raise InputError(f"{path} has {len(items)} entries with {len(found)} ids; every id may be there once")
    return found


def _referral(image: Mapping[str, Any], key: Any, text: Any, segmentations: tuple[Any, ...], path: Path) -> Referral:
    if not isinstance(text, str) or not isinstance(key, int):
        raise TypeError(f"sentence {key!r} is {text!r}")
    size = int(image["height"]), int(image["width"])
    return Referral(meta_expressions.bare_name(image["file_name"], path), size, str(key), text, segmentations)


def compact(segmentation: Any) -> Any:
    """Polygons as arrays, a tenth of the memory; anything else as it is, to be judged when a mask is drawn."""
    if isinstance(segmentation, list) and all(isinstance(part, list) for part in segmentation):
        try:
            return [np.asarray(part, np.float64) for part in segmentation]
        except (TypeError, ValueError):
            return segmentation
    return segmentation


@contextmanager
def form_of(path: Path, whose: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} has not the form of {whose} file ({error!r})") from None
