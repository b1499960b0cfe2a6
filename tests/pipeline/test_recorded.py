"""Datasets as ArrayRecord files and TFDS datasets: items are those of the original."""

import json
import pickle

import numpy as np
import pytest

from rvseg_jax.cli.dispatch import main
from rvseg_jax.core.errors import InputError
from rvseg_jax.input_pipeline import video_rows
from rvseg_jax.input_pipeline.checks import check_dataset
from rvseg_jax.input_pipeline.datasets.moving_shapes import (
    MovingShapes,
    MovingShapesConfig,
    to_mevis,
    to_ref_youtube_vos,
    to_refcoco,
)
from rvseg_jax.input_pipeline.datasets.registry import open_dataset
from rvseg_jax.input_pipeline.loader import make_loader
from rvseg_jax.input_pipeline.records import write_records
from rvseg_jax.input_pipeline.transforms import DrawClip, Steps, ToExample

CLIPS = MovingShapes(MovingShapesConfig(size=(56, 64), frames=5))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Splits by the name of their dataset: with several targets and none, one object a sentence, and images."""
    top = tmp_path_factory.mktemp("made")
    to_mevis(top / "mevis/train", CLIPS, range(10, 16))
    to_mevis(top / "withheld/train", CLIPS, range(2), with_masks=False)
    to_ref_youtube_vos(top / "ref_youtube_vos", CLIPS, range(2))
    to_refcoco(top / "refcoco", CLIPS, range(2))
    return top


def assert_same(found, original):
    assert (found.video, found.expression, found.text) == (original.video, original.expression, original.text)
    assert (found.anchor, found.frames.names) == (original.anchor, original.frames.names)
    assert found.frames.size() == original.frames.size() and len(found.frames) == len(original.frames)
    for place, path in enumerate(original.frames.paths):
        assert found.frames.encoded(place) == path.read_bytes()
    assert (found.frames.read([len(found.frames) - 1, 0]) == original.frames.read([len(found.frames) - 1, 0])).all()
    if original.tracks is None:
        assert found.tracks is None
    else:
        assert (found.masks() == original.masks()).all() and len(found.tracks) == len(original.tracks)


@pytest.mark.parametrize("clip_frames", [None, 2])
@pytest.mark.parametrize(
    ("name", "folder"),
    [("mevis", "mevis"), ("mevis", "withheld"), ("ref_youtube_vos", "ref_youtube_vos"), ("refcoco", "refcoco")],
)
def test_items_are_those_of_the_original(made, tmp_path, capsys, name, folder, clip_frames):
    path = tmp_path / "train.array_record"
    assert main(["data", "records", name, str(made / folder), "-o", str(path)]) == 0
    original = open_dataset(name, made / folder, "train", clip_frames=clip_frames)
    assert f"with {len(open_dataset(name, made / folder, 'train'))} sentences" in capsys.readouterr().out
    for root in (path, tmp_path):
        found = pickle.loads(pickle.dumps(open_dataset("records", root, "train", clip_frames=clip_frames)))
        assert len(found) == len(original)
        for index in range(len(original)):
            assert_same(found[index], original[index])
            assert found.frame_count(index) == len(original[index].frames)


def test_every_video_is_there_once(made, tmp_path):
    path = tmp_path / "train.array_record"
    videos, sentences = video_rows.write(path, open_dataset("ref_youtube_vos", made / "ref_youtube_vos", "train"))
    source = open_dataset("records", path, "")
    assert videos == source.rows == 2 and sentences == len(source) > 10
    row = source.row(0)
    assert len(row.tracks) < len(row.texts) and set(row.sentences) == {(n,) for n in range(len(row.tracks))}
    (report,) = check_dataset("records", tmp_path, decode=True)
    assert (report.split, report.videos, report.sentences, report.problems) == ("train", 2, sentences, [])


def test_batches_in_worker_processes(made, tmp_path):
    path = tmp_path / "train.array_record"
    original = open_dataset("mevis", made / "mevis", "train", clip_frames=2)
    video_rows.write(path, open_dataset("mevis", made / "mevis", "train"))
    step = Steps((DrawClip(3), ToExample(lambda text: {"length": np.int32(len(text))})))
    batches = [
        list(make_loader(source, transform=step, batch_size=4, seed=3, num_epochs=1, num_workers=0))
        for source in (original, open_dataset("records", path, "", clip_frames=2))
    ]
    assert len(batches[0]) == 9
    for one, other in zip(*batches, strict=True):
        assert all((one[name] == other[name]).all() for name in one)


def test_a_split_of_tfds(made, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    original = open_dataset("mevis", made / "mevis", "train")
    videos = {}
    for index in range(len(original)):
        videos.setdefault(original[index].video, []).append(original[index])

    class Toy(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # it would be looked for among installed packages

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=video_rows.tfds_features(), disable_shuffling=True)

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, items in enumerate(videos.values()):
                yield number, video_rows.row_of(items).features()

    builder = Toy(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    found = open_dataset("tfds", builder.data_dir, "train", clip_frames=None)
    assert len(found) == len(original)
    for index in range(len(original)):
        assert_same(found[index], original[index])
    assert len(open_dataset("tfds", builder.data_dir, "train[:2]")) == 4
    assert_same(pickle.loads(pickle.dumps(found))[3], original[3])
    (report,) = check_dataset("tfds", builder.data_dir, "train")
    assert (report.videos, report.problems) == (6, [])
    with pytest.raises(InputError, match="cannot be opened as a TFDS dataset with split 'nowhere'"):
        open_dataset("tfds", builder.data_dir, "nowhere")


def test_what_is_no_such_file_is_named(made, tmp_path, capsys):
    with pytest.raises(InputError, match="no complete records at .*train.array_record"):
        open_dataset("records", tmp_path, "train")
    other = tmp_path / "other.array_record"
    write_records(other, [{"a": np.zeros(2)}], description={"kind": "latents"})
    with pytest.raises(InputError, match="holds 'latents', expected 'referring videos"):
        open_dataset("records", other, "")
    write_records(other, [{"a": np.zeros(2)}], description={"kind": video_rows.KIND, "frames": [1], "items": []})
    with pytest.raises(InputError, match="no row of referring videos"):
        open_dataset("records", other, "").row(0)
    assert main(["data", "check", "records", str(other)]) == 1
    arguments = ["data", "records", "mevis", str(made / "mevis"), "--split", "valid", "-o", str(tmp_path / "x")]
    assert main(arguments) == 2 and not (tmp_path / "x").exists()
    assert "valid/meta_expressions.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_names": ["a"]}, "5 frames and 1 names"),
        ({"texts": ["a"]}, "2 ids for 1 sentences"),
        ({"masks": json.dumps({"tracks": [[None]], "sentences": [[], []]})}, "track of 1 masks for 5 frames"),
        ({"masks": json.dumps({"tracks": [], "sentences": [[0], []]})}, "names a track that is not there"),
        ({"masks": "{"}, "no row of referring videos"),
    ],
)
def test_rows_have_to_fit_themselves(made, change, message):
    source = open_dataset("mevis", made / "mevis", "train")
    row = video_rows.row_of([source[0], source[1]])
    assert video_rows.from_features(row.features()) == row == video_rows.from_arrays(row.arrays())
    with pytest.raises(InputError, match=message):
        video_rows.from_features(row.features() | change)
