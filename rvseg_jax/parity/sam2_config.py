"""The configuration of golden cases of SAM 2: which fields they may have, and the model that they describe."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rvseg_jax.core.errors import InputError
from rvseg_jax.models.sam2.config import (
    HieraConfig,
    MaskDecoderConfig,
    MemoryAttentionConfig,
    MemoryEncoderConfig,
    Sam2Config,
    TrackingConfig,
)
from rvseg_jax.parity.kinds import Fields


def _names(section: type) -> frozenset[str]:
    return frozenset(entry.name for entry in fields(section))


_TRACKING = _names(TrackingConfig) - {"memory_dtype"}
# Fields of a golden config -> fields of a section here, where the names differ.
_ATTENTION = {"heads": "num_heads", "layers": "num_layers"}
_DOWNSAMPLER = ("kernel", "stride", "padding", "total_stride")
_FUSER = ("kernel", "depthwise", "layer_scale")
_SWITCHES = {"use_high_res_features_in_sam": "use_high_res_features"}
_DECODER_SWITCHES = ("use_multimask_token_for_obj_ptr", "pred_obj_scores", "pred_obj_scores_mlp")

MODEL_FIELDS = Fields(
    build=frozenset(
        {
            *("image_size", "d_model", "mem_dim", "memory_attention_layers", "memory_attention_ffn"),
            *("memory_fuser_layers", "num_maskmem", "fpn_top_down_levels", "fpn_interp", "scalp"),
            *("memory_features_dtype", "no_obj_embed_spatial"),
        }
    )
    | _TRACKING,
    # It follows from the trunk, and is checked against it.
    ignored=frozenset({"backbone_channel_list"}),
    nested={
        "hiera": Fields(build=_names(HieraConfig)),
        "mask_decoder": Fields(build=_names(MaskDecoderConfig)),
        "sam_mask_decoder_extra_args": Fields(build=_names(MaskDecoderConfig)),
        "memory_attention": Fields(
            build=_names(MemoryAttentionConfig) | _ATTENTION.keys(), ignored=frozenset({"rope_feat_sizes"})
        ),
        "switches": Fields(
            build=_TRACKING | {*_SWITCHES, *_DECODER_SWITCHES, "no_obj_embed_spatial", "position_encoding_temperature"},
            nested={
                "mask_downsampler": Fields(build=frozenset(_DOWNSAMPLER)),
                "fuser_block": Fields(build=frozenset(_FUSER)),
                "hiera_extra": Fields(build=_names(HieraConfig)),
            },
        ),
    },
)


def model_config(config: Mapping[str, Any]) -> Sam2Config:
    """The model of a golden case.

    Raises:
      InputError: for fields that contradict each other.
    """
    switches = config.get("switches", {})
    flat = {name: config[name] for name in _TRACKING & config.keys()}
    if "memory_features_dtype" in config:
        flat["memory_dtype"] = config["memory_features_dtype"]
    made = Sam2Config(
        hiera=HieraConfig(**_tuples({**switches.get("hiera_extra", {}), **config["hiera"]})),
        mask_decoder=_mask_decoder(config, switches),
        memory_attention=_memory_attention(config),
        memory_encoder=_memory_encoder(config, switches),
        tracking=TrackingConfig(**{name: switches[name] for name in _TRACKING & switches.keys()} | flat),
        **_top(config, switches),
    )
    widths = config.get("backbone_channel_list")
    if widths is not None and list(reversed(widths)) != list(made.hiera.widths):
        raise InputError(
            f"backbone_channel_list {widths} must be {made.hiera.widths}, the widths of the trunk, reversed"
        )
    return made


def _top(config: Mapping[str, Any], switches: Mapping[str, Any]) -> dict[str, Any]:
    top = {name: config[name] for name in ("image_size", "d_model", "num_maskmem", "scalp") if name in config}
    if "fpn_top_down_levels" in config:
        top["fpn_top_down_levels"] = tuple(config["fpn_top_down_levels"])
    if "fpn_interp" in config:
        top["fpn_interp_model"] = config["fpn_interp"]
    for source in (switches, config):
        for name in ("no_obj_embed_spatial", "position_encoding_temperature"):
            if name in source:
                top[name] = source[name]
    return top


def _mask_decoder(config: Mapping[str, Any], switches: Mapping[str, Any]) -> MaskDecoderConfig:
    given = {ours: switches[theirs] for theirs, ours in _SWITCHES.items() if theirs in switches}
    given |= {name: switches[name] for name in _DECODER_SWITCHES if name in switches}
    return MaskDecoderConfig(**given, **config.get("mask_decoder", {}), **config.get("sam_mask_decoder_extra_args", {}))


def _memory_attention(config: Mapping[str, Any]) -> MemoryAttentionConfig:
    section = {_ATTENTION.get(name, name): value for name, value in config.get("memory_attention", {}).items()}
    section.pop("rope_feat_sizes", None)  # the angles are made for the size of the features
    for theirs, ours in (("memory_attention_layers", "num_layers"), ("memory_attention_ffn", "dim_feedforward")):
        if theirs in config:
            section[ours] = config[theirs]
    return MemoryAttentionConfig(**section)


def _memory_encoder(config: Mapping[str, Any], switches: Mapping[str, Any]) -> MemoryEncoderConfig:
    section = {f"downsampler_{name}": value for name, value in switches.get("mask_downsampler", {}).items()}
    section |= {f"fuser_{name}": value for name, value in switches.get("fuser_block", {}).items()}
    for theirs, ours in (("mem_dim", "mem_dim"), ("memory_fuser_layers", "fuser_layers")):
        if theirs in config:
            section[ours] = config[theirs]
    return MemoryEncoderConfig(**section)


def _tuples(section: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in section.items()}
