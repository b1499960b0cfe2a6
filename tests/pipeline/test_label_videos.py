"""Ref-YouTube-VOS and Ref-DAVIS17 as sources: sentences and masks are the generator's, or those of real clips."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import ref_davis, ref_youtube_vos
from rvseg_jax.formats.davis import ObjectTrack, write_labels
from rvseg_jax.input_pipeline.datasets.moving_shapes import (
    MovingShapes,
    MovingShapesConfig,
    to_ref_davis,
    to_ref_youtube_vos,
)
from rvseg_jax.input_pipeline.datasets.moving_shapes.writers import single_targets
from rvseg_jax.input_pipeline.datasets.registry import open_dataset

CONFIG = MovingShapesConfig(size=(56, 64), frames=5)


@pytest.fixture(scope="module")
def ytvos(tmp_path_factory):
    """Five clips as train, four as valid, two of which are test's too."""
    root = tmp_path_factory.mktemp("refer_youtube_vos")
    to_ref_youtube_vos(root, MovingShapes(CONFIG), range(5))
    for split, indices in (("valid", range(4)), ("test", range(2, 4))):
        to_ref_youtube_vos(root, MovingShapes(CONFIG), indices, split=split, with_masks=False)
    return root


def test_sentences_and_masks_are_the_generators(ytvos):
    source = open_dataset("ref_youtube_vos", ytvos, "train")
    found = iter(source[i] for i in range(len(source)))
    for index in range(5):
        truth = MovingShapes(CONFIG)[index]
        wanted = single_targets(truth)
        assert len(wanted) > 5
        for key, (text, target) in enumerate(wanted):
            item = next(found)
            assert (item.name, item.text) == (f"{truth.video}/{key}", text)
            assert (item.masks() == truth.object_masks[target]).all()
            sample = item.sample([4, 1, 1])
            assert sample.frame_names == ("00020", "00005", "00005")
            assert (sample.masks == truth.object_masks[target][[4, 1, 1]]).all()
            assert np.abs(sample.frames.astype(int) - truth.frames[[4, 1, 1]]).mean() < 4
    assert next(found, None) is None


def test_the_files_have_the_published_form(ytvos):
    video = json.loads((ytvos / "meta_expressions/train/meta_expressions.json").read_text())["videos"]["train_000000"]
    assert video["frames"] == ["00000", "00005", "00010", "00015", "00020"]
    assert isinstance(video["expressions"]["0"]["obj_id"], str) and "anno_id" not in video["expressions"]["0"]
    objects = json.loads((ytvos / "train/meta.json").read_text())["videos"]["train_000000"]["objects"]
    assert set(objects["1"]) == {"category", "frames"}
    with Image.open(ytvos / "train/Annotations/train_000000/00005.png") as image:
        assert image.mode == "P" and image.getpalette()[3:6] == [128, 0, 0]
    hidden = json.loads((ytvos / "meta_expressions/valid/meta_expressions.json").read_text())["videos"]
    assert set(hidden["train_000000"]["expressions"]["0"]) == {"exp"} and not (ytvos / "valid/meta.json").exists()


def test_valid_leaves_out_the_videos_of_test(ytvos, tmp_path):
    source = open_dataset("ref_youtube_vos", ytvos, "valid")
    assert list(source.clips) == ["train_000000", "train_000001"] and not source.has_masks
    with pytest.raises(InputError, match="masks of train_000000/0 are not public"):
        source[0].masks()
    root = shutil.copytree(ytvos, tmp_path / "alone")
    shutil.rmtree(root / "meta_expressions/test")
    assert len(open_dataset("ref_youtube_vos", root, "valid").clips) == 4


def test_the_published_list_has_to_leave_202(tmp_path):
    def write(split, numbers):
        path = ref_youtube_vos.sentences_file(tmp_path, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        videos = {f"v{n}": {"frames": ["00000"], "expressions": {"0": {"exp": "a"}}} for n in numbers}
        path.write_text(json.dumps({"videos": videos}))

    write("valid", range(507))
    assert len(ref_youtube_vos.read_clips(tmp_path, "valid")) == 507
    write("test", range(305))
    assert len(ref_youtube_vos.read_clips(tmp_path, "valid")) == 202
    write("test", range(304))
    with pytest.raises(InputError, match="lists 203 videos .* expected 202"):
        ref_youtube_vos.read_clips(tmp_path, "valid")


def test_anchors_and_empty_frames(ytvos):
    source = open_dataset("ref_youtube_vos", ytvos, "train", clip_frames=3)
    assert [source[i].anchor for i in range(3)] == [0, 3, 0]
    assert len(source) == 2 * len(open_dataset("ref_youtube_vos", ytvos, "train"))


def test_the_track_of_an_object(tmp_path):
    labels = np.array([[0, 1, 255], [2, 2, 0]], np.uint8)
    write_labels(tmp_path / "00005.png", labels)
    write_labels(tmp_path / "00010.png", np.zeros_like(labels))
    track = ObjectTrack(tmp_path, ("00005", "00010", "00015"), 2)
    assert track[0]["size"] == [2, 3] and len(track) == 3
    # By columns: 0 2 | 1 2 | 255 0 -> one off, one on, one off, one on, two off.
    from rvseg_jax.formats.rle import counts_of

    assert counts_of(track[0]).tolist() == [1, 1, 1, 1, 2] and track[1] is None
    assert len(track[:2]) == 2 and track[:2][1] is None
    with pytest.raises(InputError, match="00015.png is missing"):
        track[2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "train/Annotations/train_000001/00010.png").unlink(), "train_000001/00010.png is missing"),
        (lambda r: (r / "train/JPEGImages/train_000001/00010.jpg").unlink(), "train_000001/00010.jpg is missing"),
        (lambda r: shutil.rmtree(r / "train/JPEGImages/train_000001"), "train_000001 is missing"),
        (lambda r: (r / "meta_expressions/train/meta_expressions.json").unlink(), "is missing"),
    ],
)
def test_errors_name_what_is_missing(ytvos, tmp_path, damage, message):
    root = shutil.copytree(ytvos, tmp_path / "copy")
    damage(root)
    with pytest.raises(InputError, match=message):
        source = open_dataset("ref_youtube_vos", root, "train")
        for index in range(len(source)):
            source[index].sample()


def test_a_sentence_of_train_names_one_object(ytvos, tmp_path):
    root = shutil.copytree(ytvos, tmp_path / "copy")
    path = root / "meta_expressions/train/meta_expressions.json"
    path.write_text(path.read_text().replace(', "obj_id": "1"', "", 1))
    with pytest.raises(InputError, match="train_000000/. does not name one object"):
        open_dataset("ref_youtube_vos", root, "train")
    with pytest.raises(InputError, match="no split 'val'; choose from train, valid, test"):
        open_dataset("ref_youtube_vos", root, "val")


def test_ref_davis_gives_four_sentences_an_object(tmp_path):
    count = to_ref_davis(tmp_path, MovingShapes(CONFIG), range(3))
    source = open_dataset("ref_davis", tmp_path, "valid")
    assert len(source) == count and source.has_masks
    for index in range(count):
        item = source[index]
        labels = ref_davis.read_label_maps(tmp_path, "valid", item.video, item.frames.names)
        assert (item.masks() == (labels == int(item.expression) // 4 + 1)).all() and item.masks().any()
    with pytest.raises(InputError, match="train/meta_expressions.json is missing"):
        open_dataset("ref_davis", tmp_path, "train")


def test_real_clips_in_this_layout(shared_data, tmp_path):
    """DAVIS 2016's masks are 0 and 255; as label images 0 and 1 they are an object of Ref-YouTube-VOS."""
    real = shared_data / "davis16_mini"
    sentences = ref_youtube_vos.sentences_file(tmp_path, "train")
    sentences.parent.mkdir(parents=True)
    shutil.copy(real / "expressions/ytvos_style/meta_expressions.json", sentences)
    (tmp_path / "train").mkdir()
    (tmp_path / "train/JPEGImages").symlink_to(real / "JPEGImages/480p")
    clips = ref_youtube_vos.read_clips(tmp_path, "train")
    for path in (real / "Annotations/480p/blackswan").glob("*.png"):
        target = tmp_path / "train/Annotations/blackswan" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_labels(target, (np.asarray(Image.open(path)) > 0).astype(np.uint8))
    source = open_dataset("ref_youtube_vos", tmp_path, "train")
    assert len(source) == 30 and len(clips) == 10
    sample = source[1].sample([0, 12, 24])
    assert sample.text == "bird gliding across the pond to the right" and sample.frame_names[1] == "00024"
    for mask, name in zip(sample.masks, sample.frame_names, strict=True):
        assert (mask == (np.asarray(Image.open(real / f"Annotations/480p/blackswan/{name}.png")) > 0)).all()
