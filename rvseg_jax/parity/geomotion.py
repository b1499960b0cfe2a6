"""Golden cases of GeoMotion's network: motion of the pixels of a video with its flow and without, geometry, taps."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.convert import from_torch
from rvseg_jax.models.geomotion.config import GeoMotionConfig
from rvseg_jax.models.geomotion.model import GeoMotion
from rvseg_jax.parity import pi3
from rvseg_jax.parity.compare import Produced
from rvseg_jax.parity.golden import Case
from rvseg_jax.parity.kinds import Fields, Kind, TorchSide

_FUSION = {"feature_width": "feature_width", "flow_channels": "flow_channels", "low_layers": "low_blocks"}
_FIELDS = Fields(
    build=pi3.FIELDS.build,
    ignored=pi3.FIELDS.ignored,
    nested={**pi3.FIELDS.nested, "fusion": Fields(build=frozenset(_FUSION))},
)
# Features of pixels are stored at every so many pixels.
_STEP = 7


def model_config(config: Mapping[str, Any]) -> GeoMotionConfig:
    """The model of a golden case, whose images are normalised once, inside the model."""
    section = config.get("fusion", {})
    made = {ours: section[theirs] for theirs, ours in _FUSION.items() if theirs in section}
    made = {name: tuple(value) if isinstance(value, list) else value for name, value in made.items()}
    return GeoMotionConfig(pi3=pi3.model_config(config), normalise_twice=False, **made)


def _forward(case: Case) -> Produced:
    cfg = model_config(case.config)
    graph, state = nnx.split(from_torch("pi3_motion", case.weights, cfg))
    without_flow = len(cfg.pi3.heads_from) * cfg.pi3.width == cfg.feature_width
    video, flow = pi3.video_of(case.input("imgs")), case.input("flows")
    run = jax.jit(lambda weights, video, flow: _run(nnx.merge(graph, weights), video, flow, without_flow))
    taps, outputs = jax.device_get(run(state, video, flow))
    outputs["binary_mask"] = outputs["motion_mask"] > 0.5
    return Produced({**pi3.taps_in_order(taps), **outputs}, frozenset({"binary_mask"}))


def _run(
    model: GeoMotion, video: jax.Array, flow: jax.Array, without_flow: bool
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    found, taps = model(video, flow, geometry=True, taps=True)
    pixels = model.motion_aware_decoder.flow_encoder.of_pixels(flow.reshape(-1, *flow.shape[2:]))
    taps["flow_features"] = jnp.moveaxis(pixels[:, ::_STEP, ::_STEP], -1, 1)
    outputs = dict(pi3.outputs_of(found.geometry)) if found.geometry is not None else {}
    logits = {"": found.logits}
    if without_flow:
        logits["_noflow"] = model(video, None).logits
    for name, value in logits.items():
        outputs |= {f"conf{name}": value[..., None], f"motion_mask{name}": jax.nn.sigmoid(value)}
    return taps, outputs


def _call(model: Any, inputs: Mapping[str, Any], watch: Any) -> dict[str, Any]:
    found = model(inputs["imgs"], flows=inputs["flows"])
    with watch.paused():
        plain = model(inputs["imgs"])
    found |= {f"{name}_noflow": plain[name] for name in ("conf", "motion_mask")}
    return {**found, "binary_mask": found["motion_mask"] > 0.5}


KINDS: Mapping[str, Kind] = MappingProxyType({"forward": Kind(_forward, _FIELDS, TorchSide(_call, ("imgs", "flows")))})
