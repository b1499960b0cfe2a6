"""FlowRVS as a whole: sentences, windows, checkpoints, against plain restatements of the same steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.precision import PARITY
from rvseg_jax.input_pipeline.datasets.moving_shapes import vocabulary
from rvseg_jax.models.umt5.encoder import UMT5Config, UMT5Encoder
from rvseg_jax.models.wan.transformer import WanTransformer
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig
from rvseg_jax.models.wan.vae import WanVAE
from rvseg_jax.models.wan.vae_config import WanVAEConfig
from rvseg_jax.ops.resize import resize
from rvseg_jax.processing.text import TokenBatch, Tokenizer, write_word_tokenizer
from rvseg_jax.processing.video import open_video
from rvseg_jax.systems import flowrvs
from rvseg_jax.systems.base import SegmentOptions
from rvseg_jax.systems.flowrvs import bundle, frames, memory
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig
from rvseg_jax.systems.flowrvs.inference import Inference, encode_text, kept_rows
from rvseg_jax.systems.flowrvs.rows import mask_frames
from rvseg_jax.systems.flowrvs.system import FlowRVS, LoadedParts

SENTENCES = ["the red circle", "all shapes that move up and to the right in front of the large blue star"]
CONFIG = FlowRVSConfig(
    dit=dataclasses.replace(WanTransformerConfig.tiny(), in_channels=8),
    vae=WanVAEConfig.tiny(),
    text=UMT5Config.tiny(),
    text_length=64,
    box=(48, 64),
    num_steps=2,
)


@pytest.fixture(scope="module")
def modules(random_leaves):
    makers = {
        "wan_dit": lambda: WanTransformer(CONFIG.dit, rngs=nnx.Rngs(params=0)),
        "wan_vae": lambda: WanVAE(CONFIG.vae, rngs=nnx.Rngs(params=0)),
        "umt5": lambda: UMT5Encoder(CONFIG.text, rngs=nnx.Rngs(params=0)),
    }
    split = {part: nnx.split(nnx.eval_shape(make)) for part, make in makers.items()}
    return {part: nnx.merge(graphdef, random_leaves(state)) for part, (graphdef, state) in split.items()}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_word_tokenizer(vocabulary(), path)
    return path


@pytest.fixture(scope="module")
def system(modules, tokenizer):
    return FlowRVS(CONFIG, LoadedParts(*modules.values()), Tokenizer.from_file(tokenizer))


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(0).integers(0, 256, (11, 40, 70, 3), np.uint8)


def run(system, clip, texts, **options):
    """All masks and verdicts of a segmentation, after a check that each frame came once and in order."""
    chunks, generator = [], system.segment(open_video(clip), texts, options=SegmentOptions(**options))
    while True:
        try:
            chunks.append(next(generator))
        except StopIteration as stop:
            starts = np.cumsum([0] + [chunk.masks.shape[1] for chunk in chunks])
            assert [chunk.start for chunk in chunks] == starts[:-1].tolist() and starts[-1] == len(clip)
            return np.concatenate([chunk.masks for chunk in chunks], axis=1), stop.value


def plain_logits(modules, clip, tokens):
    """Section 1 of the method step by step, with all text rows and without any shortcut."""
    dit, vae, text = modules["wan_dit"], modules["wan_vae"], modules["umt5"]
    size = frames.fitted_size(*clip.shape[1:3], box=CONFIG.box, multiple=16)
    pixels = frames.padded(np.stack([frames.resampled(frame, size) for frame in clip])) / np.float32(127.5) - 1

    @jax.jit
    def logits(pixels, ids, mask):
        start = vae.normalise(vae.encode(pixels[None]).mean)
        latents = jnp.repeat(start, len(ids), axis=0)
        rows = text(ids, mask) * mask[..., None]
        for time, step in ((1000.0, 0.75 - 1.0), (750.0, 0 - 0.75)):
            state = jnp.concatenate([latents, jnp.repeat(start, len(ids), axis=0)], axis=-1)
            latents = latents + step * dit(state, jnp.full(len(ids), time), rows)
        return vae.decode(latents)[..., 0]

    return np.asarray(logits(pixels, tokens.ids, tokens.mask))[:, : len(clip)]


def test_inference_equals_the_plain_steps(system, modules, clip):
    tokens = system._tokenizer.encode(SENTENCES, CONFIG.text_length)
    expected = plain_logits(modules, clip, tokens)
    assert 0.01 < np.abs(expected).mean() < 1 and (expected > 0).any() and (expected < 0).any()
    inference = Inference.of(CONFIG, modules["wan_dit"], modules["wan_vae"])
    text = encode_text(modules["umt5"], tokens)
    assert kept_rows(tokens) == 32 and text.rows.shape == (2, 32, 32), "64 rows are collapsed to 32"
    fitted = np.stack([frames.resampled(frame, (32, 64)) for frame in clip])
    latents = inference.mask_latents(inference.video_latents(frames.padded(fitted)), text)
    found = inference.logits(latents)[:, : len(clip)]
    # The collapsed padding and the folded modulation reorder float32 sums.
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_scores_are_the_probabilities_behind_the_masks(system, clip):
    chunks = list(system.segment(open_video(clip), SENTENCES, options=SegmentOptions(scores=True)))
    assert all(chunk.scores.dtype == np.float32 for chunk in chunks)
    scores, masks = (np.concatenate([getattr(c, name) for c in chunks], axis=1) for name in ("scores", "masks"))
    assert masks.any() and not masks.all() and (masks == (scores > CONFIG.threshold)).all()
    # The decoder clamps its logits to -1..1.
    assert 0.268 < scores.min() < scores.max() < 0.732
    assert next(system.segment(open_video(clip), SENTENCES)).scores is None


def test_sentences_do_not_disturb_each_other(system, clip):
    both, verdicts = run(system, clip, SENTENCES)
    assert both.shape == (2, 11, 40, 70) and both.dtype == bool and both.any() and not both.all()
    for index, sentence in enumerate(SENTENCES):
        alone, (verdict,) = run(system, clip, [sentence])
        # A sentence alone has another number of text rows: sums are ordered otherwise.
        assert np.mean(alone[0] != both[index]) < 1e-3
        assert verdict.score == pytest.approx(verdicts[index].score, abs=1e-3) and verdict.status == "ok"
        assert 0.5 < verdict.score < 1


def test_a_clip_without_foreground_has_no_target(system, clip):
    masks, verdicts = run(system, clip, SENTENCES[:1], threshold=0.99)
    assert not masks.any()
    assert [(verdict.status, verdict.score) for verdict in verdicts] == [("no_target", 0.0)]


def test_little_memory_means_windows(system, clip):
    whole, _ = run(system, clip, SENTENCES[:1])
    size = frames.fitted_size(*clip.shape[1:3], box=CONFIG.box, multiple=16)
    bound = memory.clip_bytes(CONFIG, 9, size, 1)
    assert memory.fitting_window(CONFIG, size, 1, bound) == (9, 1)
    windowed, _ = run(system, clip, SENTENCES[:1], max_memory=bound)
    # The first window is causal and ends at frame 9: what the last frames do not share may differ.
    assert windowed.shape == whole.shape and np.mean(windowed != whole) < 0.2
    same, _ = run(system, clip, SENTENCES[:1], max_memory=memory.clip_bytes(CONFIG, 13, size, 1))
    np.testing.assert_array_equal(same, whole)
    ignored, _ = run(system, clip, SENTENCES[:1], max_memory=bound, whole_clip=True)
    np.testing.assert_array_equal(ignored, whole)


def test_clips_beyond_the_rotary_tables_run_in_windows(modules, tokenizer):
    config = dataclasses.replace(CONFIG, dit=dataclasses.replace(CONFIG.dit, rope_max_seq_len=4))
    system = FlowRVS(config, LoadedParts(*modules.values()), Tokenizer.from_file(tokenizer))
    long = np.random.default_rng(1).integers(0, 256, (15, 48, 48, 3), np.uint8)
    assert memory.longest_window(config) == 13 and memory.longest_window(FlowRVSConfig()) == 4093
    assert run(system, long, SENTENCES[:1])[0].shape == (1, 15, 48, 48)


def test_too_little_memory_is_an_error(system, clip):
    with pytest.raises(InputError, match="GiB is too little memory: five frames of 64x32 need .* --max-memory"):
        next(system.segment(open_video(clip), SENTENCES, options=SegmentOptions(max_memory=1000)))


def test_tokens_are_counted_with_the_end(system):
    assert system.token_count("the red circle") == 4
    assert system.token_count(SENTENCES[1]) == 17 and system.max_tokens == 64


def test_bundles_come_back(system, modules, tokenizer, clip, tmp_path):
    bundle.save(tmp_path, {"wan_vae": modules["wan_vae"]})
    with pytest.raises(InputError, match="holds no wan_dit"):
        flowrvs.load(tmp_path)
    bundle.save(tmp_path, modules, config=CONFIG, tokenizer=tokenizer)
    loaded = flowrvs.load(tmp_path, dtype="parity")
    assert loaded.config == CONFIG
    expected, _ = run(system, clip, SENTENCES[:1])
    np.testing.assert_array_equal(run(loaded, clip, SENTENCES[:1])[0], expected)
    one_step = flowrvs.load(tmp_path, num_steps=1)
    assert one_step.config.num_steps == 1
    with pytest.raises(InputError, match="no setting 'steps'"):
        flowrvs.load(tmp_path, steps=1)
    (tmp_path / "bundle.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        flowrvs.load(tmp_path)


def test_old_checkpoints_predict_normalised_latents(modules, clip):
    text = encode_text(modules["umt5"], token_batch(SENTENCES[:1]))
    window = frames.padded(np.stack([frames.resampled(frame, (32, 64)) for frame in clip]))
    vae = modules["wan_vae"]
    for space, expected in (("raw", lambda z: z), ("normalised", vae.denormalise)):
        config = dataclasses.replace(CONFIG, mask_latent_space=space)
        inference = Inference.of(config, modules["wan_dit"], vae)
        latents = inference.mask_latents(inference.video_latents(window), text)
        decoded = jax.jit(lambda z, expected=expected: vae.decode(expected(z))[..., 0])(latents)
        np.testing.assert_allclose(inference.logits(latents), decoded, rtol=1e-4, atol=1e-5)


def token_batch(texts):
    ids = np.array([[5, 6, 7, 1] + [0] * 12] * len(texts), np.int32)
    mask = ids > 0
    return TokenBatch(ids, mask, mask.sum(axis=1).astype(np.int32), np.zeros(len(texts), bool))


def test_parts_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="latent channels need 16 .* these parts do not belong together"):
        dataclasses.replace(CONFIG, vae=WanVAEConfig(out_channels=1))
    with pytest.raises(ValueError, match="reads text of width 32, but the text encoder gives 4096"):
        dataclasses.replace(CONFIG, text=UMT5Config())
    assert CONFIG.direct_video_injection and not FlowRVSConfig.released().direct_video_injection
    assert CONFIG.dit.precision == PARITY


def test_reconstruction_is_the_autoencoder_alone(system, modules, clip):
    masks = clip[..., 0] > 127
    found = system.reconstruct(masks)
    assert found.shape == masks.shape and found.dtype == bool
    pixels = np.stack([frames.resampled(frame, (32, 64)) for frame in mask_frames(masks)])
    vae = modules["wan_vae"]
    decoded = jax.jit(lambda x: vae.decode(vae.encode(x).mean))(frames.padded(pixels)[None] / np.float32(127.5) - 1)
    expected = resize(decoded[0, : len(masks)], (40, 70), mode="bilinear")[..., 0] > 0
    assert 0.05 < expected.mean() < 0.95 and np.mean(found != expected) < 1e-3


def test_tokens_of_several_latent_frames(modules, tokenizer, random_leaves):
    config = dataclasses.replace(CONFIG, dit=dataclasses.replace(CONFIG.dit, patch_size=(3, 2, 2)), num_steps=1)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: WanTransformer(config.dit, rngs=nnx.Rngs(params=0))))
    dit = nnx.merge(graphdef, random_leaves(state))
    parts = LoadedParts(dit, modules["wan_vae"], modules["umt5"])
    system = FlowRVS(config, parts, Tokenizer.from_file(tokenizer))
    clip = np.random.default_rng(2).integers(0, 256, (10, 48, 48, 3), np.uint8)
    masks, _ = run(system, clip, SENTENCES[:1])
    assert masks.shape == (1, 10, 48, 48) and masks.any()
