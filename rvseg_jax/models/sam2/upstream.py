"""Which configuration a checkpoint of SAM 2 has, by transformers' `config.json` or by the shapes of its tensors."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rvseg_jax.models.sam2.config import (
    HieraConfig,
    MaskDecoderConfig,
    MemoryAttentionConfig,
    MemoryEncoderConfig,
    Sam2Config,
    TrackingConfig,
)

_SIZES = (Sam2Config.sam2_1_tiny, Sam2Config.sam2_1_small, Sam2Config.sam2_1_base_plus, Sam2Config.sam2_1_large)

# transformers' name -> ours, for fields whose values are the same.
_TRUNK = {
    "global_attention_blocks": "global_att_blocks",
    "blocks_per_stage": "stages",
    "window_size_per_stage": "window_spec",
    "window_positional_embedding_background_size": "window_pos_embed_bkg_spatial_size",
    "num_query_pool_stages": "q_pool",
    "query_stride": "q_stride",
    "mlp_ratio": "mlp_ratio",
    "layer_norm_eps": "norm_eps",
}
_DECODER = {
    "num_hidden_layers": "transformer_depth",
    "num_attention_heads": "transformer_heads",
    "mlp_dim": "transformer_mlp",
    "iou_head_hidden_dim": "iou_head_hidden",
} | {
    name: name
    for name in (
        *("attention_downsample_rate", "num_multimask_outputs", "iou_head_depth"),
        *("dynamic_multimask_via_stability", "dynamic_multimask_stability_delta", "dynamic_multimask_stability_thresh"),
    )
}
_MEMORY_ATTENTION = {
    "memory_attention_num_layers": "num_layers",
    "memory_attention_num_attention_heads": "num_heads",
    "memory_attention_feed_forward_hidden_size": "dim_feedforward",
    "memory_attention_feed_forward_hidden_act": "activation",
}
_MEMORY_ENCODER = {
    "memory_encoder_output_channels": "mem_dim",
    "memory_fuser_num_layers": "fuser_layers",
    "memory_fuser_kernel_size": "fuser_kernel",
} | {f"mask_downsampler_{name}": f"downsampler_{name}" for name in ("stride", "padding", "total_stride")}
_MEMORY_ENCODER["mask_downsampler_kernel_size"] = "downsampler_kernel"
_TRACKING = {
    "max_object_pointers_in_encoder": "max_obj_ptrs_in_encoder",
    "max_cond_frame_num": "max_cond_frames_in_attn",
} | {
    name: name
    for name in (
        *("sigmoid_scale_for_mem_enc", "sigmoid_bias_for_mem_enc", "multimask_output_in_sam"),
        *("multimask_min_pt_num", "multimask_max_pt_num", "multimask_output_for_tracking"),
    )
}
# What these must be, if they are there: other values make another network.
_FIXED = {
    "hidden_act": "gelu",
    "num_channels": 3,
    "num_point_embeddings": 4,
    "fpn_kernel_size": 1,
    "fpn_stride": 1,
    "fpn_padding": 0,
    "num_feature_levels": 3,
    "memory_attention_downsample_rate": 1,
    "mask_downsampler_hidden_act": "gelu",
    "memory_fuser_hidden_act": "gelu",
}


def from_transformers(values: Mapping[str, Any]) -> Sam2Config:
    """The config of a `config.json` of `Sam2Model` or `Sam2VideoModel`; what it leaves out is SAM 2.1 tiny's.

    Raises:
      ValueError: for a network that is not built here.
    """
    vision = values.get("vision_config") or {}
    trunk, decoder = vision.get("backbone_config") or {}, values.get("mask_decoder_config") or {}
    prompts = values.get("prompt_encoder_config") or {}
    for section in (values, vision, trunk, decoder, prompts):
        for name, wanted in _FIXED.items():
            if section.get(name, wanted) != wanted:
                raise ValueError(f"{name} is {section[name]!r}: only {wanted!r} is here")
    extent = trunk.get("image_size", values.get("image_size", Sam2Config.image_size))
    rope = values.get("rope_parameters") or {}
    timed = values.get("enable_temporal_pos_encoding_for_object_pointers", True)
    tracking = TrackingConfig(**_named(values, _TRACKING))
    config = Sam2Config(
        image_size=max(extent) if isinstance(extent, list | tuple) else extent,
        d_model=vision.get("fpn_hidden_size", Sam2Config.d_model),
        hiera=_trunk(trunk),
        fpn_top_down_levels=tuple(vision.get("fpn_top_down_levels") or (0, 1, 2, 3)),
        mask_in_chans=prompts.get("mask_input_channels", Sam2Config.mask_in_chans),
        mask_decoder=MaskDecoderConfig(**_named(decoder, _DECODER)),
        memory_attention=MemoryAttentionConfig(
            **_named(values, _MEMORY_ATTENTION), rope_theta=rope.get("rope_theta", MemoryAttentionConfig.rope_theta)
        ),
        memory_encoder=MemoryEncoderConfig(**_named(values, _MEMORY_ENCODER)),
        num_maskmem=values.get("num_maskmem", Sam2Config.num_maskmem),
        no_obj_embed_spatial=values.get("enable_occlusion_spatial_embedding", True),
        tracking=tracking,
    )
    return config if timed else replace(config.as_sam2_0(), no_obj_embed_spatial=config.no_obj_embed_spatial)


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Sam2Config:
    """The published model that has these tensors, or the nearest one; in whichever layout the keys are.

    Sizes differ in the width and the number of blocks of the trunk, 2.0 and 2.1 in two parts of the memory half.
    """
    joined = "\n".join(shapes)
    width = next((shape[0] for key, shape in shapes.items() if re.search(r"patch_embed\.proj\w*\.bias$", key)), 0)
    blocks = len(set(re.findall(r"(?:trunk|backbone)\.blocks\.(\d+)\.", joined)))
    presets = [size() for size in _SIZES]
    config = min(presets, key=lambda one: (abs(one.hiera.embed_dim - width), abs(sum(one.hiera.stages) - blocks)))
    if not re.search(r"^memory_encoder\.", joined, re.MULTILINE):
        return config.image_only()
    newer = re.search(r"^(no_obj_embed_spatial|occlusion_spatial_embedding_parameter)$", joined, re.MULTILINE)
    return config if newer else config.as_sam2_0()


def _trunk(values: Mapping[str, Any]) -> HieraConfig:
    named = _named(values, _TRUNK)
    for name in ("patch_kernel", "patch_stride", "patch_padding"):
        size = values.get(name if name != "patch_kernel" else "patch_kernel_size")
        if size is not None:
            if len(set(size)) != 1:
                raise ValueError(f"{name} {size} must be square")
            named[name] = size[0]
    widths, heads = values.get("embed_dim_per_stage"), values.get("num_attention_heads_per_stage")
    if widths:
        named["embed_dim"] = widths[0]
    if heads:
        named["num_heads"] = heads[0]
    config = HieraConfig(**named)
    for name, given, made in (("embed_dim", widths, config.widths), ("num_attention_heads", heads, config.heads)):
        if given and tuple(given) != made:
            raise ValueError(f"{name}_per_stage is {given}: here it doubles from stage to stage")
    return config


def _named(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    found = {ours: values[theirs] for theirs, ours in names.items() if theirs in values}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
