"""Sizes of the bundled tiny FlowRVS, which the recipes of its three stages share."""

from ml_collections import ConfigDict

from rvseg_jax.core.config import from_dataclass
from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapesConfig
from rvseg_jax.models.umt5.encoder import UMT5Config
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig
from rvseg_jax.models.wan.vae_config import WanVAEConfig

Z_DIM = 16
CLIPS = MovingShapesConfig(size=(96, 96), frames=9)
# 65 words of the grammar (`moving_shapes.vocabulary`), padding, end and unknown, rounded up.
TEXT = UMT5Config(
    vocab_size=72,
    d_model=96,
    d_kv=24,
    d_ff=192,
    num_layers=2,
    num_heads=4,
    relative_attention_num_buckets=16,
    relative_attention_max_distance=24,
)
TEXT_LENGTH = 24
TOKENIZER = "zoo/flowrvs_tiny/tokenizer.json"
# Tokens of all three latent frames train two to three times faster a clip, and needed 2.3 times more clips to follow a
# sentence as far; see docs/tiny_model.md.
DIT = WanTransformerConfig(
    patch_size=(1, 2, 2),
    num_attention_heads=5,
    attention_head_dim=32,
    in_channels=Z_DIM,
    out_channels=Z_DIM,
    text_dim=TEXT.d_model,
    freq_dim=64,
    ffn_dim=384,
    num_layers=4,
    rope_max_seq_len=64,
)


def autoencoder(out_channels: int) -> WanVAEConfig:
    """Autoencoder with 3 output channels, or 1 for masks; its latents are trained to deviate by about 1."""
    return WanVAEConfig(
        base_dim=8,
        z_dim=Z_DIM,
        num_res_blocks=1,
        out_channels=out_channels,
        latents_mean=(0.0,) * Z_DIM,
        latents_std=(1.0,) * Z_DIM,
    )


def on_crops(config: ConfigDict) -> ConfigDict:
    """Data, schedule and averaging that both stages of the autoencoder share."""
    config.clips = from_dataclass(CLIPS)
    config.crop, config.crop_frames = 40, 5
    config.batch_size = 12
    config.loader.num_workers = 1  # drawing the clips takes a third as long as the step
    config.optimizer.betas = (0.9, 0.99)
    config.schedule.kind = "cosine"
    config.schedule.warmup_steps = 100
    config.ema.enabled = True
    config.ema.max_decay = 0.998
    config.checkpoint.every = 500
    return config
