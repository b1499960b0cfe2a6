"""InternVL and MLLMSeg against golden cases, transformers and torch, and what holds for any weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.convert import from_torch, registry, to_torch
from rvseg_jax.convert.engine import plan_for
from rvseg_jax.core.precision import BFLOAT16, PARITY
from rvseg_jax.models.internvl.config import InternVLConfig
from rvseg_jax.models.mllmseg.config import MaskDecoderConfig
from rvseg_jax.models.mllmseg.dysample import DySample, initial_offsets
from rvseg_jax.models.mllmseg.mask_decoder import AttentionLayer, MaskDecoder
from rvseg_jax.ops.resize import resize
from rvseg_jax.parity import golden as golden_cases
from rvseg_jax.parity import kinds
from rvseg_jax.parity.compare import compare
from rvseg_jax.parity.weights_rule import rule_weights
from rvseg_jax.systems.mllmseg.losses import MaskLossConfig, mask_losses, mask_terms, resized

DECODER = MaskDecoderConfig(width=32, text_width=24, patch_size=4, num_heads=4, feedforward=48)


def relative(ours, theirs) -> float:
    theirs = np.asarray(theirs, np.float32)
    assert np.shape(ours) == theirs.shape
    return float(np.abs(np.asarray(ours, np.float32) - theirs).max() / np.abs(theirs).max())


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", ["dysample", "internlm2", "model_inference", "model_train", "res_decoder"])
def test_golden_case_passes(golden, name):
    case = golden_cases.read(golden / "mllmseg" / f"{name}.json")
    report = compare(case, kinds.run(case))
    assert report.passed, report


@pytest.mark.parametrize("family", ["qwen2", "internlm2"])
def test_internvl_equals_transformers(torch, family):
    """An image of another size than the table of positions was made for, and a prompt that ends in padding."""
    transformers = pytest.importorskip("transformers")
    cfg = InternVLConfig.tiny()
    language = dataclasses.replace(cfg.language, attention_bias=family == "qwen2")
    cfg = dataclasses.replace(cfg, family=family, language=language)
    peer = transformers.InternVLForConditionalGeneration(_peer_config(transformers, cfg)).eval()
    plan, _ = plan_for(registry.part("internvl"), cfg, "transformers")
    weights = rule_weights({key: list(shape) for key, shape in plan.key_shapes.items()}, 0, [])
    missing = peer.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()}, strict=False)
    assert not missing.unexpected_keys and not missing.missing_keys
    model = from_torch("internvl", weights, cfg)
    assert to_torch("internvl", model, layout="transformers").keys() == weights.keys()
    for side in (56, 84):
        count = (side // 28) ** 2
        ids = np.array([[5, *[119] * count, 7, 8, 9], [6, *[119] * count, 3, 1, 1]])
        valid = np.array([[True] * (count + 4), [True] * (count + 2) + [False] * 2])
        images = normal(2, side, side, 3)
        run = jax.jit(lambda model, images, ids, valid: _logits(model, images, ids, valid))
        ours = run(model, images, ids, valid)
        with torch.no_grad():
            theirs = peer(
                input_ids=torch.from_numpy(ids),
                pixel_values=torch.from_numpy(np.moveaxis(images, -1, 1).copy()),
                attention_mask=torch.from_numpy(valid).long(),
            ).logits.numpy()
        assert relative(np.where(valid[..., None], ours, 0), np.where(valid[..., None], theirs, 0)) < 1e-5


def _logits(model, images, ids, valid):
    tokens = model.see(images)[1]
    hidden, _ = model.language(model.embed(ids, tokens, ids == 119), valid=valid)
    return model.language.logits(hidden)


def _peer_config(transformers, cfg):
    vision, language = cfg.vision, cfg.language
    kind = transformers.Qwen2Config if cfg.family == "qwen2" else transformers.LlamaConfig
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    text = kind(
        **{name: getattr(language, name) for name in (*sizes, "num_key_value_heads", "max_position_embeddings")},
        rms_norm_eps=language.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": language.rope_theta},
        tie_word_embeddings=False,
    )
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(
            hidden_size=vision.hidden_size,
            num_hidden_layers=vision.num_hidden_layers,
            num_attention_heads=vision.num_attention_heads,
            intermediate_size=vision.intermediate_size,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            attention_bias=True,
            use_mean_pooling=True,
        ),
        text_config=text,
        image_token_id=119,
        image_seq_length=cfg.image_tokens,
        tie_word_embeddings=False,
    )
    return config


def filled(module, seed=0):
    """A module with random numbers of a scale at which each branch counts."""
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(module)
    leaves, tree = jax.tree.flatten(state)
    made = [jnp.asarray(rng.standard_normal(leaf.shape) * 0.2, jnp.float32) for leaf in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, made))


def test_attention_layer_equals_torch(torch):
    """With a memory of several tokens, and of one, where queries and keys have no effect."""
    cfg = DECODER
    layer = filled(AttentionLayer(cfg, rngs=nnx.Rngs(0)))
    peer = torch.nn.TransformerDecoder(
        torch.nn.TransformerDecoderLayer(cfg.width, cfg.num_heads, cfg.feedforward, dropout=0.0, batch_first=True),
        1,
        norm=torch.nn.LayerNorm(cfg.width),
    ).eval()
    own = peer.layers[0]
    with torch.no_grad():
        for theirs, ours in ((own.self_attn, layer.self_attn), (own.multihead_attn, layer.cross_attn)):
            parts = (ours.q, ours.k, ours.v)
            theirs.in_proj_weight.copy_(torch.from_numpy(np.concatenate([np.asarray(p.kernel[...]).T for p in parts])))
            theirs.in_proj_bias.copy_(torch.from_numpy(np.concatenate([np.asarray(p.bias[...]) for p in parts])))
            _copy(torch, theirs.out_proj, ours.out)
        _copy(torch, own.linear1, layer.up)
        _copy(torch, own.linear2, layer.down)
        norms = ((own.norm1, layer.norm1), (own.norm2, layer.norm2), (own.norm3, layer.norm3), (peer.norm, layer.norm))
        for theirs, ours in norms:
            theirs.weight.copy_(torch.from_numpy(np.array(ours.scale[...])))
            theirs.bias.copy_(torch.from_numpy(np.array(ours.bias[...])))
    x = normal(2, 9, cfg.width)
    for tokens in (4, 1):
        memory = normal(2, tokens, cfg.width, seed=1)
        with torch.no_grad():
            wanted = peer(torch.from_numpy(x), torch.from_numpy(memory)).numpy()
        assert relative(layer.across(layer.among(jnp.asarray(x)), jnp.asarray(memory)), wanted) < 1e-5


def _copy(torch, theirs, ours):
    theirs.weight.copy_(torch.from_numpy(np.array(ours.kernel[...]).T.copy()))
    theirs.bias.copy_(torch.from_numpy(np.array(ours.bias[...])))


def test_enlargement_without_offsets_is_bilinear():
    for scale, groups in ((2, 4), (2, 1), (3, 2)):
        layer = DySample(8, scale=scale, groups=groups, precision=PARITY, rngs=nnx.Rngs(0))
        layer.offset.kernel[...] = jnp.zeros_like(layer.offset.kernel[...])
        x = jnp.asarray(normal(2, 5, 7, 8))
        assert relative(layer(x), resize(x, (5 * scale, 7 * scale), mode="bilinear")) < 1e-5
    np.testing.assert_array_equal(
        initial_offsets(2, 1), np.array([-0.25, 0.25, -0.25, 0.25, -0.25, -0.25, 0.25, 0.25], np.float32)
    )


def test_phrases_share_an_image_and_do_not_see_each_other():
    decoder = filled(MaskDecoder(DECODER, rngs=nnx.Rngs(0)))
    decoder.norm.var[...] = jnp.abs(decoder.norm.var[...]) + 0.5
    patches, read, words = normal(2, 16, 32), normal(2, 4, 24, seed=1), normal(2, 3, 24, seed=2)
    together = jax.jit(lambda decoder: decoder(patches, read, words))(decoder)
    assert together.shape == (2, 3, 16, 16)
    alone = decoder(patches, read, words[:, 1:2])
    assert relative(together[:, 1:2], alone) < 1e-5
    assert relative(together[:, 0:1], alone) > 1e-2

    low = dataclasses.replace(DECODER, precision=BFLOAT16)
    graph = nnx.graphdef(nnx.eval_shape(lambda: MaskDecoder(low, rngs=nnx.Rngs(0))))
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), nnx.state(decoder))
    in_bfloat16 = nnx.merge(graph, state)(patches, read, words)
    assert in_bfloat16.dtype == jnp.float32 and relative(in_bfloat16, together) < 0.1


def test_batch_statistics_are_those_of_torch(torch):
    """Of each image's phrases that count, by themselves."""
    decoder = filled(MaskDecoder(DECODER, rngs=nnx.Rngs(0)))
    features = normal(2, 3, 16, 32)
    counted = np.array([[True, True, False], [True, True, True]])
    logits, seen = jax.jit(lambda decoder: decoder.logits(features, counted=counted))(decoder)
    for b in range(2):
        chosen = jnp.asarray(features[b][counted[b]]).reshape(-1, 4, 4, 32)
        maps = np.moveaxis(np.array(decoder.to_pixels(chosen)), -1, 1)
        norm = torch.nn.BatchNorm2d(16).train()
        with torch.no_grad():
            norm.weight.copy_(torch.from_numpy(np.array(decoder.norm.scale[...])))
            norm.bias.copy_(torch.from_numpy(np.array(decoder.norm.bias[...])))
            x = torch.relu(norm(torch.from_numpy(maps)))
            x = torch.nn.functional.pixel_shuffle(x, 4)
            smooth = torch.from_numpy(np.array(decoder.smooth.kernel[...]).transpose(3, 2, 0, 1))
            x = torch.nn.functional.conv2d(x, smooth, torch.from_numpy(np.array(decoder.smooth.bias[...])), padding=2)
        assert relative(logits[b][counted[b]], x[:, 0].numpy()) < 1e-5
        corrected = np.asarray(seen.var[b]) * float(seen.count[b]) / (float(seen.count[b]) - 1)
        assert float(seen.count[b]) == 16 * counted[b].sum()
        assert relative(0.1 * seen.mean[b], norm.running_mean.numpy()) < 1e-5
        assert relative(0.9 + 0.1 * corrected, norm.running_var.numpy()) < 1e-5


def test_dropout_needs_a_key_and_keeps_the_mean():
    layer = filled(AttentionLayer(dataclasses.replace(DECODER, dropout=0.5), rngs=nnx.Rngs(0)))
    x, memory = jnp.asarray(normal(2, 9, 32)), jnp.asarray(normal(2, 1, 32, seed=1))
    quiet = layer.across(layer.among(x), memory)
    run = jax.jit(lambda key: layer.across(layer.among(x, key), memory, jax.random.fold_in(key, 1)))
    noisy = np.stack([run(jax.random.key(seed)) for seed in range(2)])
    assert relative(noisy[0], quiet) > 1e-2 and relative(noisy[0], noisy[1]) > 1e-2
    np.testing.assert_array_equal(run(jax.random.key(0)), noisy[0])


def test_check_values_of_the_published_focal_loss():
    """The figures of the specification, for a single pixel."""
    cfg, inside = MaskLossConfig.published(), jnp.ones((1, 1, 1, 1))
    for probability, on, off in ((0, 0.173287, 0), (0.5, 0.0296298, 0.182639), (0.9, 0.000852885, 0.754001)):
        for target, wanted in ((1.0, on), (0.0, off)):
            drawing, truth = jnp.full((1, 1, 1, 1), float(probability)), jnp.full((1, 1, 1, 1), target)
            np.testing.assert_allclose(mask_terms(cfg, drawing, truth, inside)["focal"], wanted, rtol=2e-5, atol=1e-9)


def test_masks_of_images_of_different_sizes(torch):
    """The loss of padded masks is that of each image at its own size."""
    logits, sizes = jnp.asarray(normal(2, 2, 8, 8)), np.array([[10, 14], [12, 6]])
    masks = np.random.default_rng(3).random((2, 2, 12, 14)) < 0.4
    drawn, there = np.array([[True, True], [True, False]]), np.array([[True, True], [True, True]])
    enlarged = resized(jax.nn.sigmoid(logits), jnp.asarray(sizes), (12, 14))
    for form in ("published", "corrected"):
        cfg = MaskLossConfig(form=form)
        found = mask_losses(cfg, logits, jnp.asarray(masks), jnp.asarray(drawn), jnp.asarray(there), jnp.asarray(sizes))
        totals = {"focal": 0.0, "dice": 0.0, "mask_iou": 0.0}
        for b, (height, width) in enumerate(sizes):
            own = torch.from_numpy(np.array(logits[b]))[None]
            size = {"size": (int(height), int(width)), "mode": "bilinear", "align_corners": False}
            p = torch.nn.functional.interpolate(own.sigmoid() if form == "published" else own, **size)[0]
            if form == "published":
                assert relative(enlarged[b, :, :height, :width], p.numpy()) < 1e-5
            for k in np.flatnonzero(drawn[b]):
                t = torch.from_numpy(masks[b, k, :height, :width]).float()
                probability = p[k] if form == "published" else p[k].sigmoid()
                entropy = torch.nn.functional.binary_cross_entropy_with_logits(p[k], t, reduction="none")
                right = probability * t + (1 - probability) * (1 - t)
                totals["focal"] += float((entropy * (1 - right) ** 2 * (0.25 * t + 0.75 * (1 - t))).mean())
                both, shared = float((probability + t).sum()), float((probability * t).sum())
                totals["dice"] += 1 - (2 * shared + 1) / (both + 1)
                totals["mask_iou"] += shared / (both - shared)
        for name, total in totals.items():
            np.testing.assert_allclose(found[name], total / 4, rtol=1e-5)
    with pytest.raises(ValueError, match="corrected, published"):
        MaskLossConfig(form="double")


@pytest.mark.slow
def test_published_size_equals_transformers(torch):
    """InternVL2.5-1B whole: 448 pixels, 256 image tokens, random weights; needs 12 GiB."""
    transformers = pytest.importorskip("transformers")
    cfg = InternVLConfig.internvl2_5_1b()
    config = _peer_config(transformers, cfg)
    config.image_token_id = config.text_config.vocab_size - 7
    with torch.device("meta"):
        peer = transformers.InternVLForConditionalGeneration(config)
    peer = peer.to_empty(device="cpu").eval()
    rng = np.random.default_rng(0)
    weights = {}
    for key, leaf in peer.state_dict().items():
        scale = 0.3 if leaf.ndim == 1 else leaf[0].numel() ** -0.5
        weights[key] = rng.standard_normal(tuple(leaf.shape), np.float32) * scale
        leaf.copy_(torch.from_numpy(weights[key]))
    rotary = peer.model.language_model.rotary_emb
    rotary.inv_freq = torch.tensor(cfg.language.rope_theta ** (-np.arange(0, 64, 2) / 64), dtype=torch.float32)
    model = from_torch("internvl", weights, cfg)
    ids = rng.integers(0, 1000, (1, 280))
    ids[:, 5:261] = config.image_token_id
    images = normal(1, 448, 448, 3)

    def last(model, images, ids):
        tokens = model.see(images)[1]
        hidden, _ = model.language(model.embed(ids, tokens, ids == config.image_token_id))
        return model.language.logits(hidden[:, -16:])

    ours = jax.jit(last)(model, images, ids)
    with torch.no_grad():
        pixels = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
        theirs = peer(input_ids=torch.from_numpy(ids), pixel_values=pixels, logits_to_keep=16).logits.numpy()
    assert relative(ours, theirs) < 1e-4
