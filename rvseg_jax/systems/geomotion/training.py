"""GeoMotion's own stage; the protocol is `training.tasks.Task`.

geomotion.motion   fusion and motion decoder on frozen geometry and frozen flow
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.precision import Precision, by_name
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric import GeometricShapes, GeometricShapesConfig
from rvseg_jax.input_pipeline.motion_rows import MotionRow, drawn_row, mixed
from rvseg_jax.layers import stack
from rvseg_jax.models.geomotion import model as geomotion
from rvseg_jax.models.geomotion.config import GeoMotionConfig
from rvseg_jax.models.geomotion.model import GeoMotion
from rvseg_jax.models.raft import model as raft
from rvseg_jax.models.raft.config import RaftConfig
from rvseg_jax.models.raft.model import RAFT
from rvseg_jax.parallel.rules import Table, prefixed
from rvseg_jax.parts import parameters
from rvseg_jax.parts.parameters import Params
from rvseg_jax.systems.geomotion import loading, motion_cache
from rvseg_jax.systems.geomotion.config import GeoMotionSystemConfig
from rvseg_jax.systems.geomotion.flow import magnitudes_in_step
from rvseg_jax.systems.geomotion.losses import MotionLossConfig, motion_losses

Batch = Mapping[str, jax.Array]
# Paths of the trained parameters, for `optimizer.trainable`.
TRAINED = tuple(path.replace("^", "^geomotion/", 1) for path in geomotion.TRAINED)


@dataclass(frozen=True)
class MotionTrainingConfig:
    """What is trained on what.

    Attributes:
      geomotion, raft: sizes of the networks.
      clips: training clips, where `sets` names none; also the clips of validation.
      sets: pairs (name, root) of training sets, in the shares of the recipe (`motion_rows.RECIPE`).
      frames, size: of a training clip; frames are squares of `size` pixels.
      losses: weights of the losses.
      pretrained: pairs (part, folder) of what training starts from: "raft", and "pi3" or a whole "pi3_motion".
      encoder_precision: number formats of the frozen parts by name; "" takes those of the run.
      cache: file with `cached_clips` clips and the flow between their frames; it is written when it is missing or was
        made from something else. "" finds the flow in every step, as upstream does.
      cache_features: also keep what frozen Pi3 says of the clips, in place of their frames.
      remat: what the backward pass computes again.
      validation_clips: clips of moving_shapes that `evaluate` scores.
    """

    geomotion: GeoMotionConfig = GeoMotionConfig()
    raft: RaftConfig = RaftConfig()
    clips: GeometricShapesConfig = GeometricShapesConfig(with_flow=False)
    sets: tuple[tuple[str, str], ...] = ()
    frames: int = 12
    size: int = 518
    losses: MotionLossConfig = field(default_factory=MotionLossConfig)
    pretrained: tuple[tuple[str, str], ...] = ()
    encoder_precision: str = ""
    cache: str = ""
    cached_clips: int = 0
    cache_features: bool = False
    remat: stack.Remat = "full"
    validation_clips: int = 16

    def __post_init__(self) -> None:
        if self.frames < 2 or self.size % self.geomotion.pi3.patch_size:
            raise ValueError(
                f"frames {self.frames} must be at least 2 and size {self.size} a multiple of the patches' "
                f"{self.geomotion.pi3.patch_size}"
            )
        unknown = [part for part, _ in self.pretrained if part not in ("pi3", "pi3_motion", "raft")]
        if unknown:
            raise ValueError(f"pretrained names {unknown[0]!r}: it takes pi3, pi3_motion and raft")


class MotionTask:
    """Binary cross entropy and Dice on the motion of pixels; gradients are averaged over the devices."""

    Config = MotionTrainingConfig
    sharding_table: Table = (*prefixed(geomotion.SHARDING, "geomotion"), *prefixed(raft.SHARDING, "raft"))

    def __init__(self, config: MotionTrainingConfig, *, precision: Precision) -> None:
        self.config = config
        flow_precision = by_name(config.encoder_precision) if config.encoder_precision else precision
        self.system = GeoMotionSystemConfig(
            replace(config.geomotion, precision=precision),
            replace(config.raft, precision=flow_precision),
            size=config.size,
            group=config.frames,
        )
        self._models: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {
            "geomotion": lambda rngs: GeoMotion(self.system.geomotion, rngs=rngs),
            "raft": lambda rngs: RAFT(self.system.raft, rngs=rngs),
        }
        self._graphs = {name: parameters.graph_of(model) for name, model in self._models.items()}
        self._predict = jax.jit(lambda params, frames: self._logits(params, {"frames": frames}) > 0)

    def init(self, key: jax.Array) -> Params:
        """{"geomotion": ..., "raft": ...}."""
        keys = dict(zip(self._models, jax.random.split(key, len(self._models)), strict=True))
        return {name: parameters.initialised(model, keys[name]) for name, model in self._models.items()}

    def restore_pretrained(self, target: Params) -> Params:
        """The parts that the recipe names; of Pi3 its confidence branch too, as the motion decoder begins with it."""
        given: Params = {}
        for part, folder in self.config.pretrained:
            network, flow = self.system.geomotion, self.system.raft
            if part == "raft":
                given["raft"] = parameters.read(folder, part, flow.precision, target.get("raft"))
            elif part == "pi3":
                wanted = target["geomotion"]["pi3"]
                given["geomotion"] = {"pi3": parameters.read(folder, part, network.precision, wanted)}
            else:
                given["geomotion"] = parameters.read(folder, part, network.precision, target["geomotion"])
        return parameters.place_matching(given, target)

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Shapes: batch {"frames": uint8 [B, T, S, S, 3], "masks", "valid": bool [B, T, S, S]}, or as in the cache."""
        del key
        logits = self._logits(params, batch)
        losses = motion_losses(self.config.losses, logits, batch["masks"], batch["valid"])
        found, true = (logits > 0) & batch["valid"], batch["masks"] & batch["valid"]
        union = jnp.maximum(jnp.sum(found | true), 1)
        return losses.pop("total"), losses | {"iou": jnp.sum(found & true) / union}

    def source(self, split: str) -> Any:
        """Videos of the split, or the rows of the cache."""
        if split == "train" and self.config.cache:
            return motion_cache.cached_rows(self.config, self._graphs, self._given, self._rows)
        if split == "train" and self.config.sets:
            return self._videos
        return GeometricShapes(replace(self.config.clips, split="train" if split == "train" else "valid"))

    @cached_property
    def _videos(self) -> Any:
        from rvseg_jax.input_pipeline.datasets.motion_sets import open_motion

        sources = {name: open_motion(name, root) for name, root in self.config.sets}
        return mixed(sources, frames=self.config.frames, size=self.config.size)

    def transform(self, split: str) -> Callable[..., Mapping[str, Any]]:
        """A clip of a video."""
        if split == "train" and self.config.cache:
            return motion_cache.as_stored
        return self._drawing(split)

    def _drawing(self, split: str) -> Callable[..., Mapping[str, Any]]:
        if split == "train" and self.config.sets:
            return drawn_row
        return MotionRow(self.config.frames, self.config.size, view="whole")

    def evaluate(self, params: Params, *, step: int) -> Mapping[str, float]:
        """Region similarity J of validation clips, by what the camera does and in the mean over clips."""
        del step
        clips, row = self.source("validation"), self.transform("validation")
        by_kind: dict[str, list[float]] = {}
        for index in range(self.config.validation_clips):
            clip = clips[index]
            arrays = row(clip, np.random.default_rng(0))
            found = np.asarray(self._predict(params, arrays["frames"][None])[0])
            both, either = (found & arrays["masks"]).sum((1, 2)), (found | arrays["masks"]).sum((1, 2))
            scores = np.where(either > 0, both / np.maximum(either, 1), 1.0)
            by_kind.setdefault(clip.kind, []).append(float(scores.mean()))
        every = [score for scores in by_kind.values() for score in scores]
        return {"j": float(np.mean(every))} | {f"j_{kind}": float(np.mean(own)) for kind, own in by_kind.items()}

    def export(self, params: Params, folder: Path) -> None:
        """Writes the whole system; see `loading.save`."""
        parts = {
            loading.NETWORK: parameters.assembled(self._models["geomotion"], params["geomotion"]),
            loading.FLOW: parameters.assembled(self._models["raft"], params["raft"]),
        }
        loading.save(folder, parts, config=replace(self.system, refine=False))  # it holds no SAM 2

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        """The clips that go into the cache."""
        videos = self._videos if self.config.sets else GeometricShapes(replace(self.config.clips, split="train"))
        row = self._drawing("train")
        for index in range(self.config.cached_clips):
            yield row(videos[index % len(videos)], np.random.default_rng(index))

    def _given(self) -> Params:
        """The frozen networks for the cache; what is trained on them has no part in it and is zero."""
        target = parameters.on_one_device(jax.eval_shape(self.init, jax.random.key(0)))
        return parameters.filled(self.restore_pretrained(target), target)

    def _logits(self, params: Params, batch: Batch) -> jax.Array:
        """Shapes: -> float32 [B, T, S, S]."""
        network: Any = nnx.merge(self._graphs["geomotion"], params["geomotion"])
        if "high" in batch:
            side = self.config.size // self.system.geomotion.pi3.patch_size
            seen = network.recalled(*(batch[name] for name in motion_cache.FEATURES), grid=(side, side))
        else:
            pixels = batch["frames"].astype(jnp.float32) / 255
            seen = network.features(pixels)
        if "flow" in batch:
            flow = batch["flow"].astype(jnp.float32)
        else:
            raft: Any = nnx.merge(self._graphs["raft"], params["raft"])
            flow = jax.lax.stop_gradient(magnitudes_in_step(raft, pixels))
        return network.motion(seen, flow, remat=self.config.remat)
