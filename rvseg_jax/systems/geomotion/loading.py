"""GeoMotion from a checkpoint: a converted one, or the export of training; and what that export holds."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.logging import get_logger
from rvseg_jax.models.geomotion.config import GeoMotionConfig
from rvseg_jax.models.geomotion.model import GeoMotion
from rvseg_jax.models.pi3.config import Pi3Config
from rvseg_jax.models.pi3.model import Pi3
from rvseg_jax.models.raft.config import RaftConfig
from rvseg_jax.models.raft.model import RAFT
from rvseg_jax.models.sam2.model import Sam2
from rvseg_jax.models.sam2.tracking_programs import TrackingPrograms
from rvseg_jax.parts import bundle
from rvseg_jax.parts.loading import load_part, parameter_count, settings_of
from rvseg_jax.parts.settings import changed
from rvseg_jax.systems.geomotion import TINY
from rvseg_jax.systems.geomotion.config import GeoMotionSystemConfig
from rvseg_jax.systems.geomotion.system import GeoMotionSystem
from rvseg_jax.zoo import resolve

logger = get_logger(__name__)

NAME = "geomotion"
NETWORK, FLOW, REFINER = "pi3_motion", "raft", "sam2"
GEOMETRY = "pi3"  # which `rvseg geometry` reads by itself
_SIZES = ("geomotion", "raft")


def load(
    checkpoint: Path | None, *, dtype: str | None, mesh: Any, published: bool = False, **settings: Any
) -> GeoMotionSystem:
    """See `rvseg_jax.systems.geomotion.load`."""
    folder = resolve(TINY if checkpoint is None else checkpoint)
    parts = _parts(folder)
    network = cast(GeoMotion, load_part(folder, NETWORK, dtype=dtype, mesh=mesh))
    raft = cast(RAFT, load_part(folder, FLOW, dtype=dtype, mesh=mesh))
    try:
        config = GeoMotionSystemConfig(network.cfg, raft.cfg, **settings_of(folder))
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder} cannot be used: {error}") from error
    config = changed(config.published() if published else config, settings, "GeoMotion", fixed=_SIZES)
    refiner = None
    if config.refine and REFINER in parts:
        sam2 = cast(Sam2, load_part(folder, REFINER, dtype=dtype, mesh=mesh))
        sam2.cfg = sam2.cfg.with_postprocessing()
        refiner = TrackingPrograms(sam2)
    elif settings.get("refine"):
        raise InputError(f"{folder} holds no SAM 2 to refine masks: convert with sam2=FILE, or leave refine out")
    elif config.refine:
        logger.warning(
            "%s holds no SAM 2: masks are not sharpened; convert with sam2=FILE, or set refine=false", folder
        )
    return GeoMotionSystem(config, network, raft, refiner, mesh=mesh)


def save(
    folder: str | Path,
    modules: Mapping[str, nnx.Module],
    *,
    config: GeoMotionSystemConfig | None = None,
    dtype: Any = jnp.float32,
) -> None:
    """Writes parts as a small checkpoint; see `parts.bundle.save`.

    Args:
      config: settings of the system, for a folder that holds all of it.
    """
    settings = None
    if config is not None:
        names = [field.name for field in dataclasses.fields(config) if field.name not in _SIZES]
        settings = {name: getattr(config, name) for name in names}
    bundle.save(folder, NAME, modules, settings=settings, dtype=dtype)


def _parts(folder: Path) -> set[str]:
    """Names of the parts that a checkpoint holds."""
    if bundle.is_bundle(folder):
        return set(bundle.description(folder, NAME)["parts"])
    from rvseg_jax import convert

    return set(convert.check_system(folder, NAME).parts)


def describe() -> dict[str, Any]:
    """See `rvseg_jax.systems.geomotion.describe`."""
    from rvseg_jax.convert import registry
    from rvseg_jax.core import precision as precisions
    from rvseg_jax.models.sam2.config import Sam2Config

    configs: dict[str, dict[str, Any]] = {
        NETWORK: {"published": GeoMotionConfig.published()},
        FLOW: {"published": RaftConfig.large()},
        REFINER: {"published": Sam2Config.sam2_1_large()},
        GEOMETRY: {"published": Pi3Config.published()},
    }
    tiny = bundle.is_bundle(resolve(TINY))
    if tiny:
        for part in _parts(resolve(TINY)):
            configs[part]["tiny"] = bundle.part_config(resolve(TINY), part, precisions.FLOAT32)
    models = {NETWORK: GeoMotion, FLOW: RAFT, REFINER: Sam2, GEOMETRY: Pi3}
    parts = {}
    for part, sizes in configs.items():
        counts = {
            name: parameter_count(lambda rngs, m=models[part], c=config: m(c, rngs=rngs))  # type: ignore[misc]
            for name, config in sizes.items()
        }
        parts[part] = {"parameters": counts, "licence": registry.part(part).licence}
    return {
        "system": NAME,
        "paper": "GeoMotion: Rethinking Motion Segmentation via Latent 4D Geometry, arXiv 2602.21810",
        "presets": ["published", *(["tiny"] if tiny else [])],
        "parts": parts,
        "tiny": "bundled, Apache-2.0" if tiny else "not bundled",
    }
