"""An XMem of one million parameters from nothing, on clips of moving shapes at 128 pixels.

    python train.py tiny/xmem --workdir runs/tiny/xmem --export runs/tiny/xmem/export

docs/tracking.md says how long it takes and what it reaches.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import base
from rvseg_jax.core.config import from_dataclass
from rvseg_jax.models.xmem.config import XMemConfig
from rvseg_jax.trackers.data import ClipsConfig
from rvseg_jax.trackers.xmem.losses import BootstrapSchedule


def get_config() -> ConfigDict:
    """Whole model; the batch norms keep the statistics that they start with, as upstream's always do."""
    config = base.get_config("tracker.xmem")
    config.model = from_dataclass(XMemConfig.tiny())
    config.clips = from_dataclass(ClipsConfig(frames=5, objects=2, longest_stride=4))
    config.size = 128
    config.bootstrap = from_dataclass(BootstrapSchedule(start_warm=500, end_warm=2_000))
    config.steps = 2_500
    config.batch_size = 3
    config.loader.num_workers = 1
    config.optimizer.trainable = ("^(?!.*/(mean|var)$)",)
    config.optimizer.lr = 1e-3
    config.optimizer.betas = (0.9, 0.98)
    config.optimizer.weight_decay = 0.01
    config.checkpoint.save_frozen = True
    config.schedule.kind = "cosine"
    config.schedule.warmup_steps = 100
    config.ema.enabled = True
    config.ema.max_decay = 0.995
    config.checkpoint.every = 500
    config.evaluation.every = 500
    return config
