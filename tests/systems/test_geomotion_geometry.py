"""Pi3 by itself: sizes of frames, cameras from points, and the files of `rvseg geometry`."""

import json

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from rvseg_jax.cli.dispatch import main
from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import point_cloud
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric import GeometricShapes, GeometricShapesConfig
from rvseg_jax.models.pi3.config import Pi3Config
from rvseg_jax.models.pi3.model import Pi3
from rvseg_jax.parts import bundle
from rvseg_jax.processing.pi3 import fitted_size
from rvseg_jax.systems.geomotion import geometry
from rvseg_jax.systems.geomotion.rows import camera_points


@pytest.mark.parametrize(
    ("size", "expected"), [((1080, 1920), (378, 672)), ((480, 854), (378, 672)), ((100, 100), (504, 504))]
)
def test_sizes_are_pi3s(size, expected):
    assert fitted_size(*size, patch_size=14) == expected
    assert fitted_size(*expected, patch_size=14) == expected


def test_a_sliver_is_still_one_patch_wide():
    height, width = fitted_size(5, 4000, patch_size=14)
    assert height == 14 and height * width <= 255_000 + 14 * 14


def test_intrinsics_come_out_of_points():
    clip = GeometricShapes(GeometricShapesConfig(frames=4, cameras=("zoom",), fixed=0.0))[2]
    found = geometry.intrinsics_of(camera_points(clip.depth, clip.intrinsics))
    np.testing.assert_allclose(found, clip.intrinsics, rtol=1e-4, atol=1e-4)
    assert len(set(found[:, 0, 0].round(2))) > 1  # it zooms


def test_a_point_cloud_is_what_viewers_read(tmp_path):
    points, colours = np.arange(6, dtype=np.float32).reshape(2, 3) / 7, np.array([[255, 0, 1], [2, 3, 4]], np.uint8)
    point_cloud.write(tmp_path / "a.ply", points, colours)
    header, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 2\nproperty float x\n")
    assert len(body) == 2 * 15
    np.testing.assert_array_equal(np.frombuffer(body[:12], "<f4"), points[0])
    assert list(body[12:15]) == [255, 0, 1] and list(body[27:30]) == [2, 3, 4]
    for bad in ((points, colours[:1]), (points[:, :2], colours[:, :2]), (points * np.nan, colours)):
        with pytest.raises(ValueError, match="must both be|not finite"):
            point_cloud.write(tmp_path / "b.ply", *bad)
    assert not (tmp_path / "b.ply").exists()


@pytest.fixture(scope="module")
def checkpoint(random_leaves, tmp_path_factory):
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Pi3(Pi3Config.tiny(), rngs=nnx.Rngs(0))))
    folder = tmp_path_factory.mktemp("pi3")
    bundle.save(folder, "geomotion", {"pi3": nnx.merge(graph, random_leaves(shapes))})
    return folder


def test_the_command_writes_what_the_model_says(checkpoint, tmp_path, capsys):
    frames = tmp_path / "clip"
    frames.mkdir()
    rng = np.random.default_rng(0)
    for t in range(7):
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), np.uint8)).save(frames / f"{t:03d}.png")
    words = ["geometry", str(frames), "--checkpoint", str(checkpoint), "-o", str(tmp_path / "out"), "--frames", "3"]
    assert main([*words, "--confidence", "0.5", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["frames"] == ["000", "003", "006"] and summary["size"] == [56, 56]
    assert summary["files"] == ["clip.ply", "clip.geometry.npz", "clip.cameras.json"]

    found = geometry.load(checkpoint)(frames, frames=3)
    stored = np.load(tmp_path / "out/clip.geometry.npz")
    np.testing.assert_allclose(stored["depth"], found.depth, rtol=1e-5)
    np.testing.assert_allclose(stored["confidence"], found.confidence, atol=1e-5)
    cameras = json.loads((tmp_path / "out/clip.cameras.json").read_text())["cameras"]
    np.testing.assert_allclose([one["camera_to_world"] for one in cameras], found.poses, atol=1e-5)
    # Points are depth along the rays of their cameras, in the world's frame.
    turned = np.einsum(
        "tij,thwj->thwi", found.poses[:, :3, :3].transpose(0, 2, 1), found.points - found.poses[:, None, None, :3, 3]
    )
    np.testing.assert_allclose(turned[..., 2], found.depth, rtol=1e-3, atol=1e-4)
    assert summary["points"] == found.trusted(0.5).sum() == _vertices(tmp_path / "out/clip.ply")
    assert not (found.trusted(0.5) & (found.confidence <= 0.5)).any()


def test_what_users_get_wrong(checkpoint, tmp_path, capsys):
    assert main(["geometry", str(tmp_path), "-o", str(tmp_path / "out"), "--checkpoint", str(checkpoint)]) == 2
    image = tmp_path / "one.png"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(image)
    for words in (["--frames", "0"], ["--confidence", "1"]):
        assert main(["geometry", str(image), "-o", str(tmp_path / "out"), *words]) == 2
        assert words[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["geometry", str(image), "-o", str(tmp_path / "tiny")]) == 0
    assert "tiny Pi3 that comes with the library" in capsys.readouterr().err
    assert (tmp_path / "tiny" / f"{image.stem}.ply").is_file()
    with pytest.raises(InputError, match="at least 1"):
        geometry.load(checkpoint)(image, frames=0)
    alone = geometry.load(checkpoint)(image)
    assert alone.depth.shape[0] == 1 and np.isfinite(alone.points).all()


def _vertices(path):
    line = next(line for line in path.read_bytes().split(b"\n") if line.startswith(b"element vertex"))
    return int(line.split()[-1])
