"""FlowRVS's training stages: they learn, hand their weights on, and end in a checkpoint that predicts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rvseg_jax.core.config import from_dataclass
from rvseg_jax.core.precision import FLOAT32
from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapes, MovingShapesConfig
from rvseg_jax.input_pipeline.records import Records
from rvseg_jax.models.umt5.encoder import UMT5Config
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig
from rvseg_jax.models.wan.vae_config import WanVAEConfig
from rvseg_jax.parts.bundle import load_part
from rvseg_jax.parts.parameters import place_matching
from rvseg_jax.processing.video import open_video
from rvseg_jax.systems import flowrvs
from rvseg_jax.systems.flowrvs import latent_cache
from rvseg_jax.systems.flowrvs.injection import widened_patch_kernel
from rvseg_jax.systems.flowrvs.rows import CropRow, SentenceRow, mask_frames
from rvseg_jax.systems.flowrvs.training import DiTConfig, DiTTask
from rvseg_jax.training import config as run_config
from rvseg_jax.zoo import resolve

CLIPS = MovingShapesConfig(size=(48, 48), frames=5)
VAE = dataclasses.replace(WanVAEConfig.tiny(), base_dim=4)
DIT = DiTConfig(
    dit=dataclasses.replace(WanTransformerConfig.tiny(), in_channels=8),
    vae=VAE,
    text=dataclasses.replace(UMT5Config.tiny(), vocab_size=72),
    text_length=20,
    tokenizer="zoo/flowrvs_tiny/tokenizer.json",
    clips=CLIPS,
    remat="none",
)


def test_rows_hold_a_sentence_and_the_mask_of_what_it_names():
    clips = MovingShapes(CLIPS)
    row_of, own = (SentenceRow(resolve(DIT.tokenizer), 20, any_sentence=any_) for any_ in (True, False))
    clip = clips[3]
    named = set()
    lengths = {(len(r.text.split()) + 1, clip.masks_of(r.ids).tobytes()) for r in clip.referrals()}
    for seed in range(12):
        row = row_of(clip, np.random.default_rng(seed))
        assert (row["text_mask"].sum(), row["masks"].tobytes()) in lengths
        named.add(tuple(row["ids"]))
    assert len(named) > 3
    short = SentenceRow(resolve(DIT.tokenizer), 20, longest=3)
    counted = {int(short(clip, np.random.default_rng(seed))["text_mask"].sum()) for seed in range(12)}
    assert {4} <= counted <= {3, 4}, "with the end; two words are those for all objects"
    row = own(clip, np.random.default_rng(0))
    assert (row["masks"] == clip.masks).all() and row["text_mask"].sum() == len(clip.text.split()) + 1


def test_crops_are_windows_of_a_clip_or_of_a_mask():
    clip = MovingShapes(CLIPS)[0]
    rng = np.random.default_rng(0)
    video = CropRow(size=32, frames=5, mask_share=0.0)(clip, rng)["video"]
    corners = [(y, x) for y in range(17) for x in range(17)]
    assert any((video == clip.frames[:, y : y + 32, x : x + 32]).all() for y, x in corners)
    grey = CropRow(size=0, frames=0, mask_share=1.0)(clip, rng)["video"]
    candidates = [clip.masks, *clip.object_masks]
    assert any((grey == mask_frames(mask)).all() for mask in candidates) and set(np.unique(grey)) == {0, 255}


def test_the_velocity_is_learned(random_leaves):
    """A batch of latents is fitted: the loss falls far below what no text or no video could explain."""
    task = DiTTask(dataclasses.replace(DIT, boundary_probability=1.0, sample_start=False), precision=FLOAT32)
    params = random_leaves(jax.eval_shape(task.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    batch = {
        "video_mean": rng.standard_normal((4, 2, 6, 6, 4)).astype(np.float16),
        "video_std": np.full((4, 2, 6, 6, 4), 0.1, np.float16),
        "mask_latents": rng.standard_normal((4, 2, 6, 6, 4)).astype(np.float16),
        "ids": rng.integers(3, 60, (4, 20), np.int32),
        "text_mask": np.ones((4, 20), bool),
    }
    transform = optax.adam(1e-2)
    frozen = {"vae": params.pop("vae")}

    @jax.jit
    def fit(params, state, key):
        def body(carry, key):
            params, state = carry
            loss, grads = jax.value_and_grad(lambda p: task.loss({**p, **frozen}, batch, key)[0])(params)
            updates, state = transform.update(grads, state)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(body, (params, state), jax.random.split(key, 100))

    (params, _), losses = fit(params, transform.init(params), jax.random.key(1))
    assert losses[0] > 1.5, "random velocities have a power of about 2"
    assert losses[-1] < 0.25 * losses[0]


def test_latents_are_cached_once_per_origin(tmp_path, monkeypatch, random_leaves):
    task = DiTTask(DIT, precision=FLOAT32)
    params = random_leaves(jax.eval_shape(task.init, jax.random.key(0)))
    task.export(params, tmp_path / "parts")
    config = dataclasses.replace(
        DIT,
        pretrained=(("wan_vae", str(tmp_path / "parts")),),
        latent_cache=str(tmp_path / "latents.array_record"),
        cached_clips=3,
    )
    task = DiTTask(config, precision=FLOAT32)
    rows = task.source("train")
    assert isinstance(rows, Records) and len(rows) == 3
    clip, row = MovingShapes(CLIPS)[2], rows[2]
    assert [str(text) for text in row["texts"]] == [referral.text for referral in clip.referrals()]
    assert row["mask_latents"].shape[0] == len({referral.ids for referral in clip.referrals()})
    cached = SentenceRow(resolve(DIT.tokenizer), 20)(row, np.random.default_rng(0))
    assert cached["mask_latents"].shape == row["mask_latents"].shape[1:]
    # The cache gives the loss what encoding in the step would have given it, rounded to float16: 5e-4 of values
    # that reach 3.
    direct = {"frames": clip.frames[None], "masks": clip.other_masks[None]}
    (mean, logvar), masks = jax.jit(task._latents)(params, direct)
    np.testing.assert_allclose(row["video_mean"], mean[0], atol=2e-3)
    np.testing.assert_allclose(row["video_std"], jnp.exp(0.5 * logvar[0]), rtol=2e-3)
    other_mask = row["mask_latents"][row["mask_of"][1]]
    np.testing.assert_allclose(other_mask, masks[0], atol=2e-3)
    cached = {**row, "mask_latents": other_mask}
    found = task._latents(params, {name: cached[name][None] for name in ("video_mean", "video_std", "mask_latents")})
    np.testing.assert_allclose(found[0].std, jnp.exp(0.5 * logvar), rtol=2e-3)

    def unexpected(*_):
        raise AssertionError("the cache was written again")

    monkeypatch.setattr(latent_cache, "_rows", unexpected)
    assert len(task.source("train")) == 3
    with pytest.raises(AssertionError, match="written again"):
        DiTTask(dataclasses.replace(config, cached_clips=4), precision=FLOAT32).source("train")


def test_pretrained_leaves_must_fit():
    target = {
        "a": jax.ShapeDtypeStruct((2,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    }
    placed = place_matching({"a": np.ones(2, np.float16), "b": np.ones(3)}, target)
    assert placed["a"].dtype == jnp.float32 and set(placed) == {"a"}
    assert place_matching({"a": np.ones(2)}, target, but="^a$") == {}
    # Lists of modules have integer keys in a tree of parameters, and must keep them.
    nested = place_matching({"blocks": {0: {"a": np.ones(2)}}}, {"blocks": {0: target, 1: target}})
    assert list(nested["blocks"]) == [0] and place_matching(nested, {"blocks": {0: target}}, but="^blocks/0/a$") == {}
    with pytest.raises(ValueError, match=r"pretrained a has shape \(3,\), the recipe's model \(2,\)"):
        place_matching({"a": np.ones(3)}, target)


def test_a_plain_dit_is_widened_for_video_injection(tmp_path, random_leaves):
    plain = dataclasses.replace(DIT, dit=WanTransformerConfig.tiny())
    task = DiTTask(plain, precision=FLOAT32)
    params = random_leaves(jax.eval_shape(task.init, jax.random.key(0)))
    task.export(params, tmp_path)
    wide = DiTTask(dataclasses.replace(DIT, pretrained=(("wan_dit", str(tmp_path)),)), precision=FLOAT32)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(wide.init, jax.random.key(0)),
    )
    kernel = wide.restore_pretrained(target)["dit"]["patch_embedding"]["kernel"]
    np.testing.assert_array_equal(kernel, widened_patch_kernel(params["dit"]["patch_embedding"]["kernel"], 4))
    assert kernel.shape[-2] == 8 and not kernel[..., 4:, :].any()


@pytest.mark.slow
def test_three_stages_end_in_a_model_that_predicts(tmp_path):
    from rvseg_jax.training import export, loop

    def stage(name, task, **settings):
        config = run_config.default(task)
        config.steps, config.batch_size, config.log.tensorboard = 2, 2, False
        for key, value in settings.items():
            config[key] = value
        config.checkpoint.save_frozen = True
        assert loop.run(config, tmp_path / name).finished
        export.export(tmp_path / name, tmp_path / name / "export")
        return str(tmp_path / name / "export")

    clips = from_dataclass(CLIPS)
    rgb = dataclasses.replace(VAE, out_channels=3)
    vae = stage("vae", "flowrvs.vae", vae=from_dataclass(rgb), clips=clips, crop=32)
    one_channel = {"vae": from_dataclass(VAE), "clips": clips}
    decoder = stage("decoder", "flowrvs.mask_decoder", **one_channel, crop=32, pretrained=vae)
    given, kept = (load_part(folder, "wan_vae", FLOAT32) for folder in (vae, decoder))
    np.testing.assert_array_equal(given.decoder.conv_in.kernel[...].shape, kept.decoder.conv_in.kernel[...].shape)
    assert kept.decoder.conv_out.kernel[...].shape[-1] == 1
    settings = {
        "dit": from_dataclass(DIT.dit),
        "text": from_dataclass(DIT.text),
        "text_length": DIT.text_length,
        "tokenizer": DIT.tokenizer,
        "pretrained": (("wan_vae", decoder),),
        "validation_clips": 2,
        "evaluation": {"every": 2},
    }
    whole = stage("dit", "flowrvs.dit", **one_channel, **settings)
    system = flowrvs.load(tmp_path / "dit" / "export")
    masks = next(system.segment(open_video(MovingShapes(CLIPS)[0].frames), ["the red circle"])).masks
    assert masks.shape == (1, 5, 48, 48) and whole.endswith("export")
    np.testing.assert_array_equal(
        load_part(whole, "wan_vae", FLOAT32).encoder.conv_in.kernel[...], kept.encoder.conv_in.kernel[...]
    )
