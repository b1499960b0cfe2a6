"""FlowRVS trained on a dataset on disk: what a step sees, cached sentences and latents, converted weights."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.convert.__main__ import main as convert
from rvseg_jax.convert.manifest import config_fields
from rvseg_jax.core import config as configs
from rvseg_jax.core.config import from_dataclass
from rvseg_jax.core.errors import InputError
from rvseg_jax.core.precision import FLOAT32
from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapes, MovingShapesConfig, to_mevis
from rvseg_jax.models.umt5.encoder import UMT5Config, UMT5Encoder
from rvseg_jax.models.wan.transformer import WanTransformer
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig
from rvseg_jax.models.wan.vae import WanVAE
from rvseg_jax.models.wan.vae_config import WanVAEConfig
from rvseg_jax.parts import parameters
from rvseg_jax.systems.flowrvs import bundle, data, losses, text_cache
from rvseg_jax.systems.flowrvs.data import DatasetsConfig
from rvseg_jax.systems.flowrvs.training import DiTConfig, DiTTask
from rvseg_jax.training import config as run_config
from rvseg_jax.training.loop import run
from rvseg_jax.training.report import read_rows
from rvseg_jax.zoo import resolve

CLIPS = 6
BASE = DiTConfig(
    dit=dataclasses.replace(WanTransformerConfig.tiny(), patch_size=(1, 2, 2)),
    vae=dataclasses.replace(WanVAEConfig.tiny(), base_dim=4),
    text=dataclasses.replace(UMT5Config.tiny(), vocab_size=72),
    text_length=20,
    tokenizer="zoo/flowrvs_tiny/tokenizer.json",
    remat="none",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Clips of moving shapes in the layout of MeViS."""
    folder = tmp_path_factory.mktemp("mevis")
    to_mevis(folder / "train", MovingShapes(MovingShapesConfig(size=(48, 64), frames=9, absent=0.0)), range(CLIPS))
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory, random_leaves):
    """A bundle with the three parts, random weights."""
    makers = {
        "wan_dit": lambda: WanTransformer(BASE.dit, rngs=nnx.Rngs(params=0)),
        "wan_vae": lambda: WanVAE(BASE.vae, rngs=nnx.Rngs(params=0)),
        "umt5": lambda: UMT5Encoder(BASE.text, rngs=nnx.Rngs(params=0)),
    }
    split = {part: nnx.split(nnx.eval_shape(make)) for part, make in makers.items()}
    folder = tmp_path_factory.mktemp("parts")
    bundle.save(folder, {part: nnx.merge(graph, random_leaves(state)) for part, (graph, state) in split.items()})
    return folder


def config_of(root, parts, **changes):
    sets = (("mevis", str(root), "train", 1),)
    wanted = DatasetsConfig(sets=sets, frames=5, augmentation="none", box=(48, 80))
    pretrained = tuple((part, str(parts)) for part in bundle.FIELDS)
    return dataclasses.replace(BASE, data=wanted, pretrained=pretrained, encoder_precision="bfloat16", **changes)


def test_a_clip_is_drawn_fitted_and_padded(root):
    config = DatasetsConfig(sets=(("mevis", str(root), "train", 1),), frames=5, box=(48, 80))
    source = data.training_source(config)
    step = data.training_samples(dataclasses.replace(config, augmentation="none"), source)
    sample = step(source[0], np.random.default_rng(0))
    assert sample.frames.shape == (5, 48, 80, 3) and sample.masks.shape == (5, 48, 80) and sample.masks.any()
    np.testing.assert_array_equal(sample.valid, np.broadcast_to(np.arange(80) < 64, (48, 80)))
    assert not sample.masks[:, :, 64:].any() and np.ptp(sample.frames[:, :, 64:]) == 0
    # Augmented at the published sizes, then shrunk into the box; every caption is one that a cache is made for.
    known = set(data.captions(config, source))
    augmented = data.training_samples(config, source)
    for seed in range(4):
        sample = augmented(source[seed], np.random.default_rng(seed))
        assert sample.frames.shape == (5, 48, 80, 3) and sample.text in known
        assert sample.valid.any()


def test_padding_does_not_count():
    rng = np.random.default_rng(0)
    predicted, velocity = rng.standard_normal((2, 3, 2, 4, 6, 5))
    valid = np.zeros((3, 4, 6), bool)
    for place, width in enumerate((6, 3, 1)):
        valid[place, :, :width] = True
    found = losses.velocity_errors(jnp.asarray(predicted), jnp.asarray(velocity), jnp.asarray(valid))
    widths = (6, 3, 1)
    expected = [np.mean((predicted - velocity)[i, :, :, :width] ** 2) for i, width in enumerate(widths)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_cached_sentences_are_those_of_the_encoder(root, parts, tmp_path, monkeypatch):
    path = str(tmp_path / "sentences.array_record")
    plain, cached = (DiTTask(config_of(root, parts, text_cache=name), precision=FLOAT32) for name in ("", path))
    rng = lambda: np.random.default_rng(3)  # noqa: E731
    rows = [task.transform("train")(task.source("train")[2], rng()) for task in (plain, cached)]
    assert rows[0].keys() - rows[1].keys() == {"ids", "text_mask"} and rows[1]["text_states"].dtype == np.uint16
    batches = [{name: array[None] for name, array in row.items()} for row in rows]
    params = {
        bundle.FIELDS[part]: parameters.read(parts, part, getattr(plain.system, bundle.FIELDS[part]).precision)
        for part in bundle.FIELDS
    }
    expected = jax.jit(plain.encode_text)(params, batches[0]["ids"], batches[0]["text_mask"]).astype(jnp.float32)
    found = text_cache.from_bits(batches[1]["text_states"]).astype(jnp.float32)
    # Equal where this was written; another machine may round a sum to the next bfloat16.
    np.testing.assert_allclose(found, expected, atol=2**-8 * np.abs(expected).max(), rtol=0)
    assert not np.asarray(found[0, batches[0]["text_mask"][0].sum() :]).any()
    without = {name: tree for name, tree in params.items() if name != "text"}
    assert "text" not in jax.eval_shape(cached.init, jax.random.key(0))
    assert np.isfinite(jax.jit(cached.loss)(without, batches[1], jax.random.key(0))[0])

    monkeypatch.setattr(text_cache, "_rows", lambda *_: pytest.fail("the cache was written again"))
    cached.transform("train")
    with pytest.raises(pytest.fail.Exception):
        DiTTask(config_of(root, parts, text_cache=path, text_length=4), precision=FLOAT32).transform("train")


def test_a_run_on_videos_trains_and_exports(root, parts, tmp_path):
    """Through the loop, with a cache of sentences and one of latents; the exported part is the trained one."""
    config = run_config.default("flowrvs.dit")
    own = config_of(
        root,
        parts,
        text_cache=str(tmp_path / "sentences.array_record"),
        latent_cache=str(tmp_path / "latents.array_record"),
        cached_clips=8,
    )
    config.update(from_dataclass(own))
    config.update(steps=3, batch_size=2)
    config.optimizer.trainable = ("^dit/",)
    config.log.update(every=1, tensorboard=False)
    result = run(config, tmp_path / "run")
    rows = read_rows(tmp_path / "run")
    assert len(rows) == 3 and all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    assert set(result.state.params) == {"dit"} and set(result.state.frozen) == {"vae"}

    from rvseg_jax.training.export import export

    export(tmp_path / "run", tmp_path / "export")
    trained = parameters.read(tmp_path / "export", "wan_dit", FLOAT32)
    jax.tree.map(np.testing.assert_array_equal, trained, jax.device_get(result.state.params["dit"]))
    with pytest.raises(InputError, match="holds no wan_vae"):
        parameters.read(tmp_path / "export", "wan_vae", FLOAT32)


def test_a_converted_checkpoint_is_a_start_too(parts, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_fields(BASE.dit)))
    words = ["convert", "wan_dit", str(parts / "wan_dit.safetensors"), "--config", str(tmp_path / "config.json")]
    assert convert([*words, "-o", str(tmp_path / "converted"), "--quiet"]) == 0
    expected = parameters.read(parts, "wan_dit", FLOAT32)
    found = parameters.read(tmp_path / "converted", "wan_dit", FLOAT32)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # Straight onto the devices of a target, which need not want every leaf.
    place = jax.sharding.NamedSharding(jax.make_mesh((1,), ("fsdp",)), jax.sharding.PartitionSpec("fsdp"))
    wanted = {
        "proj_out": {"bias": jax.ShapeDtypeStruct(expected["proj_out"]["bias"].shape, np.float32, sharding=place)}
    }
    placed = parameters.read(tmp_path / "converted", "wan_dit", FLOAT32, wanted)
    assert placed["proj_out"]["bias"].sharding == place and placed["proj_out"]["kernel"].sharding != place
    assert parameters.fingerprint(parts, "wan_dit") != parameters.fingerprint(tmp_path / "converted", "wan_dit")
    with pytest.raises(InputError, match="neither an export"):
        parameters.read(tmp_path, "wan_dit", FLOAT32)


@pytest.mark.parametrize("name", ["pretrain", "ytvos", "mevis", "vae_decoder"])
def test_published_recipes_have_the_published_sizes(name):
    settings, own = run_config.parse(configs.load(f"flowrvs_{name}"))
    assert settings.precision == "mixed" and settings.optimizer.weight_decay == 5e-4 and settings.optimizer.lr == 5e-5
    assert own.data.sets and own.vae.base_dim == 96 and own.vae.out_channels == 1
    if name == "vae_decoder":
        assert (own.focal_weight, own.dice_weight) == (8, 4) and settings.optimizer.trainable[0] == "^vae/decoder/"
        return
    task = DiTTask(dataclasses.replace(own, tokenizer=str(resolve(BASE.tokenizer))), precision=settings.formats)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert (count(shapes["dit"]), count(shapes["text"])) == (1_418_996_800, 5_680_910_336)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes["dit"])} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes["text"])} == {"bfloat16"}
    assert own.data.frames == (1 if name == "pretrain" else 17) and own.boundary_probability == 0.5
