"""Sizes and options of SAM 2 and 2.1, image half and memory half, under upstream's names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

from rvseg_jax.core.precision import PARITY, Precision


@dataclass(frozen=True)
class HieraConfig:
    """Sizes of the Hiera trunk, `sam2/modeling/backbones/hieradet.py`; the defaults are tiny's.

    Attributes:
      stages: blocks of each stage; the width grows by `dim_mul` and the heads by `head_mul` between stages.
      global_att_blocks: indices, over all stages, of the blocks that attend to the whole image.
      window_spec: side of the attention window of each stage, in cells of that stage.
      window_pos_embed_bkg_spatial_size: grid of the position embedding that is stretched over the image.
      q_pool: stages, from the second on, that begin with a pooling by `q_stride`.
      patch_kernel, patch_stride, patch_padding: of the convolution that cuts patches, in pixels.
    """

    embed_dim: int = 96
    num_heads: int = 1
    stages: tuple[int, ...] = (1, 2, 7, 2)
    global_att_blocks: tuple[int, ...] = (5, 7, 9)
    window_spec: tuple[int, ...] = (8, 4, 14, 7)
    window_pos_embed_bkg_spatial_size: tuple[int, int] = (7, 7)
    q_pool: int = 3
    q_stride: tuple[int, int] = (2, 2)
    dim_mul: float = 2.0
    head_mul: float = 2.0
    mlp_ratio: float = 4.0
    patch_kernel: int = 7
    patch_stride: int = 4
    patch_padding: int = 3
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if len(self.window_spec) != len(self.stages):
            raise ValueError(
                f"window_spec {self.window_spec} must name one window for each of {len(self.stages)} stages"
            )
        if not 0 <= self.q_pool < len(self.stages):
            raise ValueError(f"q_pool {self.q_pool} must be less than the number of stages, {len(self.stages)}")
        outside = [block for block in self.global_att_blocks if not 0 <= block < sum(self.stages)]
        if outside:
            raise ValueError(f"global_att_blocks names block {outside[0]}, but there are {sum(self.stages)} blocks")

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """Index of the last block of each stage."""
        return tuple(end - 1 for end in accumulate(self.stages))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage, finest first."""
        widths = [self.embed_dim]
        for _ in self.stages[1:]:
            widths.append(int(widths[-1] * self.dim_mul))
        return tuple(widths)

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each stage, finest first."""
        heads = [self.num_heads]
        for _ in self.stages[1:]:
            heads.append(int(heads[-1] * self.head_mul))
        return tuple(heads)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels to a cell along each side, for each stage."""
        strides = [self.patch_stride]
        for stage in range(1, len(self.stages)):
            strides.append(strides[-1] * (self.q_stride[0] if stage <= self.q_pool else 1))
        return tuple(strides)


@dataclass(frozen=True)
class MaskDecoderConfig:
    """Sizes and options of the mask decoder, `sam2/modeling/sam/{mask_decoder,transformer}.py`.

    Attributes:
      transformer_mlp: hidden width of the two-way transformer's feed-forward.
      attention_downsample_rate: factor by which the cross-attentions narrow the width inside.
      num_multimask_outputs: masks of an ambiguous prompt; one more token is for an unambiguous one.
      pred_obj_scores: whether the object is visible is predicted, in `pred_obj_scores_mlp` by three layers.
      use_multimask_token_for_obj_ptr: with several masks, the object pointer is the token of the best of them.
      dynamic_multimask_via_stability: a single mask that is not stable gives way to the best of the several; its
        stability is the overlap of the masks at thresholds +delta and -delta, at least `..._thresh`.
    """

    transformer_depth: int = 2
    transformer_heads: int = 8
    transformer_mlp: int = 2048
    attention_downsample_rate: int = 2
    iou_head_depth: int = 3
    iou_head_hidden: int = 256
    num_multimask_outputs: int = 3
    iou_prediction_use_sigmoid: bool = True
    pred_obj_scores: bool = True
    pred_obj_scores_mlp: bool = True
    use_high_res_features: bool = True
    use_multimask_token_for_obj_ptr: bool = True
    dynamic_multimask_via_stability: bool = False
    dynamic_multimask_stability_delta: float = 0.05
    dynamic_multimask_stability_thresh: float = 0.98

    @property
    def num_mask_tokens(self) -> int:
        """Mask tokens: one for a single mask, then those of the several."""
        return self.num_multimask_outputs + 1


@dataclass(frozen=True)
class MemoryAttentionConfig:
    """Sizes and options of the memory attention, `sam2/modeling/memory_attention.py`.

    Attributes:
      rope_theta: base of the rotary angles; keys of several memories repeat the angles if `rope_k_repeat`.
      pos_enc_at_input: a tenth of the position encoding is added to the features of the current frame.
      pos_enc_at_attn, pos_enc_at_cross_attn_queries, pos_enc_at_cross_attn_keys: where positions are added besides.
      dropout: share of the activations that is left out in training, in the feed-forward and of what each sublayer
        adds. (Upstream also leaves out attention weights.)
    """

    num_layers: int = 4
    num_heads: int = 1
    dim_feedforward: int = 2048
    activation: Literal["relu", "gelu"] = "relu"
    rope_theta: float = 10_000.0
    rope_k_repeat: bool = True
    pos_enc_at_input: bool = True
    pos_enc_at_attn: bool = False
    pos_enc_at_cross_attn_keys: bool = True
    pos_enc_at_cross_attn_queries: bool = False
    dropout: float = 0.0


@dataclass(frozen=True)
class MemoryEncoderConfig:
    """Sizes of the memory encoder, `sam2/modeling/memory_encoder.py`.

    Attributes:
      mem_dim: channels of a memory.
      downsampler_kernel, downsampler_stride, downsampler_padding, downsampler_total_stride: of the mask's way from
        pixels to cells; each convolution strides by `downsampler_stride` until the total is reached.
      fuser_layers, fuser_kernel, fuser_depthwise, fuser_layer_scale: of the ConvNeXt blocks that mix frame and mask.
    """

    mem_dim: int = 64
    downsampler_kernel: int = 3
    downsampler_stride: int = 2
    downsampler_padding: int = 1
    downsampler_total_stride: int = 16
    fuser_layers: int = 2
    fuser_kernel: int = 7
    fuser_depthwise: bool = True
    fuser_layer_scale: bool = True

    @property
    def downsampler_steps(self) -> int:
        """Strided convolutions of the mask's way."""
        return round(math.log(self.downsampler_total_stride, self.downsampler_stride))


@dataclass(frozen=True)
class TrackingConfig:
    """How objects are followed through a video; none of it has weights but where `Sam2Config` says so.

    The names are those of `sam2/modeling/sam2_base.py` and `sam2/sam2_video_predictor.py`.

    Attributes:
      sigmoid_scale_for_mem_enc, sigmoid_bias_for_mem_enc: map mask probabilities to the memory encoder's input.
      binarize_mask_from_pts_for_mem_enc: masks of clicked frames are made binary before.
      use_mask_input_as_output_without_sam: a mask that the user gives is the output on its frame.
      max_cond_frames_in_attn: prompted frames that are attended to, the nearest in time; -1 for all.
      directly_add_no_mem_embed: without memories, `no_mem_embed` is added instead of attending to it.
      multimask_output_in_sam: several masks are predicted when there are between `multimask_min_pt_num` and
        `multimask_max_pt_num` points (a box is two), and the best is taken; on tracked frames only with
        `multimask_output_for_tracking`.
      memory_temporal_stride_for_eval: frames between memories of tracked frames.
      non_overlap_masks_for_mem_enc: objects do not overlap in what is remembered.
      use_obj_ptrs_in_encoder: object pointers are attended to, at most `max_obj_ptrs_in_encoder`.
      add_tpos_enc_to_obj_ptrs: pointers carry their distance in time, with its sign if
        `use_signed_tpos_enc_to_obj_ptrs`, through `obj_ptr_tpos_proj` if `proj_tpos_enc_in_obj_ptrs`.
      only_obj_ptrs_in_the_past_for_eval: pointers of frames that come later are left out.
      fixed_no_obj_ptr: the pointer of an absent object is `no_obj_ptr` alone; otherwise that is added.
      soft_no_obj_ptr: the two are mixed by the probability that the object is there.
      memory_dtype: number format in which memories are kept; upstream keeps bfloat16 in a float32 run too.
      fill_hole_area: holes of at most so many cells of the low-resolution mask are filled; 0 for none.
      non_overlap_masks: objects do not overlap in the output.
      clear_non_cond_mem_around_input: a new prompt forgets the tracked frames near it.
      add_all_frames_to_correct_as_cond: a tracked frame that gets a prompt counts as prompted from then on.
    """

    sigmoid_scale_for_mem_enc: float = 20.0
    sigmoid_bias_for_mem_enc: float = -10.0
    binarize_mask_from_pts_for_mem_enc: bool = False
    use_mask_input_as_output_without_sam: bool = True
    max_cond_frames_in_attn: int = -1
    directly_add_no_mem_embed: bool = True
    multimask_output_in_sam: bool = True
    multimask_min_pt_num: int = 0
    multimask_max_pt_num: int = 1
    multimask_output_for_tracking: bool = True
    memory_temporal_stride_for_eval: int = 1
    non_overlap_masks_for_mem_enc: bool = False
    use_obj_ptrs_in_encoder: bool = True
    max_obj_ptrs_in_encoder: int = 16
    add_tpos_enc_to_obj_ptrs: bool = True
    proj_tpos_enc_in_obj_ptrs: bool = True
    use_signed_tpos_enc_to_obj_ptrs: bool = True
    only_obj_ptrs_in_the_past_for_eval: bool = True
    fixed_no_obj_ptr: bool = True
    soft_no_obj_ptr: bool = False
    use_mlp_for_obj_ptr_proj: bool = True
    memory_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    fill_hole_area: int = 0
    non_overlap_masks: bool = False
    clear_non_cond_mem_around_input: bool = False
    add_all_frames_to_correct_as_cond: bool = False


@dataclass(frozen=True)
class Sam2Config:
    """The whole model; the defaults are SAM 2.1 tiny.

    Attributes:
      image_size: side of the square that a frame is resized to, in pixels.
      d_model: width of features, prompts and the mask decoder.
      fpn_top_down_levels: levels, finest first, that the next coarser one is added into.
      fpn_interp_model: how a coarser level is enlarged for that, as torch's `interpolate` names it.
      scalp: coarsest levels that are dropped after the neck.
      position_encoding_temperature: base of the sine position encodings.
      mask_in_chans: channels of an input mask on its way into the prompt encoder.
      num_maskmem: memories of past frames that are attended to, the prompted frame's included.
      memory: whether there are the parts that only videos need; without them just images are segmented.
      no_obj_embed_spatial: an embedding is added to the memory of a frame where the object is absent (2.1).
    """

    image_size: int = 1024
    d_model: int = 256
    hiera: HieraConfig = HieraConfig()
    fpn_top_down_levels: tuple[int, ...] = (2, 3)
    fpn_interp_model: Literal["nearest", "bilinear"] = "nearest"
    scalp: int = 1
    position_encoding_temperature: float = 10_000.0
    mask_in_chans: int = 16
    mask_decoder: MaskDecoderConfig = MaskDecoderConfig()
    memory: bool = True
    memory_attention: MemoryAttentionConfig = MemoryAttentionConfig()
    memory_encoder: MemoryEncoderConfig = MemoryEncoderConfig()
    num_maskmem: int = 7
    no_obj_embed_spatial: bool = True
    tracking: TrackingConfig = TrackingConfig()
    precision: Precision = PARITY

    def __post_init__(self) -> None:
        if self.image_size % self.hiera.strides[-1]:
            raise ValueError(f"image_size {self.image_size} must be a multiple of {self.hiera.strides[-1]}")
        if not 0 <= self.scalp < len(self.hiera.stages):
            raise ValueError(f"scalp {self.scalp} leaves none of the {len(self.hiera.stages)} levels")
        if self.tracking.proj_tpos_enc_in_obj_ptrs and not self.tracking.add_tpos_enc_to_obj_ptrs:
            raise ValueError("proj_tpos_enc_in_obj_ptrs needs add_tpos_enc_to_obj_ptrs")

    @property
    def backbone_stride(self) -> int:
        """Pixels to a cell of the features that the mask decoder reads."""
        return self.hiera.strides[len(self.hiera.stages) - 1 - self.scalp]

    @property
    def image_embedding_size(self) -> int:
        """Side of those features, in cells."""
        return self.image_size // self.backbone_stride

    @property
    def low_res_size(self) -> int:
        """Side of a mask as it is predicted and as it is given back as a prompt, in cells."""
        return 4 * self.image_embedding_size

    @property
    def mem_dim(self) -> int:
        """Channels of a memory."""
        return self.memory_encoder.mem_dim

    def image_only(self) -> "Sam2Config":
        """This model without the parts that only videos need."""
        return replace(self, memory=False)

    def with_postprocessing(self) -> "Sam2Config":
        """This model with what upstream's `build_sam2*` switch on for use: fallback by stability and filled holes."""
        return replace(
            self,
            mask_decoder=replace(self.mask_decoder, dynamic_multimask_via_stability=True),
            tracking=replace(self.tracking, binarize_mask_from_pts_for_mem_enc=True, fill_hole_area=8),
        )

    @classmethod
    def sam2_1_tiny(cls, precision: Precision = PARITY) -> "Sam2Config":
        """SAM 2.1 hiera tiny: 38,962,498 parameters."""
        return cls(precision=precision)

    @classmethod
    def sam2_1_small(cls, precision: Precision = PARITY) -> "Sam2Config":
        """SAM 2.1 hiera small: 46,060,354 parameters."""
        return cls(hiera=HieraConfig(stages=(1, 2, 11, 2), global_att_blocks=(7, 10, 13)), precision=precision)

    @classmethod
    def sam2_1_base_plus(cls, precision: Precision = PARITY) -> "Sam2Config":
        """SAM 2.1 hiera base plus: 80,850,178 parameters."""
        hiera = HieraConfig(
            embed_dim=112,
            num_heads=2,
            stages=(2, 3, 16, 3),
            global_att_blocks=(12, 16, 20),
            window_pos_embed_bkg_spatial_size=(14, 14),
        )
        return cls(hiera=hiera, precision=precision)

    @classmethod
    def sam2_1_large(cls, precision: Precision = PARITY) -> "Sam2Config":
        """SAM 2.1 hiera large: 224,446,642 parameters."""
        hiera = HieraConfig(
            embed_dim=144,
            num_heads=2,
            stages=(2, 6, 36, 4),
            global_att_blocks=(23, 33, 43),
            window_spec=(8, 4, 16, 8),
        )
        return cls(hiera=hiera, precision=precision)

    @classmethod
    def sam2_tiny(cls, precision: Precision = PARITY) -> "Sam2Config":
        """SAM 2.0 hiera tiny: 38,945,986 parameters."""
        return cls.sam2_1_tiny(precision).as_sam2_0()

    @classmethod
    def sam2_small(cls, precision: Precision = PARITY) -> "Sam2Config":
        """SAM 2.0 hiera small: 46,043,842 parameters."""
        return cls.sam2_1_small(precision).as_sam2_0()

    @classmethod
    def sam2_base_plus(cls, precision: Precision = PARITY) -> "Sam2Config":
        """SAM 2.0 hiera base plus: 80,833,666 parameters."""
        return cls.sam2_1_base_plus(precision).as_sam2_0()

    @classmethod
    def sam2_large(cls, precision: Precision = PARITY) -> "Sam2Config":
        """SAM 2.0 hiera large: 224,430,130 parameters; RGA3's."""
        return cls.sam2_1_large(precision).as_sam2_0()

    def as_sam2_0(self) -> "Sam2Config":
        """This size as SAM 2.0: no spatial embedding of absence, pointers without their distance in time."""
        tracking = replace(
            self.tracking,
            add_tpos_enc_to_obj_ptrs=False,
            proj_tpos_enc_in_obj_ptrs=False,
            use_signed_tpos_enc_to_obj_ptrs=False,
        )
        return replace(self, no_obj_embed_spatial=False, tracking=tracking)

    @classmethod
    def from_upstream(cls, values: Mapping[str, Any]) -> "Sam2Config":
        """The config of transformers' `config.json`; raises `ValueError` for a network that is not built here."""
        from rvseg_jax.models.sam2 import upstream

        return upstream.from_transformers(values)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> "Sam2Config":
        """The published model with tensors of these keys and shapes, or the nearest."""
        from rvseg_jax.models.sam2 import upstream

        return upstream.from_shapes(shapes)

    @classmethod
    def tiny(cls, precision: Precision = PARITY) -> "Sam2Config":
        """A model for tests at 128 px; windows of the third stage do not divide it, so that padding shows."""
        return cls(
            image_size=128,
            d_model=32,
            hiera=HieraConfig(
                embed_dim=16,
                stages=(1, 2, 3, 2),
                global_att_blocks=(4,),
                window_spec=(8, 4, 6, 2),
            ),
            mask_decoder=MaskDecoderConfig(transformer_mlp=64, iou_head_hidden=24),
            memory_attention=MemoryAttentionConfig(num_layers=2, dim_feedforward=64),
            memory_encoder=MemoryEncoderConfig(mem_dim=16),
            precision=precision,
        )
