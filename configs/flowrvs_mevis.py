"""FlowRVS on MeViS: the recipe of the released weights, as far as it is known.

    python train.py flowrvs_mevis --workdir runs/flowrvs_mevis --export runs/flowrvs_mevis/export

Upstream's README says that the released weights saw MeViS only, so this starts from Wan2.1; to start from the image
pre-training, set `pretrained` to its export. To segment with the result, put the parts together:

    rvseg convert convert flowrvs checkpoints/Wan2.1-T2V-1.3B-Diffusers \\
      wan_dit=runs/flowrvs_mevis/export/wan_dit.safetensors wan_vae=tuned_vae.pth -o checkpoints/my_flowrvs

To encode the sentences once, before training, and leave the text encoder out of the step:
`text_cache=runs/mevis_sentences.array_record`.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import flowrvs


def get_config() -> ConfigDict:
    """MeViS."""
    config = flowrvs.transformer()
    config.data.sets = (("mevis", "datasets/MeViS", "train", 1),)
    return config
