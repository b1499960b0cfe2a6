"""SAM 2 and 2.1, keys as in transformers' `Sam2VideoModel`, and in `Sam2Model` for the image half alone.

The tensors are those of the original under other names. The four embeddings of point labels are one tensor, and the
Fourier frequencies of points stand there twice.
"""

import re

from rvseg_jax.convert.rules import Alias, Rule, Table
from rvseg_jax.convert.tables import sam2
from rvseg_jax.models.sam2.config import Sam2Config

# Original name -> name in transformers, one after the other; layers of perceptrons follow in `_renamed`.
_RENAMED = (
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"patch_embed\.proj", "patch_embed.projection"),
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv", r"vision_encoder.neck.convs.\1"),
    (re.escape(sam2.FOURIER), "shared_image_embedding.positional_embedding"),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"mask_downscaling\.0", "mask_embed.conv1"),
    (r"mask_downscaling\.1", "mask_embed.layer_norm1"),
    (r"mask_downscaling\.3", "mask_embed.conv2"),
    (r"mask_downscaling\.4", "mask_embed.layer_norm2"),
    (r"mask_downscaling\.6", "mask_embed.conv3"),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"output_upscaling\.0", "upscale_conv1"),
    (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"output_upscaling\.3", "upscale_conv2"),
    (r"\.norm(\d|_final_attn|)\.", r".layer_norm\1."),
    (r"^memory_encoder\.out_proj", "memory_encoder.projection"),
    (r"\.out_proj\.", ".o_proj."),
    (r"pix_feat_proj", "feature_projection"),
    (r"\.fuser\.", ".memory_fuser."),
    (r"dwconv", "depthwise_conv"),
    (r"pwconv", "pointwise_conv"),
    (r"\.gamma$", ".scale"),
    (r"^maskmem_tpos_enc", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed", "no_memory_embedding"),
    (r"^no_mem_pos_enc", "no_memory_positional_encoding"),
    (r"^no_obj_ptr", "no_object_pointer"),
    (r"^no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"),
    (r"^obj_ptr_tpos_proj", "temporal_positional_encoding_projection_layer"),
    (r"^obj_ptr_proj", "object_pointer_proj"),
)


def table(cfg: Sam2Config) -> Table:
    """The rules of the original layout under transformers' names."""
    rules = [rule for rule in sam2.rules(cfg) if "point_embeddings" not in rule.sources[0]]
    fourier = "positional_embedding"
    return Table(
        [
            *(Rule(_renamed(cfg, rule.sources[0]), rule.targets, *rule.operations) for rule in rules),
            Rule("prompt_encoder.point_embed.weight", "sam_prompt_encoder/point_embeddings"),
            Alias(f"prompt_encoder.shared_embedding.{fourier}", f"shared_image_embedding.{fourier}"),
        ]
    )


def _renamed(cfg: Sam2Config, key: str) -> str:
    """The name in transformers of an original key, or of a pattern of keys."""
    for pattern, name in _RENAMED:
        key = re.sub(pattern, name, key)
    steps = cfg.memory_encoder.downsampler_steps

    def downsampler(found: re.Match[str]) -> str:
        step, kind = divmod(int(found[1]), 3)
        return "final_conv" if step == steps else f"layers.{step}.{('conv', 'layer_norm')[kind]}"

    def layer(found: re.Match[str]) -> str:
        index, last = int(found[2]), {"mlp": 1, "iou_prediction_head": cfg.mask_decoder.iou_head_depth - 1}
        if index == last.get(found[1], 2):
            return f"{found[1]}.proj_out"
        return f"{found[1]}.layers.{index - 1}" if index else f"{found[1]}.proj_in"

    key = re.sub(r"encoder\.(\d+)", downsampler, key) if "mask_downsampler" in key else key
    return re.sub(r"(mlp|mlps\.\{i\}|_head|iou_prediction_head|object_pointer_proj)\.layers\.(\d+)", layer, key)
