"""Images with several expressions each: every layout is read as it was written, and what is damaged is named."""

import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from rvseg_jax.cli import main
from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import reason_seg, rle
from rvseg_jax.formats.referred_images import usable
from rvseg_jax.input_pipeline.checks import check_dataset
from rvseg_jax.input_pipeline.datasets.image_sets import open_images
from rvseg_jax.input_pipeline.datasets.moving_shapes.still_writers import (
    to_grefcoco,
    to_refcoco_stills,
    to_referral_json,
)
from rvseg_jax.input_pipeline.datasets.moving_shapes.stills import StillShapes, StillShapesConfig
from rvseg_jax.input_pipeline.datasets.referral_json import ReferralJson

STILLS = StillShapes(StillShapesConfig(size=(72, 64), split="held_out", several=0.3))
TRUTH = [STILLS[index] for index in range(4)]
SIZE = (6, 8)


@pytest.fixture(scope="module", params=[True, False], ids=["polygons", "rle"])
def root(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("coco")
    to_grefcoco(folder, STILLS, range(4), split="val", polygons=request.param)
    to_refcoco_stills(folder / "plain", STILLS, range(4), split="testA", polygons=request.param)
    return folder


def same(item, truth, wanted):
    """The expressions of an item are those of the truth at places `wanted`, in that order, with equal masks."""
    assert [one.text for one in item.expressions] == [truth.expressions[number].text for number in wanted]
    for place, number in enumerate(wanted):
        np.testing.assert_array_equal(item.mask(place), truth.mask(number))
        assert item.ignored(place) is None
        assert item.expressions[place].boxes == truth.expressions[number].boxes
    assert item.size == truth.size and np.abs(item.image().astype(int) - truth.image()).mean() < 4


def test_grefcoco_holds_everything_in_order(root):
    source = open_images("grefcoco", root, "val")
    assert len(source) == 4 and source.expression_counts() == [5] * 4 and not source.dropped and not source.left_out
    kinds = [one.kind for truth in TRUTH for one in truth.expressions]
    assert "several" in kinds and "near_miss" in kinds
    for item, truth in zip(pickle.loads(pickle.dumps([source[i] for i in range(4)])), TRUTH, strict=True):
        same(item, truth, range(5))
        assert [len(one.regions) for one in item.expressions] == [len(ids) for ids in truth.targets]


def test_refcoco_holds_single_objects_grouped(root):
    source = open_images("refcoco", root / "plain", "testA")
    for item, truth in zip((source[i] for i in range(4)), TRUTH, strict=True):
        groups = {}
        for number, ids in enumerate(truth.targets):
            if len(ids) == 1:
                groups.setdefault(ids, []).append(number)
        same(item, truth, [number for group in groups.values() for number in group])
    with pytest.raises(InputError, match="no split 'test'; choose from train, val, testA, testB"):
        open_images("refcoco", root / "plain", "test")
    assert len(open_images("refcoco", root / "plain", "train")) == 0


def test_json_lines_are_read_back_exactly(tmp_path):
    to_referral_json(tmp_path, STILLS, range(4), split="mine")
    source = open_images("referral_json", tmp_path, "mine")
    for item, truth in zip((source[i] for i in range(4)), TRUTH, strict=True):
        assert item.name == truth.name and [one.kind for one in item.expressions] == [
            one.kind for one in truth.expressions
        ]
        np.testing.assert_array_equal(item.image(), truth.image())
        for number in range(5):
            np.testing.assert_array_equal(item.mask(number), truth.mask(number))


def box(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def drawn(*corners):
    mask = np.zeros(SIZE, bool)
    for x0, y0, x1, y1 in corners:
        mask[y0:y1, x0:x1] = True
    return mask


def write_coco(root, dataset, refs, annotations, *, file="COCO_train2014_1.jpg", refs_file=None, images=None):
    """Lists of one image of 6 x 8 pixels and the image itself."""
    folder = root / dataset
    folder.mkdir(parents=True, exist_ok=True)
    entries = [{"id": 1, "width": SIZE[1], "height": SIZE[0], "file_name": file}]
    shapes = [{"image_id": 1, "category_id": 1, "iscrowd": 0, **one} for one in annotations]
    (folder / "instances.json").write_text(json.dumps({"images": entries, "annotations": shapes, "categories": []}))
    refs = [
        {"ref_id": number, "image_id": 1, "split": "train", "category_id": 1, **ref} for number, ref in enumerate(refs)
    ]
    path = folder / (refs_file or "refs(unc).p")
    if path.suffix == ".json":
        path.write_text(json.dumps(refs))
    else:
        path.write_bytes(pickle.dumps(refs, protocol=2))
    place = root / (images or "images/mscoco/images/train2014") / file
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(place)


def sentences(*texts, first=0):
    return [{"sent_id": first + place, "sent": text, "tokens": [], "raw": text} for place, text in enumerate(texts)]


def test_refclef_has_lists_of_rles_and_folders_of_images(tmp_path):
    codes = [rle.encode(drawn((0, 0, 2, 2))), rle.encode(drawn((5, 1, 7, 3)))]
    as_list = {"size": list(SIZE), "counts": rle.runs(drawn((3, 4, 6, 6))).tolist()}
    annotations = [{"id": 7, "segmentation": codes, "bbox": [0, 0, 7, 3]}, {"id": 9, "segmentation": [as_list]}]
    refs = [
        {"ann_id": 9, "sentences": sentences("grass"), "split": "testC"},
        {"ann_id": 7, "sentences": sentences("both", "the two", first=1), "split": "testABC"},
    ]
    write_coco(tmp_path, "refclef", refs, annotations, file="25/images/8.jpg", images="images/saiapr_tc-12")
    (item,) = open_images("refclef", tmp_path, "testC")
    assert [one.text for one in item.expressions] == ["grass", "both", "the two"] and item.name == "25/images/8"
    np.testing.assert_array_equal(item.mask(0), drawn((3, 4, 6, 6)))
    np.testing.assert_array_equal(item.mask(2), drawn((0, 0, 2, 2), (5, 1, 7, 3)))
    assert item.expressions[0].boxes == (None,) and item.expressions[1].boxes == ((0, 0, 7, 3),)
    assert item.image().shape == (*SIZE, 3) and len(open_images("refclef", tmp_path, "testA")) == 1
    (report,) = check_dataset("refclef", tmp_path, "testC")
    assert not report.problems and (report.videos, report.sentences, report.masks) == (1, 3, 3)


def test_ref_zom_names_one_several_or_none(tmp_path):
    annotations = [
        {"id": 1, "segmentation": [box(0, 0, 2, 2)], "bbox": [0, 0, 2, 2]},
        {"id": 2, "segmentation": [box(3, 3, 6, 6)], "bbox": [3, 3, 3, 3]},
    ]
    refs = [
        {"ann_id": 1, "sentences": sentences("one"), "source": "one"},
        {"ann_id": [1, 2], "sentences": sentences("two", first=1), "source": "many"},
        {"ann_id": [], "sentences": sentences("none", first=2), "source": "zero"},
        {"ann_id": 2, "sentences": sentences("of test", first=3), "split": "test"},
    ]
    write_coco(tmp_path, "refzom", refs, annotations, refs_file="Ref_ZOM.p", images="images/val2014")
    (item,) = open_images("refzom", tmp_path, "train")
    masks = [drawn((0, 0, 2, 2)), drawn((0, 0, 2, 2), (3, 3, 6, 6)), drawn()]
    for number, mask in enumerate(masks):
        np.testing.assert_array_equal(item.mask(number), mask)
    assert [len(one.regions) for one in item.expressions] == [1, 2, 0]


def test_polygons_that_cannot_be_drawn_are_left_away_by_name(tmp_path):
    odd, short, good = [0, 0, 1, 1, 2, 2, 3], [0, 0, 4, 4], box(1, 1, 3, 3)
    assert usable([odd, short, good]) == ([good], 2) and usable([]) == ([], 0)
    annotations = [
        {"id": 1, "segmentation": [short, good, odd]},
        {"id": 2, "segmentation": [odd]},
        {"id": 3, "segmentation": []},
    ]
    refs = [
        {"ann_id": [1, 2], "sentences": sentences("one of two"), "no_target": False},
        {"ann_id": [2], "sentences": sentences("lost", first=1), "no_target": False},
        {"ann_id": [3], "sentences": sentences("nothing drawn", first=2)},
        {"ann_id": [-1], "sentences": sentences("nothing there", first=3), "no_target": True},
    ]
    write_coco(tmp_path, "grefcoco", refs, annotations, refs_file="grefs(unc).json")
    source = open_images("grefcoco", tmp_path, "train")
    assert source.dropped == {"annotation 1 of image 1": 2, "annotation 2 of image 1": 1}
    assert source.left_out == ("COCO_train2014_1.jpg/1",) and source.expression_counts() == [3]
    (item,) = source
    np.testing.assert_array_equal(item.mask(0), drawn((1, 1, 3, 3)))
    assert [len(one.regions) for one in item.expressions] == [1, 1, 0] and not item.mask(1).any()
    (report,) = check_dataset("grefcoco", tmp_path)
    assert not report.problems and report.sentences == 3
    assert report.notes == [
        "1 expressions name nothing",
        "1 expressions have an empty mask",
        "3 polygons of 2 objects cannot be drawn, the first of annotation 1 of image 1",
        "1 expressions left out with them: COCO_train2014_1.jpg/1",
    ]


GOOD = {"id": 1, "segmentation": [box(0, 0, 2, 2)]}


@pytest.mark.parametrize(
    ("ref", "annotation", "message"),
    [
        ({"ann_id": [-1, 1]}, GOOD, "names -1, no object, beside others"),
        ({"ann_id": [1], "no_target": True}, GOOD, "has no target, but names"),
        ({"ann_id": [4]}, GOOD, "ref 0 names annotation 4, which instances.json lacks"),
        ({"ann_id": [1], "image_id": 5}, GOOD, "ref 0 names image 5"),
        ({"ann_id": [1], "sentences": [{"sent_id": "../x", "sent": "x"}]}, GOOD, "no plain file name"),
        ({"ann_id": [1], "sentences": [{"sent_id": 1}]}, GOOD, "has not the form of REFER's"),
        ({"ann_id": [1]}, {"id": 1, "segmentation": {"size": [6, 9], "counts": [54]}}, r"0: a mask has size \[6, 9\]"),
        ({"ann_id": [1]}, {"id": 1, "segmentation": {"size": [6, 8], "counts": [40]}}, "add up to 40 pixels"),
        ({"ann_id": [1]}, {"id": 1, "segmentation": 5}, "a segmentation is int"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, ref, annotation, message):
    whole = {"sentences": sentences("x")} | ref
    write_coco(tmp_path, "grefcoco", [whole], [annotation], refs_file="grefs(unc).json")
    with pytest.raises(InputError, match=message):
        open_images("grefcoco", tmp_path, "train")[0].mask(0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "grefcoco/instances.json").write_text('{"images": [{"id": 1'), "instances.json cannot be read"),
        (
            lambda f: (f / "grefcoco/instances.json").write_text(
                (f / "grefcoco/instances.json").read_text().replace('"height": 6', '"height": 0')
            ),
            r"instances.json: image 1 has size \(0, 8\)",
        ),
        (lambda f: (f / "grefcoco/grefs(unc).json").unlink(), r"holds no grefs\(unc\).json and no grefs\(unc\).p"),
        (lambda f: shutil.rmtree(f / "images"), "holds no images of grefcoco; looked for images/mscoco"),
        (lambda f: next((f / "images").rglob("*.jpg")).unlink(), "COCO_train2014_1.jpg is missing"),
        (lambda f: next((f / "images").rglob("*.jpg")).write_bytes(b""), "COCO_train2014_1.jpg cannot be read"),
        (
            lambda f: Image.new("RGB", (9, 9)).save(next((f / "images").rglob("*.jpg"))),
            r"has size \(9, 9\), the list says \(6, 8\)",
        ),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    ref = {"ann_id": [1], "sentences": sentences("x")}
    write_coco(tmp_path, "grefcoco", [ref], [GOOD], refs_file="grefs(unc).json")
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        open_images("grefcoco", tmp_path, "train")[0].image()


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_the_check_lists_what_cannot_be_read(tmp_path, data):
    ref = {"ann_id": [1], "sentences": sentences("x", "y")}
    write_coco(tmp_path, "grefcoco", [ref], [GOOD], refs_file="grefs(unc).json")
    next((tmp_path / "images").rglob("*.jpg")).write_bytes(data)
    (report,) = check_dataset("grefcoco", tmp_path)
    assert len(report.problems) == 1 and "COCO_train2014_1.jpg cannot be read" in report.problems[0]
    (tmp_path / "grefcoco/instances.json").write_text("{")
    (report,) = check_dataset("grefcoco", tmp_path)
    assert len(report.problems) == 1 and "instances.json cannot be read" in report.problems[0]


def test_grefcoco_is_read_from_a_pickle_too(tmp_path):
    write_coco(tmp_path, "grefcoco", [{"ann_id": [1], "sentences": sentences("x")}], [GOOD], refs_file="grefs(unc).p")
    assert len(open_images("grefcoco", tmp_path, "train")) == 1


# ReasonSeg


def write_question(folder, name, shapes, *, text=("what is edible?",), is_sentence=True, encoding="utf-8"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(folder / f"{name}.jpg")
    entry = {"shapes": shapes, "text": list(text), "is_sentence": is_sentence}
    (folder / f"{name}.json").write_bytes(json.dumps(entry, ensure_ascii=False).encode(encoding))


def shape(label, x0, y0, x1, y1):
    """A rectangle with both corners inside, as OpenCV fills it."""
    return {"label": label, "points": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]}


SHAPES = [
    shape("target", 3, 1, 5, 2),  # 6 pixels, over the larger ignored one
    shape("Ignore", 2, 0, 6, 3),  # 20
    shape("flag", 0, 0, 7, 5),  # not painted at all
    shape("target", 0, 4, 1, 5),  # 4
]


def test_reason_seg_is_painted_from_large_to_small(tmp_path):
    write_question(tmp_path / "val", "b", SHAPES, text=["the caf\u00e9", "again"], encoding="cp1252")
    write_question(tmp_path / "val", "a", SHAPES[:1], is_sentence=False)
    source = open_images("reason_seg", tmp_path, "val")
    assert [item.name for item in source] == ["a", "b"] and source.expression_counts() == [1, 1]
    item = source[1]
    assert item.expressions[0].text == "the caf\u00e9" and item.expressions[0].kind == "long"
    assert source[0].expressions[0].kind == "short" and item.size == SIZE
    target = drawn((3, 1, 6, 3), (0, 4, 2, 6))
    np.testing.assert_array_equal(item.mask(0), target)
    np.testing.assert_array_equal(item.ignored(0), drawn((2, 0, 7, 4)) & ~target)
    assert open_images("reason_seg", tmp_path, "val", all_texts=True).expression_counts() == [1, 2]
    (report,) = check_dataset("reason_seg", tmp_path)
    assert not report.problems and "2 expressions have pixels that do not count" in report.notes


def test_reason_seg_paints_as_its_own_loader_does():
    """Random shapes against OpenCV, on an image that is wider than high."""
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for _ in range(30):
        height, width = 23, 41
        shapes = [
            {"label": str(rng.choice(["target", "ignored", "flag"])), "points": (rng.random((5, 2)) * 40).tolist()}
            for _ in range(4)
        ]
        masks = []
        for one in shapes:
            mask = np.zeros((height, width), np.uint8)
            cv2.polylines(mask, np.array([one["points"]], np.int32), True, 1, 1)
            cv2.fillPoly(mask, np.array([one["points"]], np.int32), 1)
            masks.append(mask)
        expected = np.zeros((height, width), np.uint8)
        for place in sorted(range(4), key=lambda place: (-int(masks[place].sum()), -place)):
            if shapes[place]["label"] != "flag":
                expected[masks[place] > 0] = 255 if "ignore" in shapes[place]["label"] else 1
        kept = tuple(reason_seg.Shape(one["label"], one["points"]) for one in shapes if one["label"] != "flag")
        np.testing.assert_array_equal(reason_seg.paint(kept, (height, width), "x"), expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "a.json").unlink(), "a.jpg has no a.json beside it"),
        (lambda f: (f / "a.jpg").unlink(), "a.json has no a.jpg beside it"),
        (lambda f: (f / "a.json").write_text("{"), "a.json cannot be read as JSON"),
        (lambda f: (f / "a.json").write_text("[]"), "a.json has not the form"),
        (lambda f: (f / "a.json").write_text('{"shapes": [], "text": "x", "is_sentence": true}'), "text is 'x'"),
        (lambda f: (f / "a.json").write_text('{"shapes": [], "text": ["x"], "is_sentence": 1}'), "is_sentence is 1"),
        (
            lambda f: (f / "a.json").write_text(
                '{"shapes": [{"label": "x", "points": [1, 2]}], "text": ["x"], "is_sentence": true}'
            ),
            "a/0: a polygon has shape",
        ),
    ],
)
def test_damaged_questions_are_named(tmp_path, damage, message):
    write_question(tmp_path / "val", "a", SHAPES)
    damage(tmp_path / "val")
    with pytest.raises(InputError, match=message):
        open_images("reason_seg", tmp_path, "val")[0].mask(0)


# Users' own JSON


def write_json(folder, entries, *, lines=True, pixels=None):
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8) if pixels is None else pixels).save(folder / "a.png")
    text = "".join(json.dumps(entry) + "\n" for entry in entries) if lines else json.dumps(entries)
    path = folder / ("mine.jsonl" if lines else "mine.json")
    path.write_text(text)
    return path


@pytest.mark.parametrize("lines", [True, False])
def test_masks_of_users_in_every_form(tmp_path, lines):
    Image.fromarray(drawn((6, 4, 8, 6)).astype(np.uint8) * 7).save(tmp_path / "m.png")
    code = rle.encode(drawn((3, 3, 5, 5)))
    said = [
        {"text": "polygon\u2028here", "masks": box(0, 0, 2, 2)},
        {"text": "list", "masks": [box(0, 0, 2, 2), code, "m.png"]},
        {"text": "rle", "masks": code, "id": "r", "kind": "easy"},
        {"text": "file", "masks": "m.png"},
        {"text": "nothing", "masks": None},
        {"text": "nothing", "masks": []},
    ]
    path = write_json(tmp_path, [{"image": "a.png", "expressions": said}], lines=lines)
    (item,) = ReferralJson(path)
    first, code_mask, file_mask = drawn((0, 0, 2, 2)), drawn((3, 3, 5, 5)), drawn((6, 4, 8, 6))
    expected = [first, first | code_mask | file_mask, code_mask, file_mask, drawn(), drawn()]
    for number, mask in enumerate(expected):
        np.testing.assert_array_equal(item.mask(number), mask)
    assert [one.key for one in item.expressions] == ["0", "1", "r", "3", "4", "5"]
    assert [bool(one.regions) for one in item.expressions] == [True] * 4 + [False] * 2
    assert item.expressions[2].kind == "easy" and item.expressions[0].text == "polygon\u2028here"


def test_images_of_users_are_upright_unless_masks_are_not(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "v.json").write_text(json.dumps([{"image": "a.jpg", "expressions": [{"text": "x", "masks": None}]}]))
    assert ReferralJson(tmp_path, "v")[0].image().shape == (8, 6, 3)
    assert ReferralJson(tmp_path, "v", upright=False)[0].image().shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image": "../a.png", "expressions": [{"text": "x", "masks": None}]}, "no plain file name"),
        ({"image": "/a.png", "expressions": [{"text": "x", "masks": None}]}, "no plain file name"),
        ({"image": "a.png", "expressions": []}, "at least one"),
        ({"image": "a.png", "expressions": [{"text": "x"}]}, "expression 1 lacks masks"),
        ({"image": "a.png", "expressions": [{"text": "x", "mask": None, "masks": None}]}, "has mask; known are"),
        ({"image": "a.png", "expressions": [{"text": 3, "masks": None}]}, "text is 3"),
        ({"image": "a.png", "expressions": [{"text": "x", "masks": [True]}]}, "masks hold True"),
        ({"image": "a.png", "expressions": [{"text": "x", "masks": "../m.png"}]}, "no plain file name"),
        ({"image": "a.png", "id": "../b", "expressions": [{"text": "x", "masks": None}]}, "no plain file name"),
        ({"image": "b.png", "expressions": [{"text": "x", "masks": None}]}, "b.png cannot be read"),
        ({"image": "a.png", "expressions": [{"text": "x", "masks": "a.png"}]}, "has colours"),
        ({"expressions": []}, "entry 1 lacks image"),
        (5, "entry 1 is 5"),
    ],
)
def test_entries_of_another_form_are_named(tmp_path, entry, message):
    with pytest.raises(InputError, match=message):
        ReferralJson(write_json(tmp_path, [entry]))[0].mask(0)


def test_lost_polygons_of_users_are_listed(tmp_path):
    said = [{"text": "x", "masks": [[0, 0, 4, 4]]}, {"text": "y", "masks": [[0, 0, 4, 4], box(0, 0, 2, 2)]}]
    source = ReferralJson(write_json(tmp_path, [{"image": "a.png", "expressions": said}]))
    assert source.left_out == ("a/0",) and source.dropped == {"a/0": 1, "a/1": 1} and source.expression_counts() == [1]
    twice = [{"image": "a.png", "expressions": [{"text": "x", "masks": None}]}] * 2
    with pytest.raises(InputError, match="a second entry is called 'a'"):
        ReferralJson(write_json(tmp_path, twice))


def test_unknown_names():
    with pytest.raises(InputError, match="no dataset of images is called 'grefcocco'; choose from grefcoco,"):
        open_images("grefcocco", ".", "val")


@pytest.mark.parametrize(
    ("layout", "folder", "name", "expressions"),
    [
        ("refcoco_stills", "coco", "refcoco", 14),
        ("grefcoco", "coco", "grefcoco", 20),
        ("referral_json", "referrals", "referral_json", 20),
    ],
)
def test_the_command_makes_and_checks(tmp_path, capsys, layout, folder, name, expressions):
    made = ["data", "make", "--layout", layout, "--clips", "4", "--size", "64", "64", "-o", str(tmp_path)]
    assert main(made) == 0 and f"4 images with {expressions} expressions" in capsys.readouterr().out
    assert main(["data", "check", name, str(tmp_path / folder), "--json", "--decode"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["splits"]
    assert (report["split"], report["videos"], report["sentences"]) == ("val", 4, expressions)
    assert ("6 expressions name nothing" in report["notes"]) == (expressions == 20)
    assert main([*made, "--frames", "3"]) == 2 and "single images" in capsys.readouterr().err
    assert main([*made[:-4], "20", "20", "-o", str(tmp_path)]) == 2 and "too small" in capsys.readouterr().err
