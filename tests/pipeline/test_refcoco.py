"""RefCOCO in REFER's layout and in FlowRVS's: sentences and masks are the generator's."""

import json
import pickle
import shutil

import numpy as np
import pytest

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import refcoco, rle
from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapes, MovingShapesConfig, to_refcoco
from rvseg_jax.input_pipeline.datasets.moving_shapes.writers import single_targets
from rvseg_jax.input_pipeline.datasets.registry import open_dataset

CONFIG = MovingShapesConfig(size=(56, 64), frames=5)


@pytest.fixture(scope="module", params=[True, False], ids=["polygons", "rle"])
def root(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("coco")
    to_refcoco(folder, MovingShapes(CONFIG), range(4), polygons=request.param)
    return folder


def only_listed(root, tmp_path):
    """The same data as FlowRVS has it: no pickle, and the images beside the datasets."""
    folder = shutil.copytree(root, tmp_path / "listed")
    (folder / "refcoco/refs(unc).p").unlink()
    (folder / "refcoco/instances.json").unlink()
    (folder / "images/mscoco/images/train2014").rename(folder / "train2014")
    return folder


@pytest.mark.parametrize("layout", ["refer", "listed"])
def test_sentences_and_masks_are_the_generators(root, tmp_path, layout):
    source = open_dataset("refcoco", root if layout == "refer" else only_listed(root, tmp_path), "train", clip_frames=1)
    wanted = {
        (f"COCO_train2014_{index + 1:012d}", text): (truth, target)
        for index, truth in enumerate(MovingShapes(CONFIG)[i] for i in range(4))
        for text, target in single_targets(truth)
    }
    assert len(source) == len(wanted) > 30
    names = set()
    for item in pickle.loads(pickle.dumps([source[i] for i in range(len(source))])):
        truth, target = wanted.pop((item.video, item.text))
        sample = item.sample()
        assert (sample.masks == truth.object_masks[target, :1]).all() and sample.frames.shape == (1, 56, 64, 3)
        assert np.abs(sample.frames[0].astype(int) - truth.frames[0]).mean() < 4
        names.add(item.name)
    assert not wanted and len(names) == len(source)


# pycocotools is built for an older numpy.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pycocotools_draws_the_same_masks(root):
    from pycocotools import mask as coco

    entries = json.loads((root / "refcoco/instances.json").read_text())["annotations"]
    shapes = [entry["segmentation"] for entry in entries]
    for entry, shape in zip(entries, shapes, strict=True):
        codes = coco.frPyObjects(shape, 56, 64)
        union = coco.decode(codes if isinstance(codes, list) else [codes]).any(axis=-1)
        assert (rle.decode(refcoco.mask_of(shape, (56, 64), "x")) == union).all()
        x, y, width, height = entry["bbox"]
        assert union.sum() == entry["area"] == union[y : y + height, x : x + width].sum()


def test_masks_of_every_kind_are_united():
    box = [[0, 0, 2, 0, 2, 2, 0, 2]]
    code = rle.encode(np.eye(4, dtype=bool))
    both = rle.decode(refcoco.mask_of([*box, code], (4, 4), "x"))
    expected = np.eye(4, dtype=bool)
    expected[:2, :2] = True
    assert (both == expected).all()
    assert rle.decode(refcoco.mask_of([code], (4, 4), "x")).sum() == 4 and not rle.area(
        refcoco.mask_of([], (4, 4), "x")
    )
    for shape, message in (
        ("x", "x/1: a segmentation is str"),
        ([[1, 2, 3]], "3 numbers"),
        (rle.empty(5, 4), r"size \[5, 4\], the image \[4, 4\]"),
    ):
        with pytest.raises(InputError, match=message):
            refcoco.mask_of(shape, (4, 4), "x/1")


def test_splits_as_refer_has_them():
    """By hand from the rule: a letter for the test sets, a word for test, equality otherwise."""
    cases = {("testA", "testA"), ("testAB", "testA"), ("testAB", "testB"), ("test", "test"), ("testAB", "test")}
    for own in ("train", "val", "test", "testA", "testB", "testAB"):
        for wanted in ("train", "val", "test", "testA", "testB"):
            expected = own == wanted or (own, wanted) in cases or (wanted == "test" and own.startswith("test"))
            assert refcoco.in_split(own, wanted) == expected, (own, wanted)


def test_every_set_has_its_own_splits(tmp_path):
    for name, split in (("refcoco+", "testA"), ("refcocog", "test")):
        to_refcoco(tmp_path, MovingShapes(CONFIG), range(2), dataset=name, split=split)
        assert len(open_dataset(name, tmp_path, split)) > 10
    assert len(open_dataset("refcoco+", tmp_path, "val")) == 0
    with pytest.raises(InputError, match="refcocog by umd has no split 'testA'; choose from train, val, test"):
        open_dataset("refcocog", tmp_path, "testA")
    with pytest.raises(InputError, match=r"refs\(google\).p is missing, and so is"):
        open_dataset("refcocog_google", tmp_path, "train")
    (tmp_path / "refcocog/refs(umd).p").rename(tmp_path / "refcocog/refs(google).p")
    assert len(open_dataset("refcocog_google", tmp_path, "val")) == 0


class Command:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_cannot_run_anything(root, tmp_path, capsys, protocol):
    folder = shutil.copytree(root, tmp_path / "copy")
    path = folder / "refcoco/refs(unc).p"
    path.write_bytes(pickle.dumps([Command()], protocol=protocol))
    with pytest.raises(InputError, match=r"no pickle of plain values \(it refers to .*print\)"):
        open_dataset("refcoco", folder, "train")
    assert "executed" not in capsys.readouterr().out


def test_a_pickle_of_python_2_is_read(root, tmp_path):
    """Byte strings and unicode of protocol 0, as Python 2 wrote them by hand."""
    folder = shutil.copytree(root, tmp_path / "copy")
    # [{'split': 'train', 'ref_id': 7L, 'image_id': 1, 'ann_id': 1, 'sentences': [{'sent': u'caf\xe9', 'sent_id': 3}]}]
    (folder / "refcoco/refs(unc).p").write_bytes(
        b"(lp0\n(dp1\nS'split'\np2\nS'train'\np3\nsS'ref_id'\nL7L\nsS'image_id'\nI1\nsS'ann_id'\nI1\n"
        b"sS'sentences'\n(lp4\n(dp5\nS'sent'\nVcaf\xe9\nsS'sent_id'\nI3\nsasa."
    )
    source = open_dataset("refcoco", folder, "train")
    assert len(source) == 1 and source[0].text == "caf\xe9" and source[0].expression == "3"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f / "images"), "no images of COCO's train2014"),
        (lambda f: (f / "refcoco/instances.json").unlink(), "instances.json is missing"),
        (lambda f: (f / "refcoco/instances.json").write_text("[]"), "not the form of COCO's"),
        (lambda f: (f / "refcoco/refs(unc).p").write_bytes(b"x"), "no pickle of plain values"),
        (lambda f: (f / "refcoco/refs(unc).p").write_bytes(pickle.dumps([{}])), "not the form of REFER's"),
        (lambda f: shutil.rmtree(f / "refcoco"), r"refs\(unc\).p is missing, and so is"),
        (lambda f: next((f / "images").rglob("*1.jpg")).unlink(), "000000000001.jpg is missing"),
        (
            lambda f: (f / "refcoco/instances.json").write_text(
                (f / "refcoco/instances.json").read_text().replace('"file_name": "', '"file_name": "../')
            ),
            "no plain file name",
        ),
    ],
)
def test_errors_name_what_is_wrong(root, tmp_path, damage, message):
    folder = shutil.copytree(root, tmp_path / "copy")
    (folder / "refcoco/instances_refcoco_train.json").unlink()
    damage(folder)
    with pytest.raises(InputError, match=message):
        source = open_dataset("refcoco", folder, "train")
        source[0].sample()


def test_references_have_to_fit(root, tmp_path):
    folder = shutil.copytree(root, tmp_path / "copy")
    path = folder / "refcoco/instances.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({**entries, "annotations": entries["annotations"][1:]}))
    with pytest.raises(InputError, match="ref 1 names annotation 1, which instances.json lacks"):
        open_dataset("refcoco", folder, "train")
    path.write_text(json.dumps({**entries, "images": entries["images"] * 2}))
    with pytest.raises(InputError, match="8 entries with 4 ids"):
        open_dataset("refcoco", folder, "train")


def test_real_phrases_are_matched_by_their_ids(shared_data, root, tmp_path):
    """Real ref ids and phrases as REFER's pickle: each comes back once, with its own split."""
    phrases = json.loads((shared_data / "refer_samples/sample_expressions_testA.json").read_text())["predictions"]
    folder = shutil.copytree(root, tmp_path / "copy")
    refs = [
        {"ref_id": item["ref_id"], "image_id": 1 + number % 4, "ann_id": 1, "split": ("testA", "val")[number % 2]}
        | {"sentences": [{"sent_id": number, "sent": item["sent"]}]}
        for number, item in enumerate(phrases)
    ]
    (folder / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    both = [open_dataset("refcoco", folder, split) for split in ("testA", "val")]
    assert [item.text for item in both[0]] == [item["sent"] for item in phrases[::2]]
    assert [item.text for item in both[1]] == [item["sent"] for item in phrases[1::2]]
