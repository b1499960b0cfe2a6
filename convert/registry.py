"""What can be converted: the model, config, table and licence of each part, and the parts of each system."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rvseg_jax.convert.rules import Table
from rvseg_jax.core.errors import InputError


@dataclass(frozen=True)
class Part:
    """A model with its own checkpoint; modules are imported when they are asked for.

    Attributes:
      name: name of the part, of its folder in a converted checkpoint, and of its file in `convert/tables`.
      module: dotted name of the module that holds model, config and, if the model is sharded, `SHARDING`.
      model: name of the model class.
      config: name of its config class.
      licence: licence of the published weights.
      folder: where the part lies in a diffusers folder of the whole pipeline.
      upstream: class names that upstream's `config.json` gives this model.
      presets: classmethods of the config that make the published sizes.
      variants: what makes of a config one whose network upstream's `config.json` does not tell apart.
      prefixes: prefixes that some checkpoints put in front of all keys.
      table_module: dotted name of the module with `table(config)`, by default the file in `convert/tables`.
      reads_text: whether a tokenizer belongs to its checkpoint.
      layouts: further sets of keys that the same weights are published under; `table(config)` of one called LAYOUT is
        in the module of that name with `_LAYOUT` behind.
    """

    name: str
    module: str
    model: str
    config: str
    licence: str
    folder: str = ""
    upstream: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    variants: tuple[Callable[[Any], Any], ...] = ()
    prefixes: tuple[str, ...] = ()
    table_module: str = ""
    reads_text: bool = False
    layouts: tuple[str, ...] = ()

    def model_class(self) -> Callable[..., Any]:
        """The model class: `cls(cfg, rngs=...)`."""
        return getattr(importlib.import_module(self.module), self.model)

    def config_class(self) -> Any:
        """The frozen dataclass of the model's configuration."""
        return getattr(importlib.import_module(self.module), self.config)

    def candidates(
        self, upstream: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> list[Any]:
        """Configs that a checkpoint may have: that of upstream's `config.json`, or else the published sizes.

        The variants of each follow it: FlowRVS changes input or output channels and writes no config. A model whose
        sizes the tensors tell has a config with `from_shapes`, which is asked where there is no `config.json`.
        """
        config = self.config_class()
        if upstream is not None:
            bases = [config.from_upstream(upstream)]
        elif shapes is not None and hasattr(config, "from_shapes"):
            try:
                bases = [config.from_shapes(shapes)]
            except ValueError:  # a tensor is missing: the published size says which
                bases = [getattr(config, preset)() for preset in self.presets]
        else:
            bases = [getattr(config, preset)() for preset in self.presets]
        return bases + [variant(base) for base in bases for variant in self.variants]

    def sharding_rules(self) -> tuple[tuple[str, tuple[str | None, ...]], ...]:
        """The model's table of path pattern -> logical axis names; empty if the model has none."""
        return getattr(importlib.import_module(self.module), "SHARDING", ())

    def table(self, config: Any, layout: str = "") -> Table:
        """The conversion table for a configuration, of the keys of the original or of another layout."""
        return self._tables(layout).table(config)

    def parameter_order(self, config: Any) -> list[str] | None:
        """Torch keys in the order of upstream's `module.parameters()`, or None if it is not recorded."""
        order = getattr(self._tables(), "parameter_order", None)
        return None if order is None else order(config)

    def _tables(self, layout: str = "") -> Any:
        if layout and layout not in self.layouts:
            raise InputError(
                f"{self.name} has no key layout {layout!r}: it has {', '.join(self.layouts) or 'one only'}"
            )
        module = self.table_module or f"rvseg_jax.convert.tables.{self.name}"
        return importlib.import_module(f"{module}_{layout}" if layout else module)


PARTS: Mapping[str, Part] = {
    part.name: part
    for part in (
        Part(
            "wan_dit",
            "rvseg_jax.models.wan.transformer",
            "WanTransformer",
            "WanTransformerConfig",
            licence="Apache-2.0 (Wan2.1-T2V); FlowRVS weights: as stated where they are published",
            folder="transformer",
            upstream=("WanTransformer3DModel",),
            presets=("t2v_1_3b", "t2v_14b"),
            variants=(lambda config: config.with_direct_video_injection(),),
        ),
        Part(
            "wan_vae",
            "rvseg_jax.models.wan.vae",
            "WanVAE",
            "WanVAEConfig",
            licence="Apache-2.0 (Wan2.1-T2V); FlowRVS decoder: as stated where it is published",
            folder="vae",
            upstream=("AutoencoderKLWan",),
            presets=("wan2_1",),
            variants=(lambda config: dataclasses.replace(config, out_channels=1),),
            prefixes=("vae.",),
        ),
        Part(
            "umt5",
            "rvseg_jax.models.umt5.encoder",
            "UMT5Encoder",
            "UMT5Config",
            licence="Apache-2.0 (google/umt5-xxl, as shipped with Wan2.1-T2V)",
            folder="text_encoder",
            upstream=("UMT5EncoderModel",),
            reads_text=True,
            presets=("xxl",),
        ),
        Part(
            "xmem",
            "rvseg_jax.models.xmem.network",
            "XMem",
            "XMemConfig",
            licence="MIT (hkchengrex/XMem)",
            presets=("published", "without_sensory"),
        ),
        Part(
            "raft",
            "rvseg_jax.models.raft.model",
            "RAFT",
            "RaftConfig",
            licence="BSD-3-Clause (torchvision); the data sets of its training have terms of their own",
            presets=("large",),
        ),
        Part(
            "sam2",
            "rvseg_jax.models.sam2.model",
            "Sam2",
            "Sam2Config",
            licence="Apache-2.0 (facebookresearch/sam2)",
            upstream=("Sam2Model", "Sam2VideoModel"),
            variants=(lambda config: config.image_only(),),
            layouts=("transformers",),
        ),
        Part(
            "dinov2",
            "rvseg_jax.models.dinov2.encoder",
            "Dinov2",
            "Dinov2Config",
            licence="Apache-2.0 (facebookresearch/dinov2)",
            upstream=("Dinov2WithRegistersModel",),
            presets=("vit_s14_reg", "vit_b14_reg", "vit_l14_reg"),
            layouts=("transformers",),
        ),
        Part(
            "pi3",
            "rvseg_jax.models.pi3.model",
            "Pi3",
            "Pi3Config",
            licence="CC BY-NC 4.0, non-commercial (yyfz/Pi3; its code is BSD-3-Clause)",
            presets=("published",),
        ),
        Part(
            "pi3_motion",
            "rvseg_jax.models.geomotion.model",
            "GeoMotion",
            "GeoMotionConfig",
            licence="MIT code (zjutcvg/GeoMotion) with weights that hold Pi3's: CC BY-NC 4.0, non-commercial",
            presets=("published",),
        ),
        Part(
            "qwen2",
            "rvseg_jax.models.lm.decoder",
            "LanguageModel",
            "LanguageModelConfig",
            licence="Apache-2.0 (Qwen2.5); 3B: Qwen Research, non-commercial",
            upstream=("Qwen2ForCausalLM",),
            presets=("qwen2_5_0_5b", "qwen2_5_3b", "qwen2_5_7b"),
        ),
        Part(
            "internlm2",
            "rvseg_jax.models.lm.decoder",
            "LanguageModel",
            "LanguageModelConfig",
            licence="Apache-2.0 code (InternLM2.5) with weights of terms of their own, see their model card",
            upstream=("InternLM2ForCausalLM",),
            presets=("internlm2_5_1_8b", "internlm2_5_7b"),
        ),
        Part(
            "internvl",
            "rvseg_jax.models.internvl.model",
            "InternVL",
            "InternVLConfig",
            licence="MIT (OpenGVLab/InternVL2_5); of the language model: Apache-2.0, and Qwen Research for that of 4B",
            upstream=("InternVLChatModel", "InternVLForConditionalGeneration"),
            reads_text=True,
            presets=("internvl2_5_1b", "internvl2_5_2b", "internvl2_5_4b", "internvl2_5_8b"),
            layouts=("transformers",),
        ),
        Part(
            "mllmseg",
            "rvseg_jax.models.mllmseg.model",
            "MLLMSeg",
            "MLLMSegConfig",
            licence="MIT code (jcwang0602/MLLMSeg) with weights that hold InternVL2.5's, see internvl",
            upstream=("MLLMSeg", "InternVLChatModel"),
            reads_text=True,
            presets=("internvl2_5_1b", "internvl2_5_2b", "internvl2_5_4b", "internvl2_5_8b"),
        ),
        Part(
            "mllmseg_decoder",
            "rvseg_jax.models.mllmseg.mask_decoder",
            "MaskDecoder",
            "MaskDecoderConfig",
            licence="MIT (jcwang0602/MLLMSeg)",
        ),
    )
}

# Parts that a system needs, and those that it can do without.
SYSTEMS: Mapping[str, tuple[str, ...]] = {
    "flowrvs": ("wan_dit", "wan_vae", "umt5"),
    "geomotion": ("pi3_motion", "raft"),
    "mllmseg": ("mllmseg",),
}
OPTIONAL: Mapping[str, tuple[str, ...]] = {"geomotion": ("sam2",)}


def part(name: str) -> Part:
    """The part called `name`.

    Raises:
      InputError: if there is none; names the known parts.
    """
    if name not in PARTS:
        raise InputError(f"unknown part {name!r}: choose one of {', '.join(PARTS)}")
    return PARTS[name]
