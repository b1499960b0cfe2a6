"""What motion segmentation is scored on: datasets by name, their protocols, and the controls of moving_shapes.

homography      pixels that one homography a pair of frames leaves of the true flow, above the best threshold
flow            length of the true flow in pixels, above the best threshold
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation import homography, motion
from rvseg_jax.evaluation.motion import Control, MotionProtocol, Predict, Refine
from rvseg_jax.evaluation.runner import Evaluation, EvaluationOptions, Progress
from rvseg_jax.input_pipeline.datasets.motion_sets import BENCHMARKS, open_motion
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric import (
    GeometricSample,
    GeometricShapesConfig,
    geometric_held_out,
    geometric_list_hash,
)
from rvseg_jax.input_pipeline.motion_videos import MotionSample, MotionVideo
from rvseg_jax.input_pipeline.sources import Source

MOVING_SHAPES = "moving_shapes"
PROTOCOLS = (motion.UPSTREAM.name, motion.STANDARD.name)
THRESHOLDS = tuple(np.geomspace(0.1, 12, 40).tolist())  # pixels


@dataclass(frozen=True)
class MotionJob:
    """A dataset to score on.

    Attributes:
      open: its folder, None for moving_shapes, to its videos.
      protocols: how it can be scored, the one that is taken if none is named first.
      controls: other masks to score in the same way, by name.
      hashes: of the lists of generated clips, by name.
    """

    open: Callable[[Path | None], Source[MotionVideo]]
    protocols: tuple[MotionProtocol, ...]
    controls: Mapping[str, Control] = field(default_factory=dict)
    hashes: Callable[[], Mapping[str, str]] = dict

    def protocol(self, name: str | None) -> MotionProtocol:
        """The protocol of this name, or the first.

        Raises:
          InputError: for a name that this dataset has no protocol of.
        """
        found = [one for one in self.protocols if name in (None, one.name)]
        if not found:
            raise InputError(f"no protocol {name!r} here; choose from {', '.join(one.name for one in self.protocols)}")
        return found[0]


# Where upstream's `eval.sh` expects the datasets, in one folder.
PLACES = {
    "davis16": "DAVIS",
    "davis17": "DAVIS",
    "davis_all": "DAVIS",
    "davis16_m": "DAVIS2017-M/DAVIS",
    "davis17_m": "DAVIS2017-M/DAVIS",
    "segtrack": "SegTrackv2",
    "fbms": "FBMS59_clean",
}


def places(root: Path) -> dict[str, Path]:
    """Folders of the datasets that lie in `root`, by name.

    Raises:
      InputError: where there is none.
    """
    found = {name: root / place for name, place in PLACES.items() if (root / place).is_dir()}
    if not found:
        raise InputError(
            f"{root} holds none of {', '.join(dict.fromkeys(PLACES.values()))}: name a dataset and its folder"
        )
    return found


def names() -> tuple[str, ...]:
    """Datasets that `motion_jobs` has."""
    return (*BENCHMARKS, MOVING_SHAPES)


def motion_jobs(config: GeometricShapesConfig | None = None) -> dict[str, MotionJob]:
    """All datasets by name; `config` says what the clips of moving_shapes are like."""
    dense = (motion.UPSTREAM, motion.STANDARD)
    protocols = {
        "fbms": (motion.UPSTREAM_SPARSE, motion.STANDARD_SPARSE),
        "segtrack": (motion.UPSTREAM, motion.STANDARD_SPARSE),
    }
    jobs = {name: MotionJob(partial(_on_disk, name), protocols.get(name, dense)) for name in BENCHMARKS}
    clips = geometric_held_out(config)
    jobs[MOVING_SHAPES] = MotionJob(
        lambda root: clips,
        (motion.SHAPES,),
        {"homography": left_by_homographies, "flow": long_flow},
        lambda: {"held_out": geometric_list_hash(clips)},
    )
    return jobs


def _on_disk(name: str, root: Path | None) -> Source[MotionVideo]:
    if root is None:
        raise InputError(f"dataset {name} needs its folder")
    return open_motion(name, root)


def evaluate(
    name: str,
    root: Path | None,
    predict: Predict,
    folder: Path,
    *,
    protocol: str | None = None,
    settings: Mapping[str, Any],
    options: EvaluationOptions,
    refine: Refine | None = None,
    masks_folder: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Scores a predictor on a dataset of `motion_jobs`, see `motion.evaluate`.

    Args:
      name: of the dataset.
      root: its folder; None for moving_shapes.
      protocol: "upstream" or "standard"; None takes the first that the dataset has.
      settings: of the predictor, kept with the run.

    Raises:
      InputError: for an unknown dataset or protocol, a missing folder, or a run folder of another run.
    """
    jobs = motion_jobs()
    if name not in jobs:
        raise InputError(f"motion segmentation is not scored on {name!r}; choose from {', '.join(jobs)}")
    job = jobs[name]
    hashes = job.hashes()
    return motion.evaluate(
        job.open(root),
        predict,
        folder,
        protocol=job.protocol(protocol),
        settings={"dataset": name, "root": None if root is None else str(root), **dict(settings)}
        | ({"list_hashes": hashes} if hashes else {}),
        options=options,
        refine=refine,
        controls=job.controls,
        masks_folder=masks_folder,
        progress=progress,
    )


def left_by_homographies(sample: MotionSample) -> dict[str, np.ndarray]:
    """Pixels that a homography leaves more than a threshold of, for every threshold: bool [T, H, W] each."""
    flow, backward_flow = _flows(sample)
    return _above(homography.residuals(flow, backward_flow))


def long_flow(sample: MotionSample) -> dict[str, np.ndarray]:
    """Pixels whose flow is longer than a threshold, for every threshold: bool [T, H, W] each."""
    flow, backward_flow = _flows(sample)
    length = np.zeros((len(sample), *flow.shape[1:3]))
    length[:-1] = np.hypot(flow[..., 0], flow[..., 1])
    length[1:] = np.maximum(length[1:], np.hypot(backward_flow[..., 0], backward_flow[..., 1]))
    return _above(length)


def _flows(sample: MotionSample) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(sample, GeometricSample) or sample.flow is None or sample.backward_flow is None:
        raise InputError(f"{sample.video} has no true flow, which its controls need")
    return sample.flow, sample.backward_flow


def _above(lengths: np.ndarray) -> dict[str, np.ndarray]:
    return {f"above {threshold:.2f} pixels": lengths > threshold for threshold in THRESHOLDS}
