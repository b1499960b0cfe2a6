"""MeViS and Ref-DAVIS on disk: what is written comes back, and what is missing is named."""

import json
import pickle
import shutil

import numpy as np
import pytest

from rvseg_jax.cli.dispatch import main
from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import meta_expressions, mevis, ref_davis
from rvseg_jax.formats.meta_expressions import Clip, Expression
from rvseg_jax.input_pipeline.datasets.mevis import Mevis
from rvseg_jax.input_pipeline.datasets.moving_shapes import (
    MovingShapes,
    MovingShapesConfig,
    held_out,
    to_mevis,
    to_ref_davis,
)
from rvseg_jax.input_pipeline.sources import FrameFolder

CONFIG = MovingShapesConfig(size=(56, 64), frames=5)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Eight clips as MeViS's valid_u, sentences with several targets and with none among them."""
    folder = tmp_path_factory.mktemp("mevis") / "valid_u"
    assert to_mevis(folder, MovingShapes(CONFIG), range(10, 26)) == 32
    return folder


def copied(split, tmp_path):
    return shutil.copytree(split, tmp_path / "copy")


def test_masks_come_back_exactly(split):
    source, clips = Mevis(split), MovingShapes(CONFIG)
    assert len(source) == 32
    kinds = set()
    for place, index in enumerate(range(10, 26)):
        truth, first, second = clips[index], source[2 * place], source[2 * place + 1]
        assert (first.video, first.expression, first.text) == (truth.video, "0", truth.text)
        assert second.text == truth.other_text
        sample = first.sample()
        assert (sample.masks == truth.masks).all() and (second.masks() == truth.other_masks).all()
        assert sample.frame_names == truth.frame_names
        # JPEG at quality 95 with full colour resolution; noise of the background is what costs.
        assert np.abs(sample.frames.astype(int) - truth.frames).mean() < 4
        some = first.sample([3, 0, 3])
        assert (some.masks == truth.masks[[3, 0, 3]]).all() and some.frames.shape[0] == 3
        kinds.add(truth.kind)
    assert {"several", "absent"} <= kinds


# pycocotools is built for an older numpy.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pycocotools_reads_the_masks(split):
    from pycocotools import mask as coco

    tracks = json.loads((split / "mask_dict.json").read_text())
    truth = MovingShapes(CONFIG)[10]
    for number in range(len(truth.object_masks)):
        for t, code in enumerate(tracks[str(number)]):
            assert (coco.decode(code).astype(bool) == truth.object_masks[number, t]).all()


def test_a_split_without_truth(tmp_path):
    folder = tmp_path / "valid"
    to_mevis(folder, MovingShapes(CONFIG), range(2), with_masks=False)
    entry = json.loads((folder / "meta_expressions.json").read_text())["videos"]["train_000000"]
    assert set(entry["expressions"]["0"]) == {"exp"} and not (folder / "mask_dict.json").exists()
    video = Mevis(folder)[0]
    assert video.frames.read([1]).shape == (1, 56, 64, 3)
    with pytest.raises(InputError, match="train_000000/0 are not public"):
        video.masks()


def test_a_null_mask_is_empty(split, tmp_path):
    folder = copied(split, tmp_path)
    meta = json.loads((folder / "meta_expressions.json").read_text())
    name = "train_000011"
    tracks = json.loads((folder / "mask_dict.json").read_text())
    first = meta["videos"][name]["expressions"]["0"]["anno_id"][0]
    tracks[str(first)][2] = None
    (folder / "mask_dict.json").write_text(json.dumps(tracks))
    items = {item.name: item for item in Mevis(folder)}
    assert not items[f"{name}/0"].masks([2]).any() and items[f"{name}/0"].masks([1]).any()


def test_version_two_is_version_one_and_more_sentences(split, tmp_path):
    folder = copied(split, tmp_path)
    meta = json.loads((folder / "meta_expressions.json").read_text())
    name = "train_000011"
    expressions = meta["videos"][name]["expressions"]
    # Sentences without target, in both spellings, one of several objects, and keys that version 1 does not have.
    both = sorted({*expressions["0"]["anno_id"], *expressions["1"]["anno_id"]})
    expressions["9"] = {"exp": "nothing here", "obj_id": [], "anno_id": [], "audio": "x.wav"}
    expressions["10"] = {"exp": "nothing either", "obj_id": []}
    expressions["11"] = {"exp": "all", "obj_id": [0, 1], "anno_id": both, "type": {"motion": True}}
    (folder / "meta_expressions.json").write_text(json.dumps({**meta, "version": 2}))
    first, second = ({item.name: item for item in Mevis(path)} for path in (split, folder))
    assert second.keys() - first.keys() == {f"{name}/{key}" for key in (9, 10, 11)} and len(both) > 1
    for key, item in first.items():
        assert second[key].text == item.text and (second[key].masks() == item.masks()).all()
    assert second[f"{name}/9"].text == "nothing here" and not second[f"{name}/9"].masks().any()
    assert not second[f"{name}/10"].masks().any()
    assert (second[f"{name}/11"].masks() == (first[f"{name}/0"].masks() | first[f"{name}/1"].masks())).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "meta_expressions.json").unlink(), "meta_expressions.json is missing"),
        (lambda f: (f / "JPEGImages/train_000011/00003.jpg").unlink(), "00003.jpg is missing"),
        (lambda f: (f / "JPEGImages/train_000011").rename(f / "gone"), "train_000011 is missing"),
        (lambda f: (f / "meta_expressions.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "meta_expressions.json").write_text("[]"), "has not the form"),
        (lambda f: (f / "mask_dict.json").write_text("{}"), "which mask_dict.json lacks"),
        (lambda f: (f / "JPEGImages/train_000011/00002.jpg").write_bytes(b"x"), "00002.jpg"),
    ],
)
def test_errors_name_the_file(split, tmp_path, damage, message):
    folder = copied(split, tmp_path)
    damage(folder)
    with pytest.raises(InputError, match=message):
        source = Mevis(folder)
        source[2].sample()


def test_a_name_cannot_lead_out_of_the_folder(split, tmp_path):
    folder = copied(split, tmp_path)
    text = (folder / "meta_expressions.json").read_text()
    for name in ("../x", "/etc/x", "..", ""):
        (folder / "meta_expressions.json").write_text(text.replace('"00003"', json.dumps(name)))
        with pytest.raises(InputError, match="no plain file name"):
            Mevis(folder)


def test_one_item_an_anchor(split):
    source = Mevis(split, clip_frames=2)
    assert len(source) == 32 * 3 and [source[i].anchor for i in range(4)] == [0, 2, 4, 0]


def test_the_source_is_pickled_without_its_masks(split):
    source = Mevis(split)
    source[0]
    again = pickle.loads(pickle.dumps(source))
    assert "_tracks" not in again.__dict__ and (again[0].masks() == source[0].masks()).all()


def test_real_clips_keep_their_gaps(shared_data):
    root = shared_data / "davis16_mini"
    frames = root / "JPEGImages" / "480p"
    source = Mevis(root / "expressions" / "mevis_style", frames=frames)
    assert len(source) == 30 and len(source.clips) == 10
    assert sum(len(clip.frames) for clip in source.clips.values()) == 421
    swan = source[0]
    assert swan.frames.names[:3] == ("00000", "00002", "00004") and swan.frames.size() == (480, 854)
    from PIL import Image

    for item in (source[0], source[8], source[26]):
        places = [0, len(item.frames) // 2, len(item.frames) - 1]
        sample = item.sample(places)
        assert sample.frames.shape == (3, 480, 854, 3)
        for mask, name in zip(sample.masks, sample.frame_names, strict=True):
            truth = np.asarray(Image.open(root / "Annotations" / "480p" / item.video / f"{name}.png"))
            assert (mask == (truth > 0)).all()


def test_a_folder_of_frames_without_a_list(tmp_path):
    from PIL import Image

    for name in ("f10", "f2", "f1"):
        Image.new("RGB", (4, 3), (int(name[1:]), 0, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    folder = FrameFolder(tmp_path)
    assert folder.names == ("f1", "f2", "f10") and len(folder) == 3 and folder.size() == (3, 4)
    assert folder.read([2, 0])[:, 0, 0, 0].tolist() == [10, 1]
    Image.new("RGB", (5, 3)).save(tmp_path / "f2.png")
    with pytest.raises(InputError, match=r"f2.png has size \(3, 5\)"):
        folder.read()
    with pytest.raises(InputError, match="f3.jpg is missing"):
        FrameFolder(tmp_path, ["f1", "f3"])


def test_predictions_come_back(tmp_path):
    sample = MovingShapes(CONFIG)[0]
    folder = tmp_path / "out"
    mevis.write_prediction(folder, sample.video, "0", sample.frame_names, sample.masks)
    assert (mevis.read_prediction(folder, sample.video, "0", sample.frame_names) == sample.masks).all()
    (folder / sample.video / "0" / "00002.png").unlink()
    with pytest.raises(InputError, match=r"00002.png is missing \(1 of 5"):
        mevis.read_prediction(folder, sample.video, "0", sample.frame_names)


@pytest.fixture(scope="module")
def ref(tmp_path_factory):
    root = tmp_path_factory.mktemp("ref-davis")
    to_ref_davis(root, held_out(CONFIG), range(4))
    return root


def test_ref_davis_holds_four_sentences_an_object(ref):
    clips = ref_davis.read_clips(ref, "valid")
    assert list(clips) == [f"held_out_{i:06d}" for i in range(4)]
    for index, (video, clip) in enumerate(clips.items()):
        labels = ref_davis.read_label_maps(ref, "valid", video, clip.frames)
        truth = held_out(CONFIG)[index]
        assert [item.objects for item in clip.expressions.values()] == [
            (number // 4 + 1,) for number in range(len(clip.expressions))
        ]
        for number in range(1, labels.max() + 1):
            assert any(((labels == number) == masks).all() for masks in truth.object_masks)
        # The main sentence of an attribute clip is among those of its target.
        assert labels.max() == len(clip.expressions) // 4 >= 2
    listing = (ref / "DAVIS/ImageSets/2017/val.txt").read_text().split()
    assert listing == sorted(clips)
    assert (ref / "DAVIS/Annotations_unsupervised/480p/held_out_000003/00004.png").is_file()


def test_the_per_expression_protocol_counts_ids_as_strings(ref):
    clips = ref_davis.read_clips(ref, "valid")
    order = ref_davis.annotation_order(clips)
    assert [key for video, key in order if video == "held_out_000000"][:4] == ["0", "1", "10", "11"]
    tracks = ref_davis.read_mask_dict(ref / "valid" / "mask_dict.pkl")
    assert len(tracks) == len(order)
    for number, (video, key) in enumerate(order):
        labels = ref_davis.read_label_maps(ref, "valid", video, clips[video].frames)
        masks = mevis.union([tracks[str(number)]], range(5), labels.shape[1:], key)
        assert (masks == (labels == int(key) // 4 + 1)).all()


def test_a_mask_pickle_may_hold_plain_values_only(tmp_path):
    path = tmp_path / "mask_dict.pkl"
    path.write_bytes(pickle.dumps({"0": print}))
    with pytest.raises(InputError, match="builtins.print"):
        ref_davis.read_mask_dict(path)
    path.write_bytes(pickle.dumps({0: [{"size": [1, 1], "counts": b"01"}, None]}, protocol=2))
    assert ref_davis.read_mask_dict(path) == {"0": [{"size": [1, 1], "counts": b"01"}, None]}


def test_merging_takes_the_best_object_above_background(tmp_path):
    scores = np.zeros((2, 1, 2, 3), np.float32)
    scores[0, 0] = [[0.9, 0.6, 0.5], [0.49, 0.2, 0.0]]
    scores[1, 0] = [[0.8, 0.7, 0.5], [0.0, 0.95, 0.1]]
    labels = ref_davis.merge_objects(scores)
    # By hand: 0.5 counts (only scores below are dropped), equal scores go to the first object.
    assert labels.tolist() == [[[1, 2, 1], [0, 2, 0]]]
    ref_davis.write_merged(tmp_path, 3, "swan", ["00000"], labels)
    assert (ref_davis.read_merged(tmp_path, 3, "swan", ["00000"]) == labels).all()
    with pytest.raises(InputError, match="annotators 0 to 3, not 4"):
        ref_davis.write_merged(tmp_path, 4, "swan", ["00000"], labels)
    with pytest.raises(InputError, match="00001.png is missing"):
        ref_davis.read_merged(tmp_path, 3, "swan", ["00000", "00001"])


def test_sentences_of_the_other_layouts_are_read(tmp_path):
    path = tmp_path / "meta_expressions.json"
    meta_expressions.write(path, {"v": Clip(("00000",), {"0": Expression("a", (3,))})}, object_strings=True)
    assert json.loads(path.read_text())["videos"]["v"]["expressions"]["0"]["obj_id"] == "3"
    assert meta_expressions.read(path)["v"].expressions["0"] == Expression("a", (3,))
    with pytest.raises(InputError, match="one a sentence"):
        meta_expressions.write(path, {"v": Clip(("0",), {"0": Expression("a", (1, 2))})}, object_strings=True)


def test_the_command_makes_and_checks(tmp_path, capsys):
    folder = tmp_path / "made"
    assert main(["data", "make", "-o", str(folder), "--clips", "2", "--size", "48", "64", "--frames", "5"]) == 0
    assert "2 clips with 4 sentences" in capsys.readouterr().out
    assert main(["data", "check", "mevis", str(folder), "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["splits"]
    assert (report["split"], report["sentences"]) == ("valid_u", 4)
    (folder / "valid_u/JPEGImages/held_out_000001/00000.jpg").unlink()
    assert main(["data", "check", "mevis", str(folder / "valid_u")]) == 1
    captured = capsys.readouterr()
    assert "00000.jpg is missing" in captured.err and "MeViS v2 has 50 videos and 907 sentences" in captured.out


@pytest.mark.parametrize(
    ("layout", "folder"), [("ref_davis", "ref-davis"), ("ref_youtube_vos", "ref-youtube-vos"), ("refcoco", "coco")]
)
def test_the_command_makes_other_layouts(tmp_path, capsys, layout, folder):
    assert main(["data", "make", "-o", str(tmp_path), "--clips", "1", "--layout", layout]) == 0
    assert f"written to {tmp_path / folder}" in capsys.readouterr().out
    assert main(["data", "check", layout, str(tmp_path / folder)]) == 0
    assert "no problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clips", "300"], "held_out has 1 to 256 clips"),
        (["--frames", "2"], "do not show a motion"),
        (["--from", "nowhere"], "nowhere"),
        (["--layout", "ref_davis", "--no-masks"], "no split without masks"),
        (["--layout", "ref_davis", "--split", "test"], "no split 'test'"),
    ],
)
def test_the_command_refuses_bad_input_and_writes_nothing(tmp_path, capsys, arguments, message):
    assert main(["data", "make", "-o", str(tmp_path / "made"), *arguments]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "made").exists()
