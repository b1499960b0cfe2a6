"""Fine-tuning SAM 2.1 base+ on masks of videos, after upstream's recipe for MOSE.

    rvseg convert convert sam2 sam2.1_hiera_base_plus.pt -o ckpts/sam2
    python train.py sam2_finetune --workdir runs/sam2 clips.root=/data/MOSE pretrained=ckpts/sam2

`clips.root` is in DAVIS's layout. Learning rates, schedule, decay, clipping, clip length, number of objects, shares of
mask, click and box prompts, prompted and corrected frames, and the memory attention's dropout are upstream's
(sam2.1_hiera_b+_MOSE_finetune.yaml: 40 epochs of 8 GPUs with a clip each). Not here: dropout of attention weights, the
trunk's stochastic depth of 0.1 and layer-wise decay of 0.9 to the learning rate, and of its augmentations all but the
mirror.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from rvseg_jax.configs import base
from rvseg_jax.core.config import from_dataclass
from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.trackers.data import ClipsConfig
from rvseg_jax.trackers.sam2.interaction import InteractionConfig


def get_config() -> ConfigDict:
    """All parts are trained; freeze some by `optimizer.trainable`."""
    config = base.get_config("tracker.sam2")
    model = Sam2Config.sam2_1_base_plus()
    config.model = from_dataclass(replace(model, memory_attention=replace(model.memory_attention, dropout=0.1)))
    config.clips = from_dataclass(ClipsConfig(frames=8, objects=3, longest_stride=1, split="train"))
    config.prompts = (0.5, 0.25, 0.25)
    config.interaction = from_dataclass(InteractionConfig.published())
    config.precision = "mixed"
    config.epochs = 40
    config.batch_size = 8
    config.optimizer.lr = 5e-6
    config.optimizer.lr_factors = (("^image_encoder/", 0.6),)
    config.optimizer.weight_decay = 0.1
    config.optimizer.decay = ("kernel$",)
    config.optimizer.clip_norm = 0.1
    config.schedule.kind = "cosine"
    config.schedule.final = 0.1
    return config
