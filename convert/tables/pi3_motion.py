"""GeoMotion, keys as in upstream's `best_model.pth` (`{"model_state_dict": ...}`): all of Pi3, and the fusion."""

from rvseg_jax.convert.rules import Table, conv, linear
from rvseg_jax.convert.tables import pi3
from rvseg_jax.convert.tables.layer_rules import weights
from rvseg_jax.models.geomotion.config import GeoMotionConfig


def table(cfg: GeoMotionConfig) -> Table:
    """Rules for any sizes."""
    name = "motion_aware_decoder"
    rules = weights(f"{name}.feature_proj.0", f"{name}/feature_proj", linear())
    rules += weights(f"{name}.fusion_proj", f"{name}/fusion_proj", linear())
    for index in range(len(cfg.flow_channels)):  # upstream's list holds convolution and activation in turn
        rules += weights(f"{name}.flow_encoder.{2 * index}", f"{name}/flow_encoder/convs/{index}", conv())
    return pi3.table(cfg.pi3).under("", "pi3/") + Table(rules)
