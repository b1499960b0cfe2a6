"""MLLMSeg for referring segmentation (RES) as its script trains it: InternVL2.5-8B with adapters, 50,000 steps of 32.

    python train.py mllmseg --workdir runs/mllmseg --export runs/mllmseg/export

InternVL is read from a converted checkpoint (`rvseg convert convert internvl InternVL2_5-8B -o checkpoints/internvl`);
the mask decoder, adapters and the words `[SEG]` and `[REJ]` begin anew. `mllmseg_gres` goes on from the export.

As published, two faults included, since the released weights have them: the focal loss squeezes probabilities by a
second sigmoid, and the collator asks for token 0 behind the shorter texts of a batch. For your own training:

    --set losses.form=corrected --set label_padding=false

Upstream's sets overlap: images of one are in the held-out splits of another, and nothing filters them.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import base, meshes
from rvseg_jax.core.config import from_dataclass
from rvseg_jax.models.mllmseg.config import MLLMSegConfig
from rvseg_jax.systems.mllmseg.losses import MaskLossConfig
from rvseg_jax.systems.mllmseg.training import TRAINED_PUBLISHED

SETS = ("refclef", "refcoco", "refcoco+", "refcocog")


def get_config() -> ConfigDict:
    """Published sizes and values."""
    config = base.get_config("mllmseg.segment")
    config.model = from_dataclass(MLLMSegConfig.internvl2_5_8b())
    config.tokenizer = "checkpoints/internvl"
    config.pretrained = (("internvl", "checkpoints/internvl"),)
    config.sets = tuple((name, "datasets/refer_seg", "train") for name in SETS)
    config.losses = from_dataclass(MaskLossConfig.published())
    config.label_padding = True
    config.text_length = 1_024
    config.lora_rank = 64
    config.lora_alpha = 128.0
    config.lora_dropout = 0.05
    config.base_bfloat16 = True
    config.precision = "mixed"
    config.steps = 50_000
    config.batch_size = 32
    config.optimizer.trainable = TRAINED_PUBLISHED["internlm2"]
    config.optimizer.lr = 4e-5
    config.optimizer.betas = (0.9, 0.999)
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    config.schedule.kind = "cosine"
    config.schedule.warmup_steps = 1_500  # 3 %
    config.mesh.update(meshes.FSDP_TENSOR4)
    config.loader.num_workers = 8
    config.checkpoint.every = 2_500
    return config
