"""What the recipes of the published FlowRVS (arXiv 2510.06139) share.

Where the paper is silent the values are those of the published code, and where the two differ the code's, with the
paper's in a comment. Of the code's defects none is repeated: its crash on all sets but MeViS, the ImageNet
normalisation of images and DAVIS before an autoencoder that expects -1..1, and captions in which "bright" became
"bleft" when a clip was mirrored.

The weights come from converted checkpoints:

    rvseg convert convert flowrvs Wan2.1-T2V-1.3B-Diffusers wan_vae=tuned_vae.pth -o checkpoints/flowrvs_start
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import base, meshes
from rvseg_jax.core.config import from_dataclass
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig

START = "checkpoints/flowrvs_start"


def transformer(start: str = START) -> ConfigDict:
    """The DiT stage as published; `start` holds the transformer to go on from."""
    published = FlowRVSConfig.released()
    config = base.get_config("flowrvs.dit")
    # The paper concatenates the video latent to the state (32 input channels); the code and, by all evidence, the
    # released weights do not. `dit.in_channels=32` does.
    config.dit = from_dataclass(published.dit)
    # The autoencoder with the tuned one-channel decoder: its encoder is Wan's, and exports can segment at once.
    config.vae = from_dataclass(published.vae)
    config.text = from_dataclass(published.text)
    config.text_length = 256  # 64 until February 2026; Wan itself 512
    config.tokenizer = f"{START}/tokenizer.json"
    config.pretrained = (("wan_dit", start), ("wan_vae", START), ("umt5", START))
    config.optimizer.trainable = ("^dit/",)
    # The frozen encoders in bfloat16, as upstream; the DiT in float32 with bfloat16 arithmetic, upstream's --amp.
    # Upstream's default is `precision=bfloat16`: at this learning rate AdamW then loses small updates.
    config.encoder_precision = "bfloat16"
    config.precision = "mixed"
    config.data.frames = 17
    config.boundary_probability = 0.5
    config.sample_start = True
    config.mask_latent_space = "raw"
    config.remat = "full"
    # One clip a device. Upstream's example has 2 devices; the paper does not say.
    config.batch_size = 8
    config.mesh.update(meshes.FSDP)
    config.optimizer.lr = 5e-5
    config.optimizer.betas = (0.9, 0.999)
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 5e-4  # of all parameters, norms and biases too
    config.optimizer.clip_norm = 1.0
    config.epochs = 50
    config.schedule.kind = "multistep"
    config.schedule.milestones = (30,)
    config.schedule.gamma = 0.9  # the code logs 0.1 and takes 0.9
    config.ema.enabled = True
    config.ema.max_decay = 0.9999
    config.loader.num_workers = 8
    config.checkpoint.every = 1000
    config.seed = 42
    return config
