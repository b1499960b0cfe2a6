"""Golden cases of RAFT, called "raft_large" after torchvision's model: the flow after every update."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.convert import from_torch
from rvseg_jax.core.errors import InputError
from rvseg_jax.models.raft.config import STRIDE, RaftConfig
from rvseg_jax.models.raft.model import RAFT, pixel_grid
from rvseg_jax.ops.correlation import correlate, read_windows
from rvseg_jax.parity.compare import Produced
from rvseg_jax.parity.golden import Case
from rvseg_jax.parity.kinds import Fields, Kind, TorchSide

_NORMS = {"feature_encoder": "instance (no affine)", "context_encoder": "batch"}
_ENCODER = Fields(build=frozenset({"layers", "norm"}))
_FIELDS = Fields(
    build=frozenset({"corr_levels", "corr_radius", "flow_head_hidden"}),
    call=frozenset({"num_flow_updates", "corr_pixels_yx"}),
    ignored=frozenset({"batch", "height", "width"}),  # the shapes of the inputs
    nested={
        "feature_encoder": _ENCODER,
        "context_encoder": _ENCODER,
        "motion_encoder": Fields(build=frozenset({"corr_layers", "flow_layers", "out"})),
        "recurrent": Fields(build=frozenset({"hidden", "kernels", "padding"})),
        "mask_predictor": Fields(build=frozenset({"hidden", "multiplier"})),
    },
)


def _forward(case: Case) -> Produced:
    cfg = _config(case.config)
    pixels = np.array(case.config.get("corr_pixels_yx", []), int).reshape(-1, 2)
    graph, state = nnx.split(from_torch("raft", case.weights, cfg))

    def run(weights: nnx.State, image1: jax.Array, image2: jax.Array) -> dict[str, jax.Array]:
        model: Any = nnx.merge(graph, weights)
        flows = model.predictions(image1, image2)
        return {
            **_taps(model, image1, image2, pixels),
            **{f"flow{index}": flow for index, flow in enumerate(jnp.moveaxis(flows, -1, 2))},
        }

    image1, image2 = (np.moveaxis(case.input(name), 1, -1) for name in ("image1", "image2"))
    size = np.array(image1.shape[1:3]) // STRIDE
    if np.any((pixels < 0) | (pixels >= size)):
        raise InputError(f"corr_pixels_yx {pixels.tolist()}: the feature maps have {size.tolist()} pixels")
    found = jax.device_get(jax.jit(run)(state, image1, image2))  # which sorts the names
    levels = [f"tap/corr_level{level}" for level in range(cfg.corr_block_num_levels) if len(pixels)]
    order = ["tap/features", *levels, "tap/context", "tap/corr_lookup0", "tap/delta_flow0"]
    return Produced({name: found.pop(name) for name in order} | found)


def _taps(model: RAFT, image1: jax.Array, image2: jax.Array, pixels: np.ndarray) -> dict[str, jax.Array]:
    """What lies between images and flow at the first update, in the original's layout."""
    cfg = model.cfg
    first, second, context = model.encode_pairs(image1, image2)
    start = model.begin(first, second, context)
    height, width = first.shape[1:3]
    still = jnp.zeros((*first.shape[:3], 2))
    seen = read_windows(start.correlation, pixel_grid(height, width) + still, radius=cfg.corr_block_radius)
    _, change = model.update_block(start.hidden, start.prepared, seen, still)
    pairs = correlate(
        first, second, levels=cfg.corr_block_num_levels, lookup="all_pairs", precision=cfg.precision.matmul
    )
    chosen = pixels[:, 0] * width + pixels[:, 1]
    return {
        "tap/features": _first(jnp.concatenate([first, second])),
        **{f"tap/corr_level{level}": maps[:, chosen] for level, maps in enumerate(pairs.pyramid) if len(chosen)},
        "tap/context": _first(context),
        "tap/corr_lookup0": _first(seen),
        "tap/delta_flow0": _first(change),
    }


def _config(config: Mapping[str, Any]) -> RaftConfig:
    """The model's config; what a case does not say is as in `raft_large`."""
    motion, recurrent, mask = (config.get(name, {}) for name in ("motion_encoder", "recurrent", "mask_predictor"))
    default = RaftConfig.large()
    kernels = recurrent.get("kernels", default.recurrent_block_kernel_size)
    fixed: dict[str, tuple[Any, Any]] = {
        f"{name}.norm": (config.get(name, {}).get("norm", norm), norm) for name, norm in _NORMS.items()
    }
    padding = [[side // 2 for side in kernel] for kernel in kernels]
    fixed["recurrent.padding"] = (recurrent.get("padding", padding), padding)
    for name, (told, known) in fixed.items():
        if told != known:
            raise InputError(f"config says {name} = {told!r}: only {known!r} can be run")
    return RaftConfig(
        feature_encoder_layers=_layers(config, "feature_encoder", default.feature_encoder_layers),
        context_encoder_layers=_layers(config, "context_encoder", default.context_encoder_layers),
        corr_block_num_levels=config.get("corr_levels", default.corr_block_num_levels),
        corr_block_radius=config.get("corr_radius", default.corr_block_radius),
        motion_encoder_corr_layers=tuple(motion.get("corr_layers", default.motion_encoder_corr_layers)),
        motion_encoder_flow_layers=tuple(motion.get("flow_layers", default.motion_encoder_flow_layers)),
        motion_encoder_out_channels=motion.get("out", default.motion_encoder_out_channels),
        recurrent_block_hidden_state_size=recurrent.get("hidden", default.recurrent_block_hidden_state_size),
        recurrent_block_kernel_size=tuple((rows, columns) for rows, columns in kernels),
        flow_head_hidden_size=config.get("flow_head_hidden", default.flow_head_hidden_size),
        mask_predictor_hidden_size=mask.get("hidden", default.mask_predictor_hidden_size),
        mask_predictor_multiplier=mask.get("multiplier", default.mask_predictor_multiplier),
        num_flow_updates=config.get("num_flow_updates", default.num_flow_updates),
    )


def _layers(config: Mapping[str, Any], name: str, default: Any) -> Any:
    return tuple(config.get(name, {}).get("layers", default))


def _first(array: jax.Array) -> jax.Array:
    """Channels from the last axis to the second."""
    return jnp.moveaxis(array, -1, 1)


def _call(model: Any, inputs: Mapping[str, Any], watch: Any) -> dict[str, Any]:
    """The original with its default number of updates."""
    del watch
    return {f"flow{index}": flow for index, flow in enumerate(model(inputs["image1"], inputs["image2"]))}


_TAPS = {"feature_encoder": "features", "context_encoder": "context"}
KINDS: Mapping[str, Kind] = MappingProxyType(
    {"forward": Kind(_forward, _FIELDS, TorchSide(_call, ("image1", "image2"), _TAPS))}
)
