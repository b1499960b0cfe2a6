"""SAM 2 and 2.1, keys as in the original checkpoints: `{"model": state dict}` in a `.pt` file."""

from rvseg_jax.convert.rules import Rule, Table, conv, deconv, linear, reshape, transpose
from rvseg_jax.convert.tables.layer_rules import norm, weights
from rvseg_jax.models.sam2.config import Sam2Config

_ATTENTIONS = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
FOURIER = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def table(cfg: Sam2Config) -> Table:
    """Rules of the image half, and of the memory half where the model has it."""
    return Table(rules(cfg))


def rules(cfg: Sam2Config) -> list[Rule]:
    """The rules of `table`, each of one torch key."""
    made = [*_trunk(cfg), *_prompt_encoder(cfg), *_mask_decoder(cfg), _vector("no_mem_embed", "no_mem_embed", axes=3)]
    for level, width in enumerate(reversed(cfg.hiera.widths)):
        made += _pointwise(f"image_encoder.neck.convs.{level}.conv", f"image_encoder/neck/convs/{level}", width)
    if cfg.memory:
        made += [*_memory_attention(cfg), *_memory_encoder(cfg), *_memory_vectors(cfg), *_object_pointers(cfg)]
    return made


def _trunk(cfg: Sam2Config) -> list[Rule]:
    source, target = "image_encoder.trunk", "image_encoder/trunk"
    block, path = f"{source}.blocks.{{i}}", f"{target}/blocks/{{i}}"
    made = weights(f"{source}.patch_embed.proj", f"{target}/patch_embed", conv())
    windows = (cfg.hiera.window_spec[0],) * 2
    for name, grid in (("pos_embed", cfg.hiera.window_pos_embed_bkg_spatial_size), ("pos_embed_window", windows)):
        last = (reshape((1, -1, *grid), (-1, *grid)), transpose(1, 2, 0))
        made.append(Rule(f"{source}.{name}", f"{target}/{name}", *last))
    for name in ("norm1", "norm2"):
        made += norm(f"{block}.{name}", f"{path}/{name}")
    for name in ("attn.qkv", "attn.proj", "proj"):
        made += weights(f"{block}.{name}", f"{path}/{name.replace('.', '/')}", linear())
    return made + _mlp(f"{block}.mlp", f"{path}/mlp")


def _prompt_encoder(cfg: Sam2Config) -> list[Rule]:
    source, target = "sam_prompt_encoder", "sam_prompt_encoder"
    masks, path = f"{source}.mask_downscaling", f"{target}/mask_downscaling"
    return [
        Rule(FOURIER, FOURIER.replace(".", "/")),
        _vector(f"{source}.point_embeddings.{{i}}.weight", f"{target}/point_embeddings"),
        _vector(f"{source}.not_a_point_embed.weight", f"{target}/not_a_point_embed"),
        _vector(f"{source}.no_mask_embed.weight", f"{target}/no_mask_embed"),
        *weights(f"{masks}.0", f"{path}/conv1", conv()),
        *norm(f"{masks}.1", f"{path}/norm1"),
        *weights(f"{masks}.3", f"{path}/conv2", conv()),
        *norm(f"{masks}.4", f"{path}/norm2"),
        *_pointwise(f"{masks}.6", f"{path}/conv3", cfg.mask_in_chans),
    ]


def _mask_decoder(cfg: Sam2Config) -> list[Rule]:
    source, target, options = "sam_mask_decoder", "sam_mask_decoder", cfg.mask_decoder
    layer, path = f"{source}.transformer.layers.{{i}}", f"{target}/transformer/layers/{{i}}"
    final, end = f"{source}.transformer", f"{target}/transformer"
    made = [Rule(f"{source}.{name}.weight", f"{target}/{name}") for name in ("iou_token", "mask_tokens")]
    for name in _ATTENTIONS:
        made += _attention(f"{layer}.{name}", f"{path}/{name}")
    for index in range(1, 5):
        made += norm(f"{layer}.norm{index}", f"{path}/norm{index}")
    made += _mlp(f"{layer}.mlp", f"{path}/mlp")
    made += _attention(f"{final}.final_attn_token_to_image", f"{end}/final_attn_token_to_image")
    made += norm(f"{final}.norm_final_attn", f"{end}/norm_final_attn")
    upscaling = f"{source}.output_upscaling", f"{target}/output_upscaling"
    made += weights(f"{upscaling[0]}.0", f"{upscaling[1]}/conv1", deconv())
    made += norm(f"{upscaling[0]}.1", f"{upscaling[1]}/norm")
    made += weights(f"{upscaling[0]}.3", f"{upscaling[1]}/conv2", deconv())
    mlps = "output_hypernetworks_mlps"
    made += _perceptron(f"{source}.{mlps}.{{i}}", f"{target}/{mlps}", 3)
    head = "iou_prediction_head"
    made += _perceptron(f"{source}.{head}", f"{target}/{head}", options.iou_head_depth)
    if options.use_high_res_features:
        for name in ("conv_s0", "conv_s1"):
            made += _pointwise(f"{source}.{name}", f"{target}/{name}", cfg.d_model)
    if options.pred_obj_scores:
        head = "pred_obj_score_head"
        made.append(Rule(f"{source}.obj_score_token.weight", f"{target}/obj_score_token"))
        if options.pred_obj_scores_mlp:
            made += _perceptron(f"{source}.{head}", f"{target}/{head}", 3)
        else:
            made += weights(f"{source}.{head}", f"{target}/{head}", linear())
    return made


def _memory_attention(cfg: Sam2Config) -> list[Rule]:
    layer, path = "memory_attention.layers.{i}", "memory_attention/layers"
    made = [
        rule for name in ("self_attn", "cross_attn_image") for rule in _attention(f"{layer}.{name}", f"{path}/{name}")
    ]
    for name in ("linear1", "linear2"):
        made += weights(f"{layer}.{name}", f"{path}/{name}", linear())
    for index in range(1, 4):
        made += norm(f"{layer}.norm{index}", f"{path}/norm{index}")
    return made + norm("memory_attention.norm", "memory_attention/norm")


def _memory_encoder(cfg: Sam2Config) -> list[Rule]:
    downsampler, path = "memory_encoder.mask_downsampler", "memory_encoder/mask_downsampler"
    steps = cfg.memory_encoder.downsampler_steps
    made = weights(f"{downsampler}.encoder.{3 * steps}", f"{path}/out", conv())
    for step in range(steps):  # upstream's list holds convolution, norm and activation in turn
        made += weights(f"{downsampler}.encoder.{3 * step}", f"{path}/convs/{step}", conv())
        made += norm(f"{downsampler}.encoder.{3 * step + 1}", f"{path}/norms/{step}")
    made += weights("memory_encoder.pix_feat_proj", "memory_encoder/pix_feat_proj", conv())
    if cfg.mem_dim != cfg.d_model:
        made += weights("memory_encoder.out_proj", "memory_encoder/out_proj", conv())
    block, path = "memory_encoder.fuser.layers.{i}", "memory_encoder/fuser/layers"
    made += weights(f"{block}.dwconv", f"{path}/dwconv", conv())
    made += norm(f"{block}.norm", f"{path}/norm")
    for name in ("pwconv1", "pwconv2"):
        made += weights(f"{block}.{name}", f"{path}/{name}", linear())
    return [*made, Rule(f"{block}.gamma", f"{path}/gamma")] if cfg.memory_encoder.fuser_layer_scale else made


def _memory_vectors(cfg: Sam2Config) -> list[Rule]:
    squeeze = reshape((cfg.num_maskmem, 1, 1, cfg.mem_dim), (cfg.num_maskmem, cfg.mem_dim))
    made = [Rule("maskmem_tpos_enc", "maskmem_tpos_enc", squeeze), _vector("no_mem_pos_enc", "no_mem_pos_enc", axes=3)]
    if cfg.no_obj_embed_spatial:
        made.append(_vector("no_obj_embed_spatial", "no_obj_embed_spatial"))
    return made


def _object_pointers(cfg: Sam2Config) -> list[Rule]:
    settings = cfg.tracking
    made: list[Rule] = []
    if settings.proj_tpos_enc_in_obj_ptrs:
        made += weights("obj_ptr_tpos_proj", "obj_ptr_tpos_proj", linear())
    if not settings.use_obj_ptrs_in_encoder:
        return made
    made += weights("mask_downsample", "mask_downsample", conv())
    if cfg.mask_decoder.pred_obj_scores:
        made.append(_vector("no_obj_ptr", "no_obj_ptr"))
    if settings.use_mlp_for_obj_ptr_proj:
        return made + _perceptron("obj_ptr_proj", "obj_ptr_proj", 3)
    return made + weights("obj_ptr_proj", "obj_ptr_proj", linear())


def _attention(source: str, target: str) -> list[Rule]:
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    return [rule for name in names for rule in weights(f"{source}.{name}", f"{target}/{name}", linear())]


def _mlp(source: str, target: str) -> list[Rule]:
    up = weights(f"{source}.layers.0", f"{target}/up", linear())
    return up + weights(f"{source}.layers.1", f"{target}/down", linear())


def _perceptron(source: str, target: str, depth: int) -> list[Rule]:
    names = [(f"{source}.layers.{index}", f"{target}/layers/{index}") for index in range(depth)]
    return [rule for key, path in names for rule in weights(key, path, linear())]


def _pointwise(source: str, target: str, inputs: int) -> list[Rule]:
    """A convolution with a window of 1, which is a linear layer here."""
    return weights(source, target, reshape((-1, inputs, 1, 1), (-1, inputs)), linear())


def _vector(source: str, target: str, *, axes: int = 2) -> Rule:
    """A vector that torch keeps with leading axes of length 1."""
    return Rule(source, target, reshape((*(1,) * (axes - 1), -1), (-1,)))
