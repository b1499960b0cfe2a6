"""What the training of every tracker shares; the protocol is `training.tasks.Task`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.parts import bundle, parameters
from rvseg_jax.parts.parameters import Params
from rvseg_jax.trackers import data
from rvseg_jax.trackers.base import Tracker
from rvseg_jax.trackers.rows import ClipRow
from rvseg_jax.trackers.validation import region_similarity


class TrackerTask(ABC):
    """A model of one part, trained on clips of videos.

    Attributes:
      name: of the tracker and of its part.
      config: with the fields `clips`, `pretrained` and `validation_clips`.
    """

    name: str

    def __init__(self, config: Any, model: Callable[[nnx.Rngs], nnx.Module], precision: Precision) -> None:
        self.config, self._model, self._precision = config, model, precision
        self._graph = parameters.graph_of(model)
        self._tracker: Tracker | None = None

    @property
    @abstractmethod
    def size(self) -> int:
        """Side of the square clips in pixels."""

    @abstractmethod
    def _tracker_of(self, state: nnx.State, last: Tracker | None) -> Tracker:
        """A tracker with these weights: the last one, whose programs are compiled, or a new one."""

    def init(self, key: jax.Array) -> Params:
        """Parameters of a new model."""
        return parameters.initialised(self._model, key)

    def restore_pretrained(self, target: Params) -> Params:
        """All parameters, where the recipe names a folder."""
        if not self.config.pretrained:
            return {}
        given = parameters.read(self.config.pretrained, self.name, self._precision, target)
        return parameters.place_matching(given, target)

    def source(self, split: str) -> Any:
        """Videos of the split."""
        return data.source(self.config.clips, split)

    def transform(self, split: str) -> Callable[..., Mapping[str, Any]]:
        """A clip of a video."""
        clips = self.config.clips
        return ClipRow(clips.frames, clips.objects, self.size, clips.longest_stride, clips.crop)

    def evaluate(self, params: Params, *, step: int) -> Mapping[str, float]:
        """Region similarity on validation clips, from first masks."""
        del step
        state = nnx.split(parameters.assembled(self._model, params))[1]
        self._tracker = self._tracker_of(state, self._tracker)
        clips = self.source("validation")
        return region_similarity(self._tracker, [clips[index] for index in range(self.config.validation_clips)])

    def settings(self) -> dict[str, Any]:
        """What a checkpoint says of how it is to be used."""
        return {}

    def export(self, params: Params, folder: Path) -> None:
        """Writes the model; see `parts.bundle`."""
        model = parameters.assembled(self._model, params)
        bundle.save(folder, self.name, {self.name: model}, settings=self.settings())
