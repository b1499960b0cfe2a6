"""A SAM 2 of one million parameters from nothing, on clips of moving shapes at 128 pixels.

    python train.py tiny/sam2 --workdir runs/tiny/sam2 --export runs/tiny/sam2/export

docs/tracking.md says how long it takes and what it reaches.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import base
from rvseg_jax.core.config import from_dataclass
from rvseg_jax.models.sam2.config import (
    HieraConfig,
    MaskDecoderConfig,
    MemoryAttentionConfig,
    MemoryEncoderConfig,
    Sam2Config,
    TrackingConfig,
)
from rvseg_jax.trackers.data import ClipsConfig

MODEL = Sam2Config(
    image_size=128,
    d_model=64,
    hiera=HieraConfig(embed_dim=24, stages=(1, 2, 3, 1), global_att_blocks=(5,), window_spec=(8, 4, 8, 4)),
    mask_decoder=MaskDecoderConfig(transformer_mlp=128, iou_head_hidden=64),
    memory_attention=MemoryAttentionConfig(num_layers=2, dim_feedforward=128),
    memory_encoder=MemoryEncoderConfig(mem_dim=32),
    # Clips of five frames teach no more memories than these.
    num_maskmem=4,
    # Several masks of a tracked frame would be one for each object of the clip, with none for what is remembered: the
    # loss takes the best of them.
    tracking=TrackingConfig(multimask_output_for_tracking=False, max_obj_ptrs_in_encoder=4, memory_dtype="float32"),
)


def get_config() -> ConfigDict:
    """Whole model, prompts of all kinds."""
    config = base.get_config("tracker.sam2")
    config.model = from_dataclass(MODEL)
    config.clips = from_dataclass(ClipsConfig(frames=5, objects=2, longest_stride=4))
    config.prompts = (0.7, 0.15, 0.15)
    config.remat = "none"
    config.steps = 1_500
    config.batch_size = 3
    config.loader.num_workers = 1
    config.optimizer.lr = 1.5e-3
    config.optimizer.betas = (0.95, 0.98)
    config.optimizer.muon = (
        "^image_encoder/trunk/blocks/.*/kernel$",
        "^memory_attention/layers/.*/kernel$",
        "^sam_mask_decoder/transformer/.*/kernel$",
    )
    config.optimizer.weight_decay = 0.01
    # Not the frequencies of the positions, which are constants.
    config.optimizer.decay = ("kernel$",)
    config.schedule.kind = "cosine"
    config.schedule.warmup_steps = 50
    config.ema.enabled = True
    config.ema.max_decay = 0.995
    config.checkpoint.every = 500
    config.evaluation.every = 500
    return config
