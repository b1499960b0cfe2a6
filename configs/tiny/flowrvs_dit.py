"""Stage 3 of the tiny FlowRVS: the DiT and its text encoder, from nothing, autoencoder frozen.

    python train.py tiny/flowrvs_dit --workdir runs/tiny/dit --export runs/tiny/dit/export

The autoencoder encodes each clip once: the first start writes `runs/tiny/latents.array_record`. The bundled
transformer was stopped after 6,500 of these steps; see docs/tiny_model.md.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import base
from rvseg_jax.configs.tiny import flowrvs
from rvseg_jax.core.config import from_dataclass


def get_config() -> ConfigDict:
    """DiT stage."""
    config = base.get_config("flowrvs.dit")
    config.dit = from_dataclass(flowrvs.DIT)
    config.vae = from_dataclass(flowrvs.autoencoder(out_channels=1))
    config.text = from_dataclass(flowrvs.TEXT)
    config.text_length = flowrvs.TEXT_LENGTH
    config.tokenizer = flowrvs.TOKENIZER
    config.clips = from_dataclass(flowrvs.CLIPS)
    config.pretrained = (("wan_vae", "runs/tiny/mask_decoder/export"),)
    config.latent_cache = "runs/tiny/latents.array_record"
    config.cached_clips = 6_000  # with about 26 sentences each, of 5 masks and an empty one
    # Inference takes one step from the start of the path, which is the posterior's mean. Samples of this small
    # autoencoder's posterior hide what there is to see: their noise has 0.6 times the variance of the means.
    config.boundary_probability = 0.95
    config.sample_start = False
    config.remat = "none"
    config.optimizer.trainable = ("^dit/", "^text/")
    config.checkpoint.save_frozen = True
    config.steps = 20_000
    config.batch_size = 16
    config.optimizer.lr = 2e-3
    config.optimizer.muon = ("blocks/.*kernel$",)
    config.optimizer.betas = (0.95, 0.99)
    config.optimizer.weight_decay = 0.01
    config.loader.num_workers = 1
    config.schedule.kind = "cosine"
    config.schedule.warmup_steps = 100
    config.ema.enabled = True
    config.ema.max_decay = 0.995
    config.checkpoint.every = 500
    config.evaluation.every = 1_000
    return config
