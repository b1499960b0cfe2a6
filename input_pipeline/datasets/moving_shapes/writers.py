"""Writes clips in the layouts of the benchmarks, so that loaders and evaluators run on known truth."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np

from rvseg_jax.formats import mevis, ref_davis, ref_youtube_vos, refcoco_writer
from rvseg_jax.formats.davis import label_map
from rvseg_jax.formats.meta_expressions import Expression
from rvseg_jax.input_pipeline.datasets.moving_shapes.dataset import MovingShapes, MovingShapesSample
from rvseg_jax.input_pipeline.datasets.moving_shapes.grammar import Meaning, descriptions, wording

_SPREAD = 5  # every fifth description of an object is taken, so that its sentences differ in more than a word
_EVERY = 5  # frames from one annotated frame of YouTube-VOS to the next


def to_mevis(
    folder: str | Path, source: MovingShapes, indices: Iterable[int] | None = None, *, with_masks: bool = True
) -> int:
    """Writes clips as a split of MeViS, each with its two sentences.

    Args:
      folder: of the split, such as `mevis/valid_u`.
      source: the clips.
      indices: which; None takes a whole split.
      with_masks: False withholds the truth, as MeViS's split `valid` does.

    Returns:
      The number of sentences.
    """
    writer = mevis.SplitWriter(Path(folder), with_masks=with_masks)
    count = 0
    for index in range(len(source)) if indices is None else indices:
        sample = source[index]
        expressions = {
            "0": Expression(sample.text, sample.target_ids),
            "1": Expression(sample.other_text, sample.other_ids),
        }
        writer.add(sample.video, sample.frame_names, sample.frames, sample.object_masks, expressions)
        count += len(expressions)
    writer.close()
    return count


def to_ref_davis(
    root: str | Path, source: MovingShapes, indices: Iterable[int] | None = None, *, split: str = "valid"
) -> int:
    """Writes clips as a split of Ref-DAVIS17, with four sentences for each object that one can describe.

    Objects that no sentence singles out become background, as things that DAVIS does not annotate.

    Args:
      root: of the dataset.
      source: the clips.
      indices: which; None takes a whole split.
      split: "train" or "valid".

    Returns:
      The number of sentences.
    """
    writer = ref_davis.SplitWriter(Path(root), split)
    count = 0
    for index in range(len(source)) if indices is None else indices:
        sample = source[index]
        described = {i: _sentences(sample, i) for i in range(len(sample.object_masks))}
        kept = [i for i, sentences in described.items() if sentences]
        labels = np.stack([label_map(masks) for masks in np.moveaxis(sample.object_masks[kept], 1, 0)])
        writer.add(sample.video, sample.frame_names, sample.frames, labels, [described[i] for i in kept])
        count += len(kept) * ref_davis.ANNOTATORS
    writer.close()
    return count


def to_ref_youtube_vos(
    root: str | Path,
    source: MovingShapes,
    indices: Iterable[int] | None = None,
    *,
    split: str = "train",
    with_masks: bool = True,
) -> int:
    """Writes clips as a split of Ref-YouTube-VOS, with all their sentences that name one object.

    Frames are named as every fifth of a longer video, and object n of a clip is number n + 1.

    Args:
      root: of the dataset.
      source: the clips.
      indices: which; None takes a whole split.
      split: "train", "valid" or "test".
      with_masks: False withholds the truth, as all splits but train do.

    Returns:
      The number of sentences.
    """
    writer = ref_youtube_vos.SplitWriter(Path(root), split, with_masks=with_masks)
    count = 0
    for index in range(len(source)) if indices is None else indices:
        sample = source[index]
        labels = np.stack([label_map(masks) for masks in np.moveaxis(sample.object_masks, 1, 0)])
        names = [f"{_EVERY * t:05d}" for t in range(len(sample.frames))]
        expressions = {str(key): Expression(text, (i + 1,)) for key, (text, i) in enumerate(single_targets(sample))}
        writer.add(sample.video, names, sample.frames, labels, expressions)
        count += len(expressions)
    writer.close()
    return count


def to_refcoco(
    root: str | Path,
    source: MovingShapes,
    indices: Iterable[int] | None = None,
    *,
    dataset: str = "refcoco",
    split: str = "train",
    polygons: bool = True,
) -> int:
    """Writes the first frames of clips as a split of RefCOCO, in REFER's layout and in FlowRVS's.

    Args:
      root: holds the datasets of this kind and the images.
      source: the clips.
      indices: which; None takes a whole split.
      dataset: "refcoco", "refcoco+" or "refcocog".
      split: as that dataset calls it.
      polygons: whether masks are polygons, as most of COCO's are, or run-length coded.

    Returns:
      The number of sentences.
    """
    writer = refcoco_writer.SplitWriter(Path(root), dataset, split)
    count = 0
    for index in range(len(source)) if indices is None else indices:
        sample = source[index]
        sentences: dict[int, list[str]] = {}
        for text, target in single_targets(sample):
            sentences.setdefault(target, []).append(text)
        writer.add(sample.frames[0], sample.object_masks[list(sentences), 0], [*sentences.values()], polygons=polygons)
        count += sum(map(len, sentences.values()))
    writer.close()
    return count


def single_targets(sample: MovingShapesSample) -> list[tuple[str, int]]:
    """Sentences of a clip that name one object, each with the object's id; each sentence once."""
    named = {item.text: item.ids[0] for item in sample.referrals() if len(item.ids) == 1}
    return list(named.items())


def _sentences(sample: MovingShapesSample, target: int) -> list[str]:
    """Four sentences that name one object alone, repeated where there are fewer; none where there is none."""
    wanted = ref_davis.ANNOTATORS
    found: list[Meaning] = list(islice(descriptions(sample.composition.facts, target), _SPREAD * wanted))
    spread = (found[::_SPREAD] + found)[:wanted]
    return [wording(spread[place % len(spread)], place) for place in range(wanted)] if spread else []
