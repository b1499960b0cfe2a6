"""FlowRVS, first stage: still images of RefCOCO, RefCOCO+ and RefCOCOg as clips of one frame.

    python train.py flowrvs_pretrain --workdir runs/flowrvs_pretrain --export runs/flowrvs_pretrain/export

Data: `datasets/coco` with `train2014/` and the sentences of the three sets. Each is drawn once in turn; upstream
concatenates them, so that larger ones come more often.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import flowrvs


def get_config() -> ConfigDict:
    """Image pre-training."""
    config = flowrvs.transformer()
    names = ("refcoco", "refcoco+", "refcocog")
    config.data.sets = tuple((name, "datasets/coco", "train", 1) for name in names)
    config.data.frames = 1
    config.data.augmentation = "image"
    # Images keep their sizes upstream, up to 800 on the long side; here a step has one, and larger ones are shrunk.
    config.data.box = (640, 800)
    return config
