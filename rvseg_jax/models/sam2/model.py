"""SAM 2: image encoder, prompt encoder and mask decoder, and the parts that follow objects through a video.

Source: sam2/modeling/sam2_base.py. An image is encoded once; any number of objects are decoded from its features.
"""

from dataclasses import dataclass, replace
from typing import Literal, overload

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.models.sam2.mask_decoder import MaskDecoder, MaskOutput, best_of
from rvseg_jax.models.sam2.neck import ImageEncoder
from rvseg_jax.models.sam2.prompt_encoder import PADDING, PromptEncoder, Prompts
from rvseg_jax.ops.resize import resize

# Logit of every pixel of an object that is not there.
NO_OBJ_SCORE = -1024.0


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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ObjectMasks:
    """Masks of each object with the best of its alternatives.

    Shapes: masks [B, M, H, W], iou [B, M], best [B, H, W], token [B, D], object_score [B, 1]; all but token float32.

    Attributes:
      masks: logits at a quarter of the image size, -1024 everywhere where the object is not there.
      best: the mask with the highest predicted IoU.
      token: the mask token that an object pointer is made of.
      object_score: logit that the object is in the image.
    """

    masks: jax.Array
    iou: jax.Array
    best: jax.Array
    token: jax.Array
    object_score: jax.Array


class Sam2(nnx.Module):
    """The whole model; `cfg.memory` says whether it has the parts for videos."""

    def __init__(self, cfg: Sam2Config, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.truncated_normal(0.02)
        self.cfg = cfg
        self.image_encoder = ImageEncoder(cfg, rngs=rngs)
        self.sam_prompt_encoder = PromptEncoder(cfg, rngs=rngs)
        self.sam_mask_decoder = MaskDecoder(cfg, rngs=rngs)
        self.no_mem_embed = nnx.Param(init(rngs.params(), (cfg.d_model,), cfg.precision.param_dtype))

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
        self, features: ImageFeatures, prompts: Prompts, *, multimask_output: bool, train: bool = False
    ) -> MaskOutput:
        """Masks of prompted objects, from features that are conditioned already.

        One image serves all objects, or each object has one.

        Args:
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
        )

    def without_memory(self, features: ImageFeatures) -> ImageFeatures:
        """The features of an image that nothing is remembered for: `no_mem_embed` is added."""
        embed = self.cfg.precision.compute(self.no_mem_embed[...])
        return replace(features, embedding=features.embedding + embed)

    def segment_image(
        self, features: ImageFeatures, prompts: Prompts, *, multimask_output: bool, train: bool = False
    ) -> MaskOutput:
        """Masks of prompted objects in a single image; `SAM2ImagePredictor._predict` without its resizing.

        Args:
          features: of one image, or of one image for each object.
          multimask_output, train: as for `MaskDecoder`.
        """
        return self.decode(self.without_memory(features), prompts, multimask_output=multimask_output, train=train)

    def forward_sam_heads(
        self,
        features: ImageFeatures,
        prompts: Prompts,
        *,
        multimask_output: bool,
        gate: bool = True,
        train: bool = False,
    ) -> ObjectMasks:
        """Masks of objects in a frame of a video, from features that are conditioned already.

        Differs from `decode` in that objects without points get one of padding, masks are resized to what the prompt
        encoder takes, absent objects get no mask, and the best of several masks is chosen.

        Args:
          prompts: its masks may have any size.
          gate: fill the masks of objects whose score is not positive with -1024; RGA3 does without.
          multimask_output, train: as for `MaskDecoder`.
        """
        count = max(prompts.count, features.embedding.shape[0])
        if prompts.points is None:
            nothing = jnp.full((count, 1), PADDING, jnp.int32)
            prompts = replace(prompts, points=jnp.zeros((count, 1, 2)), labels=nothing)
        side = self.cfg.low_res_size
        if prompts.masks is not None and prompts.masks.shape[1:] != (side, side):
            masks = prompts.masks.astype(jnp.float32)[..., None]
            prompts = replace(prompts, masks=resize(masks, (side, side), mode="bilinear", antialias=True)[..., 0])
        out = self.decode(features, prompts, multimask_output=multimask_output, train=train)
        masks = out.masks
        if gate and self.cfg.mask_decoder.pred_obj_scores:
            masks = jnp.where(out.object_score[..., None, None] > 0, masks, NO_OBJ_SCORE)
        best, _ = best_of(masks, out.iou)
        chosen = jnp.argmax(out.iou, axis=-1) if out.tokens.shape[1] > 1 else jnp.zeros(len(masks), jnp.int32)
        token = jnp.take_along_axis(out.tokens, chosen[:, None, None], axis=1)[:, 0]
        return ObjectMasks(masks, out.iou, best[:, 0], token, out.object_score)


# Logical axes of the parameters; the first pattern that is found in a path counts, and () keeps a leaf whole.
SHARDING: tuple[tuple[str, tuple[str | None, ...]], ...] = (
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
    (r"^no_mem_embed$", ()),
)
