"""The protocol of moving_shapes: held-out clips by kind of sentence, controls, and absent targets.

Every held-out clip is scored several times against the truth of its sentence, each time under a pseudo expression id:

  target           the sentence itself
  empty_sentence   the same model without a sentence
  other_sentence   the same model with a sentence about another object of the clip
  all_objects      the union of all objects, no model
  largest_object   the object with the most visible pixels, no model
  reconstruction   the true mask encoded and decoded, for systems with `reconstruct`: their upper bound

and every clip of the absent list once, as `absent`: its sentence names nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rvseg_jax.evaluation import bootstrap
from rvseg_jax.evaluation.predictors import Predict, Prediction
from rvseg_jax.evaluation.scores import Score, grouped, summarise
from rvseg_jax.input_pipeline.datasets import moving_shapes
from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapes, MovingShapesConfig, MovingShapesSample
from rvseg_jax.input_pipeline.sources import ReferringSample

TARGET = "target"
ABSENT = "absent"
MODEL_CONTROLS = ("empty_sentence", "other_sentence")
TRUTH_CONTROLS = ("all_objects", "largest_object")
RECONSTRUCTION = "reconstruction"
_RUNS = (TARGET, *MODEL_CONTROLS, *TRUTH_CONTROLS)

Reconstruct = Callable[[np.ndarray], np.ndarray]


class HeldOutRuns:
    """The held-out clips, each once for the sentence and once for every control, then the absent ones.

    A source of samples for `runner.evaluate`; the runs of one clip follow each other.
    """

    def __init__(
        self,
        config: MovingShapesConfig | None = None,
        *,
        clips: int | None = None,
        reconstruction: bool = False,
    ) -> None:
        """Choose the clips.

        Args:
          config: what the clips are like; its split is not used.
          clips: take only the first so many of both lists.
          reconstruction: whether each clip is also scored as "reconstruction".
        """
        self._runs = (*_RUNS, RECONSTRUCTION) if reconstruction else _RUNS
        self._present = moving_shapes.held_out(config)
        self._absent = moving_shapes.held_out(config, absent=True)
        self._clips = min(clips or len(self._present), len(self._present))
        self._absent_clips = min(clips or len(self._absent), len(self._absent))
        self._last: tuple[int, MovingShapesSample] | None = None

    def __len__(self) -> int:
        return self._clips * len(self._runs) + self._absent_clips

    def videos(self) -> list[str]:
        """The clip that every run is about, without making one."""
        clips = [f"present {clip}" for clip in range(self._clips) for _ in self._runs]
        return clips + [f"absent {clip}" for clip in range(self._absent_clips)]

    def __getitem__(self, index: int) -> ReferringSample:
        """One run of one clip.

        Raises:
          IndexError: outside the list.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"the held-out list has no run {index}")
        clip, run = divmod(index, len(self._runs))
        if clip >= self._clips:
            return replace(self._absent[index - self._clips * len(self._runs)], expression=ABSENT)
        if self._last is None or self._last[0] != clip:
            self._last = (clip, self._present[clip])
        sample = self._last[1]
        texts = {"empty_sentence": "", "other_sentence": sample.other_text}
        return replace(sample, expression=self._runs[run], text=texts.get(self._runs[run], sample.text))

    def hashes(self) -> dict[str, str]:
        """SHA-256 of both lists of clips, whole: equal hashes mean equal clips."""
        return {name: moving_shapes.list_hash(source) for name, source in self._lists().items()}

    def _lists(self) -> dict[str, MovingShapes]:
        return {"held_out": self._present, "held_out_absent": self._absent}


def with_truth_controls(predict: Predict, reconstruct: Reconstruct | None = None) -> Predict:
    """`predict`, with the controls that need no model answered from the truth.

    Args:
      reconstruct: masks bool [T, H, W] to what is left of them after encoding and decoding.
    """

    def answer(sample: ReferringSample) -> Prediction | None:
        if sample.expression == RECONSTRUCTION and reconstruct is not None:
            return Prediction(reconstruct(sample.masks))
        return _from_truth(sample) if sample.expression in TRUTH_CONTROLS else None

    def controlled(samples: Sequence[ReferringSample]) -> list[Prediction]:
        known = [answer(sample) for sample in samples]
        asked = [sample for sample, answered in zip(samples, known, strict=True) if answered is None]
        found = iter(predict(asked) if asked else ())
        return [next(found) if answered is None else answered for answered in known]

    return controlled


def _from_truth(sample: ReferringSample) -> Prediction:
    assert isinstance(sample, MovingShapesSample)
    objects = sample.object_masks
    if sample.expression == "all_objects":
        return Prediction(objects.any(axis=0))
    return Prediction(objects[np.argmax(np.count_nonzero(objects, axis=(1, 2, 3)))])


def summary(scores: Sequence[Score]) -> Mapping[str, Any]:
    """J&F overall and by kind of sentence, the controls and the margins over them, N-acc and T-acc.

    A margin is the mean over clips of the difference in J&F, with its bootstrap interval; clips that only one of the
    two has been scored on are left out of it.
    """
    runs = {run: [score for score in scores if score.expression == run] for run in (*_RUNS, RECONSTRUCTION, ABSENT)}
    controls = (*MODEL_CONTROLS, *TRUTH_CONTROLS)
    bound = {RECONSTRUCTION: summarise(runs[RECONSTRUCTION])} if runs[RECONSTRUCTION] else {}
    return bound | {
        "overall": summarise(runs[TARGET]),
        "by_kind": grouped(runs[TARGET], lambda score: score.kind),
        "controls": {run: summarise(runs[run]) for run in controls},
        "margins": {run: margin(runs[TARGET], runs[run]) for run in controls},
        "accuracies": {
            "N-acc": _mean([score.said_empty for score in runs[ABSENT]]),
            "T-acc": _mean([not score.said_empty for score in runs[TARGET]]),
        },
    }


def margin(scores: Sequence[Score], control: Sequence[Score]) -> dict[str, float] | None:
    """Mean difference in J&F between two runs over the same clips, with its interval; None without a clip in common."""
    other = {score.video: score.jf for score in control}
    return _mean([score.jf - other[score.video] for score in scores if score.video in other])


def _mean(values: Sequence[float]) -> dict[str, float] | None:
    """The mean with its interval, None of nothing."""
    return bootstrap.interval(np.array(values)).as_dict() if values else None
