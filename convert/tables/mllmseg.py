"""MLLMSeg, keys as in upstream's merged checkpoints."""

from rvseg_jax.convert.rules import Table
from rvseg_jax.convert.tables import internvl, mllmseg_decoder
from rvseg_jax.models.mllmseg.config import MLLMSegConfig


def table(cfg: MLLMSegConfig) -> Table:
    """Rules for any sizes."""
    decoder = mllmseg_decoder.table(cfg.decoder).under("res_decoder.", "mask_decoder/")
    return internvl.table(cfg.internvl).under("", "internvl/") + decoder
