"""MLLMSeg from a checkpoint: a converted one, or the export of training; and what that export holds."""

import dataclasses
from pathlib import Path
from typing import Any, cast

from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.models.mllmseg.config import MLLMSegConfig
from rvseg_jax.models.mllmseg.model import MLLMSeg
from rvseg_jax.parts import bundle
from rvseg_jax.parts.loading import load_part, parameter_count, settings_of
from rvseg_jax.parts.settings import changed
from rvseg_jax.processing.chat import ChatTokenizer
from rvseg_jax.systems.mllmseg import TINY
from rvseg_jax.systems.mllmseg.config import MLLMSegSystemConfig
from rvseg_jax.systems.mllmseg.system import MLLMSegSystem
from rvseg_jax.zoo import resolve

NAME = "mllmseg"
TOKENIZER = "tokenizer.json"


def load(checkpoint: Path | None, *, dtype: str | None, mesh: Any, **settings: Any) -> MLLMSegSystem:
    """See `rvseg_jax.systems.mllmseg.load`."""
    folder = resolve(TINY if checkpoint is None else checkpoint)
    model = cast(MLLMSeg, load_part(folder, NAME, dtype=dtype, mesh=mesh))
    tokenizer = tokenizer_of(folder, model.cfg)
    stored = settings_of(folder)
    try:
        config = MLLMSegSystemConfig(model.cfg, **{"size": model.cfg.internvl.vision.image_size, **stored})
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder}: {error}") from None
    return MLLMSegSystem(changed(config, settings, "MLLMSeg", fixed=("model",)), model, tokenizer)


def tokenizer_of(folder: str | Path, cfg: MLLMSegConfig) -> ChatTokenizer:
    """The tokenizer beside the weights.

    Raises:
      InputError: if there is none, or one with more tokens than the model has rows.
    """
    tokenizer = ChatTokenizer.from_file(resolve(folder), beginning=cfg.internvl.family == "internlm2")
    if tokenizer.size > cfg.internvl.language.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {tokenizer.size} tokens and the model {cfg.internvl.language.vocab_size}: "
            "they do not belong together"
        )
    return tokenizer


def save(folder: str | Path, model: nnx.Module, tokenizer: Path, *, config: MLLMSegSystemConfig, dtype: Any) -> None:
    """Writes the system as training exports it.

    Args:
      tokenizer: `tokenizer.json`.
      dtype: number format of the weights.
    """
    given = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(config) if entry.name != "model"}
    bundle.save(folder, NAME, {NAME: model}, settings=given, files={TOKENIZER: tokenizer}, dtype=dtype)


def describe() -> dict[str, Any]:
    """See `rvseg_jax.systems.mllmseg.describe`."""
    from rvseg_jax.convert import registry

    presets = {name: getattr(MLLMSegConfig, name)() for name in registry.part(NAME).presets}
    if bundle.is_bundle(resolve(TINY)):
        presets["tiny"] = cast(Any, load_part(TINY, NAME, dtype=None, mesh=None)).cfg
    counts = {}
    for name, cfg in presets.items():
        counts[name] = parameter_count(lambda rngs, c=cfg: MLLMSeg(c, rngs=rngs))  # type: ignore[misc]
    return {
        "system": NAME,
        "paper": "Unlocking the Potential of MLLMs in Referring Expression Segmentation via a Light-weight Mask "
        "Decoder, arXiv 2508.04107",
        "presets": sorted(presets),
        "parts": {NAME: {"parameters": counts, "licence": registry.part(NAME).licence}},
        "tiny": "bundled, Apache-2.0" if "tiny" in presets else "not bundled",
    }
