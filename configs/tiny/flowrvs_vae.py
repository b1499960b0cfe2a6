"""Stage 1 of the tiny FlowRVS: the autoencoder, on crops of moving shapes and of their masks.

    python train.py tiny/flowrvs_vae --workdir runs/tiny/vae --export runs/tiny/vae/export

Expect the absolute error (range -1..1) to fall below 0.1 and `latent_std` to settle near 1.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import base
from rvseg_jax.configs.tiny import flowrvs
from rvseg_jax.core.config import from_dataclass


def get_config() -> ConfigDict:
    """Autoencoder stage."""
    config = base.get_config("flowrvs.vae")
    config.vae = from_dataclass(flowrvs.autoencoder(out_channels=3))
    config.clips = from_dataclass(flowrvs.CLIPS)
    config.crop, config.crop_frames = 40, 5
    config.mask_share = 0.5
    config.divergence_weight = 1e-2
    config.steps = 2_000
    config.batch_size = 12
    config.optimizer.lr = 2e-3
    config.optimizer.betas = (0.9, 0.99)
    config.schedule.kind = "cosine"
    config.schedule.warmup_steps = 100
    config.ema.enabled = True
    config.ema.max_decay = 0.998
    config.loader.num_workers = 1  # drawing the clips takes a third as long as the step
    config.checkpoint.every = 500
    return config
