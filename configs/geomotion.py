"""GeoMotion's training as its code runs it: four sets and DynamicVerse, 20 epochs of clips of 12 frames.

    python train.py geomotion --workdir runs/geomotion --export runs/geomotion/export

Frozen parts are read from converted checkpoints (`rvseg convert convert pi3 model.safetensors -o checkpoints/pi3`, and
`raft` likewise); the motion decoder begins as Pi3's confidence branch. Two of the sets hold masks that were never
published (got10k, gotmoving), so the released weights cannot be reproduced from public files alone; leave sets out of
`config.sets` and the others keep their proportions.

Where the code and the paper differ, this is the code; `geomotion_paper` is the paper. Where the code is at odds with
itself, this is what its released weights most likely saw:

* Each of upstream's four processes trains a copy of its own, as gradients are never averaged, and the first copy is
  kept: a batch of 1. On several devices this recipe averages gradients over `batch_size` clips, which is another
  recipe; raise the learning rate with care.
* The learning rate falls along a cosine at every step, not at every epoch.
* Decay holds for norms and biases too.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import base
from rvseg_jax.systems.geomotion.training import TRAINED

SETS = ("got10k", "hoi4d", "dynamic_stereo", "gotmoving", "dynamic_verse")


def get_config() -> ConfigDict:
    """Published sizes."""
    config = base.get_config("geomotion.motion")
    config.sets = tuple((name, f"datasets/{name}") for name in SETS)
    config.pretrained = (("raft", "checkpoints/raft"), ("pi3", "checkpoints/pi3"))
    config.frames = 12
    config.size = 518
    config.epochs = 20
    config.batch_size = 1
    config.optimizer.trainable = TRAINED
    config.optimizer.lr = 5e-5
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    config.schedule.kind = "cosine"
    config.schedule.final = 0.1
    config.loader.num_workers = 4
    config.checkpoint.every = 3_000
    config.evaluation.every = 3_000
    return config
