"""SAM 2: image encoder, prompt encoder and mask decoder, and the parts that follow objects through a video.

Source: sam2/modeling/sam2_base.py. An image is encoded once; any number of objects are decoded from its features.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import jax
from flax import nnx

from rvseg_jax.layers.conv import Conv
from rvseg_jax.layers.linear import Linear
from rvseg_jax.models.sam2 import memory_attention, memory_encoder
from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.models.sam2.mask_decoder import MaskDecoder, MaskOutput, Perceptron
from rvseg_jax.models.sam2.memory_attention import MemoryAttention
from rvseg_jax.models.sam2.memory_encoder import MemoryEncoder
from rvseg_jax.models.sam2.neck import ImageEncoder
from rvseg_jax.models.sam2.prompt_encoder import PromptEncoder, Prompts
from rvseg_jax.parallel import Table, prefixed


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageFeatures:
    """What is computed once an image, for all objects and prompts.

    Shapes: embedding [B, h, w, D], high_res [B, 4 h, 4 w, D / 8] and [B, 2 h, 2 w, D / 4].

    Attributes:
      embedding: the coarsest level of the pyramid, before anything of a memory is added.
      high_res: the two finest levels as the mask decoder adds them, or None if it does not.
    """

    embedding: jax.Array
    high_res: tuple[jax.Array, jax.Array] | None

    def image(self, index: int) -> "ImageFeatures":
        """The features of one image of the batch, which still has an axis of length 1."""
        return jax.tree.map(lambda x: x[index : index + 1], self)


class Sam2(nnx.Module):
    """The whole model; `cfg.memory` says whether it has the parts for videos."""

    def __init__(self, cfg: Sam2Config, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.truncated_normal(0.02)
        self.cfg = cfg
        self.image_encoder = ImageEncoder(cfg, rngs=rngs)
        self.sam_prompt_encoder = PromptEncoder(cfg, rngs=rngs)
        self.sam_mask_decoder = MaskDecoder(cfg, rngs=rngs)
        self.no_mem_embed = nnx.Param(init(rngs.params(), (cfg.d_model,), cfg.precision.param_dtype))
        if cfg.memory:
            self._add_memory(cfg, rngs)

    def _add_memory(self, cfg: Sam2Config, rngs: nnx.Rngs) -> None:
        """The parts that only videos need."""
        settings = cfg.tracking
        if not settings.directly_add_no_mem_embed or not settings.use_mask_input_as_output_without_sam:
            raise ValueError(
                "directly_add_no_mem_embed and use_mask_input_as_output_without_sam must be true, as in all of "
                "upstream's models"
            )

        def embedding(*shape: int) -> nnx.Param:
            init = jax.nn.initializers.truncated_normal(0.02)
            return nnx.Param(init(rngs.params(), shape, cfg.precision.param_dtype))

        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        pointers, width = settings.use_obj_ptrs_in_encoder, cfg.d_model
        self.memory_attention = MemoryAttention(cfg, rngs=rngs)
        self.memory_encoder = MemoryEncoder(cfg, rngs=rngs)
        self.maskmem_tpos_enc = embedding(cfg.num_maskmem, cfg.mem_dim)
        # Not used where `no_mem_embed` is added directly, but part of every checkpoint.
        self.no_mem_pos_enc = embedding(width)
        self.no_obj_ptr = embedding(width) if pointers and cfg.mask_decoder.pred_obj_scores else None
        self.no_obj_embed_spatial = embedding(cfg.mem_dim) if cfg.no_obj_embed_spatial else None
        self.mask_downsample = Conv(1, 1, (4, 4), strides=(4, 4), **options) if pointers else None
        self.obj_ptr_proj = _pointer_projection(cfg, options) if pointers else None
        projected = settings.proj_tpos_enc_in_obj_ptrs
        self.obj_ptr_tpos_proj = Linear(width, cfg.mem_dim, **options) if projected else None

    @overload
    def encode_image(self, images: jax.Array, *, taps: Literal[False] = False) -> ImageFeatures: ...

    @overload
    def encode_image(
        self, images: jax.Array, *, taps: Literal[True]
    ) -> tuple[ImageFeatures, dict[str, list[jax.Array]]]: ...

    def encode_image(
        self, images: jax.Array, *, taps: bool = False
    ) -> ImageFeatures | tuple[ImageFeatures, dict[str, list[jax.Array]]]:
        """Features of images.

        Shapes: images [B, S, S, 3], normalised by ImageNet's mean and deviation.

        Args:
          taps: return also {"hiera_stage": stages of the trunk, "fpn": levels of the pyramid}, finest first.

        Raises:
          ValueError: if the images are not squares of the config's size.
        """
        size = self.cfg.image_size
        if images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ValueError(f"images {images.shape} must be [B, {size}, {size}, 3]: resize them first")
        levels, stages = self.image_encoder(images)
        features = ImageFeatures(levels[-1], self.sam_mask_decoder.high_res_features(levels))
        return (features, {"hiera_stage": stages, "fpn": levels}) if taps else features

    def decode(
        self,
        features: ImageFeatures,
        prompts: Prompts,
        *,
        multimask_output: bool,
        ragged: bool = False,
        train: bool = False,
    ) -> MaskOutput:
        """Masks of prompted objects, from features that are conditioned already.

        One image serves all objects, or each object has one.

        Args:
          ragged: some points have the label -2, which says that an object has no such point.
          multimask_output, train: as for `MaskDecoder`.
        """
        sparse, dense = self.sam_prompt_encoder(prompts)
        return self.sam_mask_decoder(
            features.embedding,
            self.sam_prompt_encoder.dense_positions(),
            sparse,
            dense,
            features.high_res,
            multimask_output=multimask_output,
            train=train,
            valid=self.sam_prompt_encoder.valid_tokens(prompts) if ragged else None,
        )

    def without_memory(self, features: ImageFeatures) -> ImageFeatures:
        """The features of an image that nothing is remembered for: `no_mem_embed` is added."""
        embed = self.cfg.precision.compute(self.no_mem_embed[...])
        return replace(features, embedding=features.embedding + embed)

    def segment_image(
        self,
        features: ImageFeatures,
        prompts: Prompts,
        *,
        multimask_output: bool,
        ragged: bool = False,
        train: bool = False,
    ) -> MaskOutput:
        """Masks of prompted objects in a single image; `SAM2ImagePredictor._predict` without its resizing.

        Args:
          features: of one image, or of one image for each object.
          multimask_output, ragged, train: as for `decode`.
        """
        features = self.without_memory(features)
        return self.decode(features, prompts, multimask_output=multimask_output, ragged=ragged, train=train)


def _pointer_projection(cfg: Sam2Config, options: dict[str, Any]) -> Perceptron | Linear:
    width = cfg.d_model
    deep = cfg.tracking.use_mlp_for_obj_ptr_proj
    return Perceptron(width, width, width, 3, **options) if deep else Linear(width, width, **options)


# Logical axes of the parameters; the first pattern that is found in a path counts, and () keeps a leaf whole.
SHARDING: Table = (
    # Heads are not cut: three projections lie in one kernel.
    (r"^image_encoder/trunk/blocks/\d+/attn/qkv/kernel$", ("embed", None)),
    (r"^image_encoder/trunk/blocks/\d+/attn/proj/kernel$", (None, "embed")),
    (r"^image_encoder/trunk/blocks/\d+/proj/kernel$", ("embed", None)),
    (r"^image_encoder/trunk/blocks/\d+/mlp/up/kernel$", ("embed", "mlp")),
    (r"^image_encoder/trunk/blocks/\d+/mlp/down/kernel$", ("mlp", "embed")),
    (r"^image_encoder/neck/convs/\d+/kernel$", ("embed", None)),
    (r"^sam_mask_decoder/transformer/.*/[qkv]_proj/kernel$", ("embed", "heads")),
    (r"^sam_mask_decoder/transformer/.*/out_proj/kernel$", ("heads", "embed")),
    (r"^sam_mask_decoder/transformer/.*/mlp/up/kernel$", ("embed", "mlp")),
    (r"^sam_mask_decoder/transformer/.*/mlp/down/kernel$", ("mlp", "embed")),
    # All else of the two SAM heads is small.
    (r"^(sam_prompt_encoder|sam_mask_decoder)/", ()),
    (r"^image_encoder/trunk/(patch_embed|pos_embed)", ()),
    (r"/(scale|bias)$", ()),
    (r"^(no_mem_embed|no_mem_pos_enc|maskmem_tpos_enc|no_obj_ptr|no_obj_embed_spatial)$", ()),
    (r"^(mask_downsample|obj_ptr_proj|obj_ptr_tpos_proj)/", ()),
    *prefixed(memory_attention.SHARDING, "memory_attention"),
    *prefixed(memory_encoder.SHARDING, "memory_encoder"),
)
