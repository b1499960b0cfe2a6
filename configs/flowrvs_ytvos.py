"""FlowRVS on Ref-YouTube-VOS, from the image pre-training.

    python train.py flowrvs_ytvos --workdir runs/flowrvs_ytvos --export runs/flowrvs_ytvos/export

Clips are played backwards with a probability of 0.3, and videos shorter than a clip are left out, both as
published; the log says how many those are.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import flowrvs


def get_config() -> ConfigDict:
    """Ref-YouTube-VOS."""
    config = flowrvs.transformer(start="runs/flowrvs_pretrain/export")
    config.data.sets = (("ref_youtube_vos", "datasets/refer_youtube_vos", "train", 1),)
    config.data.reversed_share = 0.3
    config.data.skip_short = True
    return config
