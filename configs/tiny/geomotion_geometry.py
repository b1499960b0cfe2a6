"""A Pi3 of 1.6 million parameters from nothing, on clips with true depth and cameras.

    python train.py tiny/geomotion_geometry --workdir runs/tiny/geomotion_geometry --export runs/tiny/geomotion

The second of three stages; see configs/tiny/geomotion_flow.py.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import base
from rvseg_jax.core.config import from_dataclass
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric import GeometricShapesConfig
from rvseg_jax.models.dinov2.encoder import Dinov2Config
from rvseg_jax.models.pi3.config import Pi3Config

PI3 = Pi3Config(
    encoder=Dinov2Config(image_size=112, patch_size=8, embed_dim=96, depth=3, num_heads=4),
    depth=4,
    num_heads=4,
    heads_from=(2, 3),
    layer_scale=0.1,
    head_width=96,
    head_depth=2,
    head_heads=4,
    point_width=96,
    conf_width=96,
    camera_width=64,
)


def get_config() -> ConfigDict:
    """Whole network."""
    config = base.get_config("geomotion.geometry")
    config.pi3 = from_dataclass(PI3)
    config.clips = from_dataclass(GeometricShapesConfig(frames=8, with_flow=False))
    config.frames = 4
    config.steps = 1_500
    config.batch_size = 4
    config.loader.num_workers = 1
    config.optimizer.lr = 1.5e-3
    config.optimizer.betas = (0.95, 0.98)
    config.optimizer.muon = ("^pi3/.*(attn/proj|mlp/(up|down))/kernel$",)
    config.optimizer.weight_decay = 0.01
    config.schedule.kind = "cosine"
    config.schedule.warmup_steps = 100
    config.ema.enabled = True
    config.ema.max_decay = 0.995
    config.checkpoint.every = 500
    config.evaluation.every = 500
    return config
