"""XMem's stage 3: 110,000 steps on DAVIS and YouTube-VOS, from the weights of stage 0.

    rvseg convert convert xmem XMem-s0.pth -o ckpts/xmem_s0
    python train.py xmem_s3 --workdir runs/xmem clips.root=/data/DAVIS sparse.root=/data/YouTubeVOS/train_480p \
        pretrained=ckpts/xmem_s0

Both are in DAVIS's layout; the frames and labels of YouTube-VOS lie in `JPEGImages/<video>` and `Annotations/<video>`,
and `ImageSets/2017/train.txt` lists its videos (upstream takes the subset of its `util/yv_subset.txt`). Without
`sparse.root` there is DAVIS alone.

Steps, learning rate and its drop, decay, clips, bootstrapping, the mixture (five times the videos of DAVIS, once those
of YouTube-VOS) and the stride, which grows from 5 to 10 and 15 and falls to 5 again, are upstream's. Not here: of its
augmentations all but crop and mirror. Stages 0 and 2 differ in data and lengths.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import base
from rvseg_jax.core.config import from_dataclass
from rvseg_jax.models.xmem.config import XMemConfig
from rvseg_jax.trackers.data import ClipsConfig

BATCH = 8


def get_config() -> ConfigDict:
    """All but the statistics of the batch norms, which upstream never updates."""
    config = base.get_config("tracker.xmem")
    config.model = from_dataclass(XMemConfig.published())
    config.clips = from_dataclass(ClipsConfig(frames=8, objects=3, longest_stride=5, crop=True))
    # After 10, 30 and 90 % of the 100,000 steps before the last 10,000, in samples.
    config.strides = tuple((start * BATCH, stride) for start, stride in ((10_000, 10), (30_000, 15), (90_000, 5)))
    config.size = 384
    config.precision = "mixed"
    config.steps = 110_000
    config.batch_size = BATCH
    config.optimizer.trainable = ("^(?!.*/(mean|var)$)",)
    config.optimizer.lr = 1e-5
    config.optimizer.weight_decay = 0.05
    config.checkpoint.save_frozen = True
    config.schedule.kind = "multistep"
    config.schedule.milestones = (80_000,)
    config.schedule.milestone_unit = "steps"
    return config
