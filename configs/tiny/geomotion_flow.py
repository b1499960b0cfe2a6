"""A RAFT of 0.2 million parameters from nothing, on clips of a filmed still world with moving objects.

    python train.py tiny/geomotion_flow --workdir runs/tiny/geomotion_flow --export runs/tiny/geomotion

The first of three stages; docs/geomotion.md says what each has reached.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import base
from rvseg_jax.core.config import from_dataclass
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric import GeometricShapesConfig
from rvseg_jax.models.raft.config import RaftConfig

# Three scales see displacements of up to 64 pixels.
RAFT = RaftConfig(
    feature_encoder_layers=(16, 16, 24, 32, 48),
    context_encoder_layers=(16, 16, 24, 32, 64),
    corr_block_num_levels=3,
    corr_block_radius=3,
    motion_encoder_corr_layers=(48, 32),
    motion_encoder_flow_layers=(24, 16),
    motion_encoder_out_channels=40,
    recurrent_block_hidden_state_size=32,
    flow_head_hidden_size=48,
    mask_predictor_hidden_size=48,
    num_flow_updates=5,
)


def get_config() -> ConfigDict:
    """All parameters but the statistics of the batch norms, which stay as they start."""
    config = base.get_config("geomotion.flow")
    config.raft = from_dataclass(RAFT)
    config.clips = from_dataclass(GeometricShapesConfig(frames=8))
    config.pairs = 3
    config.steps = 1_500
    config.batch_size = 4
    config.loader.num_workers = 1
    config.optimizer.trainable = ("^(?!.*/(mean|var)$)",)
    config.optimizer.lr = 1e-3
    config.optimizer.weight_decay = 1e-4
    config.schedule.kind = "cosine"
    config.schedule.warmup_steps = 100
    config.ema.enabled = True
    config.ema.max_decay = 0.995
    config.checkpoint.save_frozen = True
    config.checkpoint.every = 500
    config.evaluation.every = 500
    return config
