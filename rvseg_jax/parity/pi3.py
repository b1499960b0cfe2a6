"""Golden cases of Pi3: points, confidence and cameras of a video, with taps."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx

from rvseg_jax.convert import from_torch
from rvseg_jax.core.errors import InputError
from rvseg_jax.models.dinov2.encoder import Dinov2Config
from rvseg_jax.models.pi3.config import Pi3Config
from rvseg_jax.models.pi3.model import Geometry
from rvseg_jax.parity.compare import Produced
from rvseg_jax.parity.golden import Case
from rvseg_jax.parity.kinds import Fields, Kind, TorchSide

_ENCODER = {
    "width": "embed_dim",
    "depth": "depth",
    "heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "register_tokens": "num_register_tokens",
    "interpolate_antialias": "interpolate_antialias",
    "interpolate_offset": "interpolate_offset",
    "norm_eps": "norm_eps",
}
_DECODER = {
    "depth": "depth",
    "heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "qk_norm": "qk_norm",
    "register_tokens": "register_tokens",
    "rope_base": "rope_theta",
    "norm_eps": "norm_eps",
}
_HEADS = {
    "width": "head_width",
    "depth": "head_depth",
    "heads": "head_heads",
    "mlp_ratio": "head_mlp_ratio",
    "qk_norm": "head_qk_norm",
    "out_width_points": "point_width",
    "out_width_conf": "conf_width",
    "out_width_camera": "camera_width",
}
_TAPS_BEFORE = ("encoder_patch_tokens", "encoder_cls", "encoder_registers")
_TAPS_AFTER = (
    *("heads_in", "camera_decoder", "camera_raw_3x3", "camera_translation", "flow_features", "fused"),
    *("point_decoder", "conf_decoder"),
)
# What a factor starts from does not matter here, as the weights are given.
_SCALE = 1.0

FIELDS = Fields(
    build=frozenset({"patch_size"}),
    ignored=frozenset({"batch", "frames", "height", "width_px"}),  # the shapes of the inputs
    nested={
        "encoder": Fields(build=frozenset({*_ENCODER, "layer_scale", "pos_embed_grid"})),
        "decoder": Fields(build=frozenset({*_DECODER, "width", "layer_scale"})),
        "head_decoders": Fields(build=frozenset({*_HEADS, "layer_scale"})),
    },
)


def model_config(config: Mapping[str, Any]) -> Pi3Config:
    """The model of a golden case.

    Raises:
      InputError: for fields that contradict each other.
    """
    encoder, decoder, heads = config["encoder"], config["decoder"], config["head_decoders"]
    width, patch = encoder.get("width", Dinov2Config.embed_dim), config.get("patch_size", Dinov2Config.patch_size)
    if decoder.get("width", width) != width:
        raise InputError(f"decoder.width {decoder['width']} must be that of the encoder, {width}")
    grid = encoder.get("pos_embed_grid", Dinov2Config.image_size // patch)
    made = _renamed(decoder, _DECODER) | _renamed(heads, _HEADS)
    depth = made.get("depth", Pi3Config.depth)
    return Pi3Config(
        encoder=Dinov2Config(
            patch_size=patch,
            image_size=grid * patch,
            **_scale(encoder, "layer_scale", True),
            **_renamed(encoder, _ENCODER),
        ),
        heads_from=(depth - 2, depth - 1),
        **made,
        **_scale(decoder, "layer_scale", True),
        **_scale(heads, "head_layer_scale", False),
    )


def _renamed(section: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {ours: section[theirs] for theirs, ours in names.items() if theirs in section}


def _scale(section: Mapping[str, Any], name: str, default: bool) -> dict[str, Any]:
    return {name: _SCALE if section.get("layer_scale", default) else None}


def video_of(images: np.ndarray) -> np.ndarray:
    """Channels last, as our models take videos. Shapes: [B, T, 3, H, W] -> [B, T, H, W, 3]."""
    return np.moveaxis(images, 2, -1)


def outputs_of(geometry: Geometry) -> dict[str, Any]:
    """Points and cameras under upstream's names; the confidence too where there is one, with its last axis."""
    found = {name: getattr(geometry, name) for name in ("points", "local_points", "camera_poses")}
    return found if geometry.conf is None else {**found, "conf": geometry.conf[..., None]}


def taps_in_order(taps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a case from taps, in the order of the forward pass, which a jitted function does not keep."""
    blocks = sorted((name for name in taps if name.startswith("block")), key=lambda name: int(name[len("block") :]))
    return {f"tap/{name}": taps[name] for name in (*_TAPS_BEFORE, *blocks, *_TAPS_AFTER) if name in taps}


def _forward(case: Case) -> Produced:
    graph, state = nnx.split(from_torch("pi3", case.weights, model_config(case.config)))
    run = jax.jit(lambda weights, video: nnx.merge(graph, weights)(video, taps=True))
    geometry, taps = jax.device_get(run(state, video_of(case.input("imgs"))))
    return Produced({**taps_in_order(taps), **outputs_of(geometry)})


def _call(model: Any, inputs: Mapping[str, Any], watch: Any) -> dict[str, Any]:
    del watch
    return model(inputs["imgs"])


KINDS: Mapping[str, Kind] = MappingProxyType({"forward": Kind(_forward, FIELDS, TorchSide(_call, ("imgs",)))})
