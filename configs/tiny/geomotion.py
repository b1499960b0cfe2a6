"""A tiny GeoMotion on clips of a filmed still world with moving objects.

    python train.py tiny/geomotion --workdir runs/tiny/geomotion_motion --export runs/tiny/geomotion/whole

The last of three stages: flow (`tiny/geomotion_flow`) and geometry (`tiny/geomotion_geometry`) are frozen here, and
read from the folder that they were exported to.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import base
from rvseg_jax.configs.tiny.geomotion_flow import RAFT
from rvseg_jax.configs.tiny.geomotion_geometry import PI3
from rvseg_jax.core.config import from_dataclass
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric import GeometricShapesConfig
from rvseg_jax.models.geomotion.config import GeoMotionConfig
from rvseg_jax.systems.geomotion.training import TRAINED

GEOMOTION = GeoMotionConfig(
    pi3=PI3, low_blocks=(0, 1), feature_width=192, flow_channels=(8, 16, 32), normalise_twice=False
)


def get_config() -> ConfigDict:
    """The published split into frozen and trained parts."""
    config = base.get_config("geomotion.motion")
    config.geomotion = from_dataclass(GEOMOTION)
    config.raft = from_dataclass(RAFT)
    config.clips = from_dataclass(GeometricShapesConfig(frames=12, with_flow=False))
    config.pretrained = (("raft", "runs/tiny/geomotion"), ("pi3", "runs/tiny/geomotion"))
    config.frames = 8
    config.size = 112
    config.remat = "none"
    config.steps = 1_200
    config.batch_size = 4
    config.loader.num_workers = 1
    config.optimizer.trainable = TRAINED
    config.optimizer.lr = 1.5e-3
    config.optimizer.betas = (0.95, 0.98)
    config.optimizer.muon = ("^geomotion/pi3/conf_decoder/blocks/(attn/proj|mlp/(up|down))/kernel$",)
    config.optimizer.weight_decay = 0.01
    config.schedule.kind = "cosine"
    config.schedule.warmup_steps = 100
    config.ema.enabled = True
    config.ema.max_decay = 0.995
    config.checkpoint.save_frozen = True
    config.checkpoint.every = 500
    config.evaluation.every = 500
    return config
