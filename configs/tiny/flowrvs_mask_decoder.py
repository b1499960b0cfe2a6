"""Stage 2 of the tiny FlowRVS: the decoder with one output channel, encoder frozen.

    python train.py tiny/flowrvs_mask_decoder --workdir runs/tiny/mask_decoder --export runs/tiny/mask_decoder/export

Expect `iou` of the crops to pass 0.9.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import base
from rvseg_jax.configs.tiny import flowrvs
from rvseg_jax.core.config import from_dataclass


def get_config() -> ConfigDict:
    """Mask decoder stage."""
    config = base.get_config("flowrvs.mask_decoder")
    config.vae = from_dataclass(flowrvs.autoencoder(out_channels=1))
    config.clips = from_dataclass(flowrvs.CLIPS)
    config.pretrained = "runs/tiny/vae/export"
    config.crop, config.crop_frames = 40, 5
    # The DiT's latents are never exact.
    config.latent_noise = 0.2
    config.optimizer.trainable = ("^vae/decoder/", "^vae/post_quant_conv/")
    config.checkpoint.save_frozen = True
    config.steps = 1_200
    config.batch_size = 12
    config.optimizer.lr = 1e-3
    config.optimizer.betas = (0.9, 0.99)
    config.schedule.kind = "cosine"
    config.schedule.warmup_steps = 100
    config.ema.enabled = True
    config.ema.max_decay = 0.998
    config.loader.num_workers = 1  # drawing the clips takes a third as long as the step
    config.checkpoint.every = 500
    return config
