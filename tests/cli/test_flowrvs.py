"""`rvseg predict` and `describe` over FlowRVS itself, with small random weights."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.core.precision import FLOAT32
from rvseg_jax.formats.frames import write_frames
from rvseg_jax.models.umt5.encoder import UMT5Config, UMT5Encoder
from rvseg_jax.models.wan.transformer import WanTransformer
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig
from rvseg_jax.models.wan.vae import WanVAE
from rvseg_jax.models.wan.vae_config import WanVAEConfig
from rvseg_jax.processing.video import open_video
from rvseg_jax.systems.flowrvs import bundle
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig
from rvseg_jax.zoo import FOLDER


def _random(make):
    """A module with random leaves, without running its initialisers one by one."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graph, jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), state))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flowrvs") / "random"
    config = FlowRVSConfig(
        dit=WanTransformerConfig.tiny(FLOAT32),
        vae=WanVAEConfig.tiny(FLOAT32),
        text=UMT5Config.tiny(FLOAT32),
        text_length=16,
        box=(48, 64),
    )
    modules = {
        "wan_dit": _random(lambda: WanTransformer(config.dit, rngs=nnx.Rngs(0))),
        "wan_vae": _random(lambda: WanVAE(config.vae, rngs=nnx.Rngs(0))),
        "umt5": _random(lambda: UMT5Encoder(config.text, rngs=nnx.Rngs(0))),
    }
    bundle.save(folder, modules, config=config, tokenizer=FOLDER / "flowrvs_tiny" / "tokenizer.json")
    return folder


def test_predict(tmp_path, rvseg, write_clip, checkpoint):
    clip = write_clip(tmp_path / "clip.mp4", size=(46, 62), times=range(6), audio="aac")
    arguments = ("predict", clip, "the red square", "赤", "--checkpoint", checkpoint, "--format", "npz")
    result = rvseg(*arguments, "-o", tmp_path / "out", "--json", system=False)
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    assert (summary["system"], summary["frames"]) == ("flowrvs", 6)
    masks = np.load(tmp_path / "out" / "clip.npz")["masks"]
    assert masks.shape == (2, 6, 46, 62)
    for sentence, own in zip(summary["sentences"], masks, strict=True):
        assert sentence["frames_with_mask"] == own.any((1, 2)).sum()
        assert sentence["status"] == ("ok" if own.any() else "no_target")
    assert open_video(tmp_path / "out" / "clip.overlay.mp4").has_audio


def test_one_frame_of_odd_size(tmp_path, rvseg, checkpoint):
    images = np.random.default_rng(0).integers(0, 256, (1, 47, 63, 3), dtype=np.uint8)
    path = write_frames(tmp_path, images, suffix=".png")[0]
    arguments = ("predict", path, "the red square", "--checkpoint", checkpoint, "--format", "npz", "--no-overlay")
    assert rvseg(*arguments, "-o", tmp_path / "out", system=False).code == 0
    assert np.load(tmp_path / "out" / "00000.npz")["masks"].shape == (1, 1, 47, 63)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["red " * 40], "41 tokens but flowrvs reads 16"),
        (["red", "--set", "steps=4"], "no setting 'steps'"),
        (["red", "--max-memory", "1kB"], "memory"),
    ],
)
def test_requests_that_do_not_fit(tmp_path, rvseg, write_clip, checkpoint, words, message):
    clip = write_clip(tmp_path / "clip.mp4", times=range(2))
    result = rvseg("predict", clip, *words, "--checkpoint", checkpoint, "-o", tmp_path / "out", system=False)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_do_not_fit(tmp_path, rvseg, write_clip, checkpoint):
    clip = write_clip(tmp_path / "clip.mp4", times=range(2))
    empty = tmp_path / "empty"
    empty.mkdir()
    cut = shutil.copytree(checkpoint, tmp_path / "cut")
    (cut / "wan_dit.safetensors").write_bytes((cut / "wan_dit.safetensors").read_bytes()[:-100])
    lacking = shutil.copytree(checkpoint, tmp_path / "lacking")
    (lacking / "wan_vae.safetensors").unlink()
    for folder in (empty, cut, lacking, tmp_path / "absent", clip):
        result = rvseg("predict", clip, "red", "--checkpoint", folder, "-o", tmp_path / "out", system=False)
        assert (result.code, result.err.count("\n")) == (2, 1), (folder.name, result.err)
        assert folder.name in result.err
        assert not (tmp_path / "out").exists()


def test_describe(rvseg):
    described = json.loads(rvseg("describe", "flowrvs", "--json").out)
    parameters = {part: found["parameters"]["released"] for part, found in described["parts"].items()}
    assert parameters == {"wan_dit": 1_418_996_800, "wan_vae": 126_887_345, "umt5": 5_680_910_336}
    assert all(found["licence"] for found in described["parts"].values())
