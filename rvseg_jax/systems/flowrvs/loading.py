"""FlowRVS from a checkpoint: a converted one, part by part as it is needed, or a small one at once."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from rvseg_jax.core import precision as precisions
from rvseg_jax.core.errors import InputError
from rvseg_jax.models.umt5.encoder import UMT5Config, UMT5Encoder, encode_blockwise
from rvseg_jax.models.wan.transformer import WanTransformer
from rvseg_jax.models.wan.vae import WanVAE
from rvseg_jax.parts.bundle import is_bundle, load_part
from rvseg_jax.parts.loading import parameter_count
from rvseg_jax.parts.settings import changed
from rvseg_jax.processing.text import Tokenizer
from rvseg_jax.systems.flowrvs import TINY, bundle
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig
from rvseg_jax.systems.flowrvs.system import FlowRVS, LoadedParts
from rvseg_jax.zoo import resolve


def load(checkpoint: Path | None, *, dtype: str | None, mesh: Any, **settings: Any) -> FlowRVS:
    """See `rvseg_jax.systems.flowrvs.load`."""
    folder = resolve(TINY if checkpoint is None else checkpoint)
    if is_bundle(folder):
        precision = precisions.by_name(dtype or "float32")
        config = _changed(bundle.load_config(folder, precision), settings)
        dit, vae, text = (load_part(folder, part, precision) for part in bundle.FIELDS)
        return FlowRVS(config, LoadedParts(dit, vae, text), Tokenizer.from_file(folder))  # type: ignore[arg-type]
    parts = ConvertedParts(folder, dtype, mesh)
    return FlowRVS(_changed(parts.config, settings), parts, parts.tokenizer())


def _changed(config: FlowRVSConfig, settings: dict[str, Any]) -> FlowRVSConfig:
    return changed(config, settings, "FlowRVS", fixed=bundle.FIELDS.values())


def encode_stored(folder: Path, config: UMT5Config, ids: np.ndarray, mask: np.ndarray) -> jax.Array:
    """Output of the text encoder of a converted checkpoint, read and run block by block.

    Shapes: ids int [N, S], mask bool [N, S] -> [N, S, D].
    """
    from rvseg_jax.convert import streaming

    stored = streaming.open_part(folder, "umt5")
    embedding, norm = stored.rows("shared/embedding"), stored.leaf("final_layer_norm/scale")
    return encode_blockwise(config, embedding, stored.layers("blocks"), norm, ids, mask)


class ConvertedParts:
    """Parts of a converted checkpoint. The text encoder is read block by block and never held whole."""

    def __init__(self, folder: Path, dtype: str | None, mesh: jax.sharding.Mesh | None):
        from rvseg_jax import convert
        from rvseg_jax.convert import registry, store

        self._folder, self._mesh = folder, mesh
        manifest = convert.check_system(folder, "flowrvs")
        self._precision = precisions.by_name(dtype) if dtype else None
        configs = {
            field: store.stored_config(registry.part(part), manifest.parts[part], self._precision)
            for part, field in bundle.FIELDS.items()
        }
        try:
            self.config = FlowRVSConfig(**configs)
        except ValueError as error:
            raise InputError(f"{folder}: {error}") from error

    def tokenizer(self) -> Tokenizer:
        """The tokenizer.json beside the weights."""
        try:
            return Tokenizer.from_file(self._folder)
        except (FileNotFoundError, ValueError) as error:
            raise InputError(str(error)) from None

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> jax.Array:
        """Output of the text encoder, one block in memory at a time. Shapes: [N, S] -> [N, S, D]."""
        return encode_stored(self._folder, self.config.text, ids, mask)

    def networks(self) -> tuple[WanTransformer, WanVAE]:
        """The transformer and the autoencoder, on the mesh."""
        from rvseg_jax import convert

        options = {"mesh": self._mesh, "precision": self._precision}
        dit = convert.load_part(self._folder, "wan_dit", **options)
        vae = convert.load_part(self._folder, "wan_vae", **options)
        assert isinstance(dit, WanTransformer) and isinstance(vae, WanVAE)
        return dit, vae


def describe() -> dict[str, Any]:
    """See `rvseg_jax.systems.flowrvs.describe`."""
    from rvseg_jax.convert import registry

    models = {"wan_dit": WanTransformer, "wan_vae": WanVAE, "umt5": UMT5Encoder}
    presets = {"released": FlowRVSConfig.released()}
    if is_bundle(resolve(TINY)):
        presets["tiny"] = bundle.load_config(resolve(TINY), precisions.FLOAT32)
    parts = {}
    for part, field in bundle.FIELDS.items():
        counts = {}
        for name, preset in presets.items():
            config = getattr(preset, field)
            counts[name] = parameter_count(lambda rngs, m=models[part], c=config: m(c, rngs=rngs))  # type: ignore[misc]
        parts[part] = {"parameters": counts, "licence": registry.part(part).licence}
    return {
        "system": "flowrvs",
        "paper": "Deforming Videos to Masks: Flow Matching for Referring Video Segmentation, arXiv 2510.06139",
        "presets": sorted(presets),
        "parts": parts,
        "tiny": "bundled, Apache-2.0" if "tiny" in presets else "not bundled",
    }
