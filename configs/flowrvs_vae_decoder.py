"""FlowRVS's mask decoder: Wan's decoder with one output channel, fine-tuned to rebuild the masks of MeViS.

    python train.py flowrvs_vae_decoder --workdir runs/flowrvs_vae_decoder --export runs/flowrvs_vae_decoder/export

Upstream published the wrapper of this stage but no script. Known: the encoder is frozen, the latent is sampled, the
data are masks of MeViS at 480 by 832 without mirroring or crops, and focal (8) and dice (4) weights stood in options
that were removed. Its wrapper clamps the logits to -1..1, where the gradient vanishes outside; here they are not
clamped. Learning rate and length are choices of this recipe.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import base, meshes
from rvseg_jax.core.config import from_dataclass
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig


def get_config() -> ConfigDict:
    """Mask decoder."""
    config = base.get_config("flowrvs.mask_decoder")
    config.vae = from_dataclass(FlowRVSConfig.released().vae)
    config.pretrained = "checkpoints/wan2.1_vae"  # rvseg convert convert wan_vae Wan2.1-T2V-1.3B-Diffusers/vae
    config.data.sets = (("mevis", "datasets/MeViS", "train", 1),)
    config.data.frames = 17
    config.data.augmentation = "none"
    config.crop = config.crop_frames = 0
    config.focal_weight, config.dice_weight = 8.0, 4.0
    config.optimizer.trainable = ("^vae/decoder/", "^vae/post_quant_conv/")
    config.checkpoint.save_frozen = True
    config.precision = "mixed"
    config.batch_size = 8
    config.mesh.update(meshes.FSDP)
    config.optimizer.lr = 5e-5
    config.optimizer.weight_decay = 5e-4
    config.epochs = 3  # upstream's first script pointed at the file of the third epoch
    config.ema.enabled = True
    return config
