"""Golden cases of training losses that no model is needed for, a kind for each system."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import jax
import jax.numpy as jnp

from rvseg_jax.core.errors import InputError
from rvseg_jax.parity.compare import Produced
from rvseg_jax.parity.golden import Case
from rvseg_jax.parity.kinds import Fields, Kind
from rvseg_jax.systems.geomotion.losses import MotionLossConfig, motion_losses
from rvseg_jax.systems.mllmseg.losses import MaskLossConfig, mask_terms

_GEOMOTION = Fields(
    build=frozenset({"bce_weight", "dice_weight", "focal_weight", "focal_alpha", "focal_gamma", "fused_weights"}),
    ignored=frozenset({"dice_smooth", "motion_consistency_weight"}),
)


_MLLMSEG = Fields(build=frozenset({"alpha", "gamma", "dice_smooth"}))


def _geomotion(case: Case) -> Produced:
    """Of probabilities, as upstream has them, with the gradient with respect to them."""
    config = case.config
    if config.get("motion_consistency_weight") or config.get("dice_smooth", 1e-6) != 1e-6:
        raise InputError("motion_consistency_weight must be 0 and dice_smooth 1e-6: nothing else is used")
    options = {"focal_alpha": config["focal_alpha"], "focal_gamma": config["focal_gamma"]}
    plain = MotionLossConfig(config["bce_weight"], config["dice_weight"], config["focal_weight"], **options)
    weighted = MotionLossConfig(*config["fused_weights"], **options)
    masks, valid = jnp.asarray(case.input("target")), jnp.asarray(case.input("valid")) > 0
    probability = jnp.asarray(case.input("pred"))
    outputs = {}
    for name, cfg, counted in (("default", plain, None), ("weighted", weighted, None), ("masked", plain, valid)):

        def total(
            probability: jax.Array, cfg: MotionLossConfig = cfg, counted: jax.Array | None = counted
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            logits = jnp.log(probability) - jnp.log1p(-probability)
            losses = motion_losses(cfg, logits, masks, counted)
            return losses["total"], losses

        (outputs[name], terms), outputs[f"grad/{name}"] = jax.value_and_grad(total, has_aux=True)(probability)
        if name == "default":
            outputs |= {f"terms/{term}_loss": value for term, value in terms.items() if term != "total"}
    return Produced(jax.device_get(outputs))


def _mllmseg(case: Case) -> Produced:
    """Of probabilities, as upstream has them, in the published form, with gradients with respect to them."""
    if case.config.get("dice_smooth", 1) != 1:
        raise InputError("dice_smooth must be 1: nothing else is used")
    plain = MaskLossConfig(form="published", alpha=case.config["alpha"], gamma=case.config["gamma"])
    probability, target = jnp.asarray(case.input("prob"))[:, None], jnp.asarray(case.input("target"))[:, None]
    inside = jnp.ones((len(probability), 1, *probability.shape[2:]))

    def mean(probability: jax.Array, name: str, cfg: MaskLossConfig) -> jax.Array:
        return jnp.mean(mask_terms(cfg, probability, target, inside)[name])

    outputs = {"iou": mean(probability, "mask_iou", plain)}
    for name, cfg in (("dice", plain), ("focal", plain), ("focal_alpha_off", replace(plain, alpha=-1.0))):
        value, slope = jax.value_and_grad(mean)(probability, name.removesuffix("_alpha_off"), cfg)
        outputs |= {name: value, f"grad/{name}": slope[:, 0]}
    return Produced(jax.device_get(outputs))


KINDS: Mapping[str, Kind] = MappingProxyType(
    {"geomotion": Kind(_geomotion, _GEOMOTION), "mllmseg": Kind(_mllmseg, _MLLMSEG)}
)
