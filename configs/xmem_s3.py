"""XMem's stage 3: 110,000 steps on DAVIS and YouTube-VOS, from the weights of stage 0.

    rvseg convert convert xmem XMem-s0.pth -o ckpts/xmem_s0
    python train.py xmem_s3 --workdir runs/xmem clips.root=/data/DAVIS pretrained=ckpts/xmem_s0

`clips.root` is in DAVIS's layout. Steps, learning rate and its drop, decay, clips and bootstrapping are upstream's.
Not here: its mixture of five parts of DAVIS to one of YouTube-VOS, the stride that grows from 5 to 15 and falls to 5
again (here it is 10), and of its augmentations all but crop and mirror. Stages 0 and 2 differ in data and lengths.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import base
from rvseg_jax.core.config import from_dataclass
from rvseg_jax.models.xmem.config import XMemConfig
from rvseg_jax.trackers.data import ClipsConfig


def get_config() -> ConfigDict:
    """All but the statistics of the batch norms, which upstream never updates."""
    config = base.get_config("tracker.xmem")
    config.model = from_dataclass(XMemConfig.published())
    config.clips = from_dataclass(ClipsConfig(frames=8, objects=3, longest_stride=10, crop=True))
    config.size = 384
    config.precision = "mixed"
    config.steps = 110_000
    config.batch_size = 8
    config.optimizer.trainable = ("^(?!.*/(mean|var)$)",)
    config.optimizer.lr = 1e-5
    config.optimizer.weight_decay = 0.05
    config.checkpoint.save_frozen = True
    config.schedule.kind = "multistep"
    config.schedule.milestones = (80_000,)
    config.schedule.milestone_unit = "steps"
    return config
