"""RAFT on clips with true flow: the first stage of a GeoMotion from nothing; the protocol is `training.tasks.Task`.

    geomotion.flow   sequence loss over all updates, on pairs of neighbouring frames in both directions

The published model takes torchvision's weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric import GeometricShapes, GeometricShapesConfig
from rvseg_jax.models.raft.config import STRIDE, RaftConfig
from rvseg_jax.models.raft.loss import sequence_loss
from rvseg_jax.models.raft.model import RAFT, SHARDING
from rvseg_jax.parallel.rules import Table, prefixed
from rvseg_jax.parts import bundle, parameters
from rvseg_jax.parts.parameters import Params
from rvseg_jax.systems.geomotion.rows import FlowRow

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class FlowTrainingConfig:
    """What is trained on what.

    Attributes:
      raft: sizes of the network; `num_flow_updates` are the updates of training and validation.
      clips: training clips; those of validation are like them.
      pairs: of neighbouring frames of a clip.
      gamma: weight of an update against the one after it.
      pretrained: folder of an earlier export or of a converted checkpoint; "" starts from nothing.
      validation_clips: clips of moving_shapes that `evaluate` scores.
    """

    raft: RaftConfig = RaftConfig()
    clips: GeometricShapesConfig = GeometricShapesConfig(size=(128, 128))
    pairs: int = 4
    gamma: float = 0.8
    pretrained: str = ""
    validation_clips: int = 16

    def __post_init__(self) -> None:
        if any(side % STRIDE or side < self.raft.min_size for side in self.clips.size):
            raise ValueError(
                f"clips of {self.clips.size} pixels: both sides must be multiples of {STRIDE} and at least "
                f"{self.raft.min_size}"
            )


class FlowTask:
    """Optical flow by RAFT (Teed and Deng 2020)."""

    Config = FlowTrainingConfig
    sharding_table: Table = prefixed(SHARDING, "raft")

    def __init__(self, config: FlowTrainingConfig, *, precision: Precision) -> None:
        self.config, self._precision = config, precision
        self._model = lambda rngs: RAFT(replace(config.raft, precision=precision), rngs=rngs)
        self._graph = parameters.graph_of(self._model)
        self._flow = jax.jit(lambda params, first, second: self._raft(params)(_scaled(first), _scaled(second)))

    def init(self, key: jax.Array) -> Params:
        """{"raft": ...}."""
        return {"raft": parameters.initialised(self._model, key)}

    def restore_pretrained(self, target: Params) -> Params:
        """All parameters, where the recipe names a folder."""
        if not self.config.pretrained:
            return {}
        given = parameters.read(self.config.pretrained, "raft", self._precision, target["raft"])
        return parameters.place_matching({"raft": given}, target)

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Shapes: batch {"first", "second": uint8 [B, P, H, W, 3], "flow": float32 [B, P, H, W, 2]}."""
        del key
        first, second, flow = (array.reshape(-1, *array.shape[2:]) for array in (batch[name] for name in _FIELDS))
        predictions = self._raft(params).predictions(_scaled(first), _scaled(second))
        loss = sequence_loss(predictions, flow, jnp.ones(flow.shape[:-1], jnp.bool_), gamma=self.config.gamma)
        return loss, {"end_point_error": jnp.mean(jnp.linalg.norm(predictions[-1] - flow, axis=-1))}

    def source(self, split: str) -> GeometricShapes:
        """Clips of the split."""
        return GeometricShapes(replace(self.config.clips, split="train" if split == "train" else "valid"))

    def transform(self, split: str) -> FlowRow:
        """Pairs of a clip."""
        del split
        return FlowRow(self.config.pairs)

    def evaluate(self, params: Params, *, step: int) -> Mapping[str, float]:
        """Mean length of the error in pixels, over validation clips, in both directions; and that of no flow at all."""
        del step
        clips, found, still = self.source("validation"), [], []
        for index in range(self.config.validation_clips):
            clip = clips[index]
            for first, second, flow in (
                (clip.frames[:-1], clip.frames[1:], clip.flow),
                (clip.frames[1:], clip.frames[:-1], clip.backward_flow),
            ):
                error = np.asarray(self._flow(params, first, second)) - flow
                found.append(np.linalg.norm(error, axis=-1).mean())
                still.append(np.linalg.norm(flow, axis=-1).mean())
        return {"end_point_error": float(np.mean(found)), "of_no_flow": float(np.mean(still))}

    def export(self, params: Params, folder: Path) -> None:
        """Writes the network for the next stage; see `parts.bundle`."""
        bundle.save(folder, "geomotion", {"raft": parameters.assembled(self._model, params["raft"])})

    def _raft(self, params: Params) -> RAFT:
        model: RAFT = nnx.merge(self._graph, params["raft"])
        return model


_FIELDS = ("first", "second", "flow")


def _scaled(frames: jax.Array) -> jax.Array:
    """uint8 -> float32 in -1..1."""
    return frames.astype(jnp.float32) / 127.5 - 1
