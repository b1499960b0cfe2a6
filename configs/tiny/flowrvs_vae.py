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
    config = flowrvs.on_crops(base.get_config("flowrvs.vae"))
    config.vae = from_dataclass(flowrvs.autoencoder(out_channels=3))
    config.mask_share = 0.5
    config.divergence_weight = 1e-2
    config.steps = 2_000
    config.optimizer.lr = 2e-3
    return config
