"""MLLMSeg for expressions that may name nothing (GRES): 20,000 further steps on gRefCOCO, from the export of `mllmseg`.

    python train.py mllmseg_gres --workdir runs/mllmseg_gres --export runs/mllmseg_gres/export

Published for the 8B model alone. With Qwen2's words frozen, as the published sets of trained parameters have it, the
1B and 4B models cannot tell `[SEG]` from `[REJ]`: take `TRAINED` for them.
"""

from ml_collections import ConfigDict

from rvseg_jax.configs import mllmseg


def get_config() -> ConfigDict:
    """What differs from RES."""
    config = mllmseg.get_config()
    config.tokenizer = "runs/mllmseg/export"
    config.pretrained = (("mllmseg", "runs/mllmseg/export"),)
    config.sets = (("grefcoco", "datasets/refer_seg", "train"),)
    config.steps = 20_000
    config.schedule.warmup_steps = 600
    return config
