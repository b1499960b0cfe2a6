"""A tiny MLLMSeg from nothing, on stills of moving_shapes: every part is trained at once.

    python train.py tiny/mllmseg --workdir runs/tiny/mllmseg --export runs/tiny/mllmseg/export

Images of 168 pixels are 12 x 12 patches and 6 x 6 image tokens. docs/mllmseg.md says what it reaches.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import base
from rvseg_jax.core.config import from_dataclass
from rvseg_jax.input_pipeline.datasets.moving_shapes.stills import StillShapesConfig
from rvseg_jax.models.internvl.config import InternVLConfig
from rvseg_jax.models.internvl.vision import InternViTConfig
from rvseg_jax.models.lm.config import LanguageModelConfig
from rvseg_jax.models.mllmseg.config import MLLMSegConfig

TOKENIZER = "zoo/mllmseg_tiny/tokenizer.json"
MLLMSEG = MLLMSegConfig(
    InternVLConfig(
        InternViTConfig(
            hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=384, image_size=168
        ),
        LanguageModelConfig(
            vocab_size=112,
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            rope_theta=10_000.0,
        ),
        family="qwen2",
    ),
    num_heads=4,
)


def get_config() -> ConfigDict:
    """Whole network."""
    config = base.get_config("mllmseg.segment")
    config.model = from_dataclass(MLLMSEG)
    config.tokenizer = TOKENIZER
    config.stills = from_dataclass(StillShapesConfig(expressions=(1, 3)))
    config.size = 168
    config.text_length = 176
    config.expressions = 3
    config.box = (0, 0)
    config.qualities = (0, 0)
    config.dropout = False
    config.remat = "none"
    config.steps = 6_000
    config.batch_size = 16
    config.loader.num_workers = 1
    config.optimizer.lr = 1.5e-3
    config.optimizer.betas = (0.95, 0.98)
    config.optimizer.muon = (r"vision/blocks/(attn/proj|mlp/(up|down))/kernel$", r"language/layers/.*kernel$")
    config.optimizer.weight_decay = 0.01
    config.schedule.kind = "cosine"
    config.schedule.warmup_steps = 100
    config.ema.enabled = True
    config.ema.max_decay = 0.995
    config.checkpoint.every = 500
    config.evaluation.every = 500
    return config
