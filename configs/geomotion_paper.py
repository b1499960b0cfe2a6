"""GeoMotion's training as its paper says: focal and Dice loss at 0.5 each, Adam, 15 epochs.

    python train.py geomotion_paper --workdir runs/geomotion_paper --export runs/geomotion_paper/export

The paper's list of data differs too: HOI4D, Dynamic Replica, GOT-Motion, and two sets that are not here (motion
subsets of YouTube-VOS 2018 and OmniWorld). See `geomotion` for what is read from where.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import geomotion
from rvseg_jax.core.config import from_dataclass
from rvseg_jax.systems.geomotion.losses import MotionLossConfig


def get_config() -> ConfigDict:
    """Published sizes."""
    config = geomotion.get_config()
    config.sets = tuple((name, f"datasets/{name}") for name in ("hoi4d", "dynamic_stereo", "gotmoving"))
    config.losses = from_dataclass(MotionLossConfig.paper())
    config.epochs = 15
    config.optimizer.weight_decay = 0.0
    config.schedule.kind = "constant"
    return config
