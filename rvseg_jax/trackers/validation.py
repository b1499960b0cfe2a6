"""A look at a tracker while it trains: region similarity on a few clips; scores come from `evaluation`."""

from collections.abc import Mapping, Sequence

import numpy as np

from rvseg_jax.input_pipeline.sources import TrackingSample
from rvseg_jax.trackers.base import Tracker


def region_similarity(tracker: Tracker, samples: Sequence[TrackingSample]) -> Mapping[str, float]:
    """Mean intersection over union of objects in the frames after the first in which they show, all ("j") and by kind.

    Every object is given by its mask in the first frame.
    """
    scores: dict[str, list[float]] = {}
    for sample in samples:
        session = tracker.session(objects=max(len(one.ids) for one in samples))
        for object_id, mask in zip(sample.ids, sample.masks[:, 0], strict=True):
            session.add(object_id, mask=mask)
        found = np.stack([session.step(frame).masks for frame in sample.frames], axis=1)[:, 1:]
        truth = sample.masks[:, 1:]
        shown = truth.any(axis=(2, 3))
        union = np.maximum((found | truth).sum(axis=(2, 3)), 1)
        value = float(((found & truth).sum(axis=(2, 3)) / union)[shown].mean())
        for name in ("j", f"j_{sample.kind}"):
            scores.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in sorted(scores.items())}
