"""Scores of referring segmentation of images, against sums written out from the scripts' rules."""

import json

import numpy as np
import pytest

from rvseg_jax.core.errors import CheckFailed, InputError
from rvseg_jax.evaluation import bootstrap, image_jobs, image_scores, report
from rvseg_jax.evaluation.image_scores import (
    GRES_OFFICIAL,
    GRES_UPSTREAM,
    NO_TARGET,
    PER_EXPRESSION,
    PLAIN,
    RES_UPSTREAM,
    ImagePrediction,
)
from rvseg_jax.evaluation.iou import IoUTotals
from rvseg_jax.evaluation.parts import Part
from rvseg_jax.evaluation.runner import EvaluationOptions
from rvseg_jax.input_pipeline.datasets.moving_shapes.stills import StillShapesConfig, stills_held_out
from rvseg_jax.input_pipeline.image_referrals import Expression, ImageArray, ImageReferrals, MaskArray

SIZE = (30, 40)


def square(x0, y0, x1, y1):
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def image(truths, *, name="image", ignored=None, boxes=None):
    """An image whose expressions name one region each, or nothing where the truth is None."""
    expressions = tuple(
        Expression(
            f"phrase {key}",
            str(key),
            () if truth is None else (MaskArray(truth),),
            (boxes[key],) if boxes else (),
            None if ignored is None else MaskArray(ignored),
        )
        for key, truth in enumerate(truths)
    )
    return ImageReferrals(name, SIZE, ImageArray(np.zeros((*SIZE, 3), np.uint8)), expressions)


def records(truths, predictions, **more):
    item = image(truths, **more)
    return [image_scores.record(item, number, one) for number, one in enumerate(predictions)]


def said(mask, status="ok"):
    return ImagePrediction(mask, status)


def drawn_at_random(count, seed):
    """Images with truths and predictions of all sorts: empty, rejected, overlapping, missed."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        truths, predictions = [], []
        for _ in range(rng.integers(1, 5)):
            x, y = rng.integers(0, 20, 2)
            truth = square(x, y, x + 12, y + 9)
            moved = np.roll(truth, rng.integers(-6, 7, 2), (0, 1)) if rng.random() < 0.8 else np.zeros(SIZE, bool)
            truths.append(None if rng.random() < 0.3 else truth)
            predictions.append(said(moved, NO_TARGET if rng.random() < 0.3 else "ok"))
        yield number, truths, predictions


CASES = list(drawn_at_random(40, 3))
IMAGES = [records(truths, predictions) for _, truths, predictions in CASES]


def pairs():
    """Truth or zeros, mask and verdict of every expression, image by image."""
    zeros = np.zeros(SIZE, bool)
    return [
        [(zeros if t is None else t, p.mask, p.status == NO_TARGET) for t, p in zip(truths, predictions, strict=True)]
        for _, truths, predictions in CASES
    ]


def test_the_script_of_res():
    shared = union = overlaps = 0.0
    by_expression, count = 0.0, 0
    for case in pairs():
        own = 0.0
        for truth, mask, _ in case:
            i, u = np.sum(truth & mask), np.sum(truth | mask)
            shared, union = shared + i, union + u
            overlap = i / (u + 1e-5) + (1.0 if u == 0 else 0.0)
            own, by_expression, count = own + overlap, by_expression + overlap, count + 1
        overlaps += own / len(case)
    table = image_scores.table(IMAGES, RES_UPSTREAM)
    assert table["cIoU"] == pytest.approx(shared / (union + 1e-10), abs=1e-12)
    assert table["gIoU"] == pytest.approx(overlaps / (len(CASES) + 1e-5), abs=1e-12)
    per = image_scores.table(IMAGES, PER_EXPRESSION)
    assert per["gIoU"] == pytest.approx(by_expression / (count + 1e-5), abs=1e-12) and per["cIoU"] == table["cIoU"]
    assert abs(per["gIoU"] - table["gIoU"]) > 1e-3 and table["expressions"] == count


def gres(official):
    shared = union = overlaps = 0.0
    tp = fn = tn = fp = count = 0
    good = dict.fromkeys((0.7, 0.8, 0.9), 0)
    for truth, mask, rejected in (one for case in pairs() for one in case):
        i, u = int(np.sum(truth & mask)), int(np.sum(truth | mask))
        count += 1
        if not truth.any():
            tp, fn = tp + rejected, fn + (not rejected)
            overlaps += 1.0 if rejected else 0.0
            union += 0 if rejected else u
            continue
        tn, fp = tn + (not rejected), fp + rejected
        if rejected and official:
            i = 0
        shared, union = shared + i, union + u
        overlaps += i / u if official else i / (u + 1e-8)
        for threshold in good:
            good[threshold] += i / u >= threshold
    if official:
        ciou, giou = shared / union, overlaps / count
    else:
        ciou, giou = shared / (union + 1e-10), overlaps / (count + 1e-5)
    return ciou, giou, tp / (tp + fn), tn / (tn + fp), {key: value / (tn + fp) for key, value in good.items()}


@pytest.mark.parametrize("protocol", [GRES_UPSTREAM, GRES_OFFICIAL], ids=lambda one: one.name)
def test_the_scripts_of_gres(protocol):
    ciou, giou, n_acc, t_acc, good = gres(protocol is GRES_OFFICIAL)
    table = image_scores.table(IMAGES, protocol)
    found = [table[name] for name in ("cIoU", "gIoU", "N-acc", "T-acc")]
    np.testing.assert_allclose(found, [ciou, giou, n_acc, t_acc], atol=1e-12, rtol=0)
    assert {key: table[f"Pr@{key}"] for key in good} == pytest.approx(good) and 0 < good[0.7] < 1
    assert n_acc not in (0, 1) and t_acc not in (0, 1)


def test_the_styles_of_gsva_and_rela_agree_with_those_of_videos():
    for protocol, style in ((GRES_UPSTREAM, "gsva"), (GRES_OFFICIAL, "rela")):
        totals = IoUTotals(style)
        for truth, mask, rejected in (one for case in pairs() for one in case):
            i, u = int((truth & mask).sum()), int((truth | mask).sum())
            totals.add(i, u, has_target=bool(truth.any()), said_empty=rejected)
        table = image_scores.table(IMAGES, protocol)
        assert (table["intersection"], table["union"]) == (totals.intersection, totals.union)
        assert table["gIoU"] == pytest.approx(totals.giou, abs=1e-6)


def test_the_triple_of_the_specification():
    """Empty and rejected; empty and 20 pixels predicted; I = 50, U = 100, rejected."""
    truth, half, twenty = square(0, 0, 15, 5), square(0, 0, 15, 5), square(0, 0, 5, 4)
    half[:] = square(5, 0, 15, 5) | square(0, 10, 5, 15)
    none = np.zeros(SIZE, bool)
    images = [records([None, None, truth], [said(none, NO_TARGET), said(twenty), said(half, NO_TARGET)])]
    assert [images[0][2][key] for key in ("intersection", "predicted", "truth")] == [50, 75, 75]
    upstream, official, plain = (image_scores.table(images, one) for one in (GRES_UPSTREAM, GRES_OFFICIAL, PLAIN))
    assert (upstream["cIoU"], upstream["gIoU"]) == pytest.approx((50 / 120, 0.5), abs=1e-5)
    assert (official["cIoU"], official["gIoU"]) == pytest.approx((0, 1 / 3))
    # What a user gets of the third is nothing: 75 pixels missed.
    assert (plain["union"], plain["gIoU"]) == (95, pytest.approx(1 / 3))
    for table in (upstream, official, plain):
        assert (table["N-acc"], table["T-acc"]) == (0.5, 0)


def test_two_samples_of_the_specification():
    first, moved = square(0, 0, 15, 5), square(5, 0, 15, 5) | square(0, 10, 5, 15)
    images = [records([first], [said(moved)]), records([square(0, 0, 4, 5)], [said(np.zeros(SIZE, bool))])]
    table = image_scores.table(images, PER_EXPRESSION)
    assert (table["cIoU"], table["gIoU"]) == pytest.approx((0.416667, 0.25), abs=1e-5)
    assert (table["Pr@0.5"], table["Pr@0.6"]) == (0.5, 0)


def test_plain_takes_an_empty_mask_for_a_rejection():
    none = np.zeros(SIZE, bool)
    images = [records([None, square(0, 0, 4, 4)], [said(none), said(none)])]
    plain, official = image_scores.table(images, PLAIN), image_scores.table(images, GRES_OFFICIAL)
    assert (plain["N-acc"], plain["T-acc"], plain["gIoU"]) == (1, 0, 0.5)
    assert (official["N-acc"], official["T-acc"], official["gIoU"]) == (0, 1, 0)


def test_pixels_that_do_not_count():
    """By hand: of the prediction's right half nothing counts, of the truth the lower row is ignored."""
    truth, ignored = square(0, 0, 4, 4), square(4, 0, 8, 4) | square(0, 3, 4, 4)
    (one,) = records([truth], [said(square(0, 0, 8, 4))], ignored=ignored)
    assert (one["intersection"], one["predicted"], one["truth"]) == (12, 12, 12)
    assert image_scores.table([[one]], PLAIN)["gIoU"] == 1


def test_boxes_of_rec():
    """Both rules by hand, and cases on which they differ."""
    agree = image_scores.table
    # x 10..20, y 5..15 is the truth; the same predicted. Upstream's ends on pixel 19 and 14: 81 of 100.
    (one,) = records([square(10, 5, 20, 15)], [said(square(10, 5, 20, 15))])
    assert one["true_box"] == [10, 5, 10, 10] and one["box"] == [10, 5, 20, 15]
    table = agree([[one]], PLAIN)
    assert (table["REC"], table["REC_upstream"]) == (1, 1)
    # 10x10 against its half: 0.5 is enough for one and not for the other, whose box is 9 by 4.
    (half,) = records([square(10, 5, 20, 15)], [said(square(10, 5, 20, 10))])
    table = agree([[half]], PLAIN)
    assert (table["REC"], table["REC_upstream"]) == (1, 0)
    # One pixel has no area for upstream. A list's box wins over the mask's.
    (pixel,) = records([square(1, 1, 2, 2)], [said(square(1, 1, 2, 2))], boxes=[(1.0, 1.0, 1.0, 1.0)])
    table = agree([[pixel]], PLAIN)
    assert (table["REC"], table["REC_upstream"]) == (1, 0)
    (rejected,) = records([square(10, 5, 20, 15)], [said(square(10, 5, 20, 15), NO_TARGET)])
    table = agree([[rejected]], PLAIN)
    assert (table["REC"], table["REC_upstream"]) == (0, 1)


def test_true_boxes_pass_through_half_precision_upstream():
    """2048.9 becomes 2048, whose overlap with 2045..2055 is 7 of 13; unrounded it would be 6.1 of 13.9."""
    one = {"box": [2045, 0, 2056, 11], "predicted": 1, "status": "ok", "true_box": [2048.9, 0.0, 10.0, 10.0]}
    assert float(np.float16(2048.9)) == 2048 and image_scores._boxes_agree_upstream(one)
    assert not image_scores._boxes_agree(one | {"box": [2045, 0, 2055, 10]})
    # 2051.1 becomes 2052, and 2045..2055 is too far from it; 2051.1 itself is too.
    assert not image_scores._boxes_agree_upstream(one | {"true_box": [2051.1, 0.0, 10.0, 10.0]})


def test_masks_of_another_size_or_type_are_refused():
    for wrong in (np.zeros((30, 41), bool), np.zeros(SIZE, np.uint8)):
        with pytest.raises(InputError, match="image/0: the mask predicted is"):
            records([square(0, 0, 2, 2)], [said(wrong)])


def test_ratio_intervals():
    rng = np.random.default_rng(0)
    above, below = rng.integers(0, 50, 60), rng.integers(50, 100, 60)
    found = bootstrap.ratio_interval(above, below, resamples=4000)
    chosen = np.random.default_rng(5).integers(60, size=(4000, 60))
    expected = np.quantile(above[chosen].sum(1) / below[chosen].sum(1), [0.025, 0.975])
    assert found.mean == pytest.approx(above.sum() / below.sum())
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.01)
    with pytest.raises(ValueError, match="above 0"):
        bootstrap.ratio_interval(np.ones(3), np.zeros(3))
    with pytest.raises(ValueError, match="two lists"):
        bootstrap.ratio_interval(np.ones(3), np.ones(2))


CONFIG = StillShapesConfig(size=(64, 64))


class FirstStills:
    """The first held-out stills."""

    dropped, left_out = {}, ()

    def __init__(self, count):
        self._stills, self._count = stills_held_out(CONFIG), count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return self._stills[index]

    def expression_counts(self):
        return self._stills.expression_counts()[: self._count]


def knowing(item, texts):
    """Knows every phrase of an image, among them those of other objects, by its own truth."""
    known = {one.text: number for number, one in enumerate(item.expressions)}
    found = []
    for text in texts:
        mask = item.mask(known[text]) if text in known else np.zeros(item.size, bool)
        found.append(said(mask, "ok" if mask.any() else NO_TARGET))
    return found


def run(folder, predict, *, count=4, **more):
    more = {"options": EvaluationOptions(), "controls": True} | more
    return image_jobs.evaluate_images(
        FirstStills(count), predict, folder, protocols=(PLAIN, GRES_OFFICIAL), settings={"dataset": "stills"}, **more
    )


def test_a_perfect_model_and_its_controls(tmp_path):
    done = run(tmp_path / "run", knowing)
    assert done.complete and done.summary["expressions"] == {"expected": 20, "scored": 20}
    overall = done.summary["overall"]
    assert overall["cIoU"] == overall["gIoU"] == overall["N-acc"] == overall["T-acc"] == overall["Pr@0.9"] == 1
    assert overall["no_target"] == 6 and overall["gIoU_interval"]["low"] == 1
    controls = done.summary["controls"]
    assert (controls["always_reject"]["gIoU"], controls["always_reject"]["N-acc"]) == (pytest.approx(6 / 20), 1)
    assert controls["always_reject"]["T-acc"] == 0 and controls["never_reject"]["T-acc"] == 1
    # Masks of what is rejected are empty here, which plain takes for a rejection; ReLA's rule does not.
    assert controls["other_phrase"]["gIoU"] == 0 and controls["other_phrase"]["expressions"] == 14
    assert done.summary["margins"]["other_phrase"]["mean"] == 1
    assert set(done.summary["by_kind"]) <= {"attribute", "relation", "near_miss", "wrong_relation", "nothing_like"}
    written = json.loads((tmp_path / "run/summary.json").read_text())
    assert written["overall"] == overall and written["protocols"]["official"]["gIoU"] == 1


def test_parts_add_up_and_are_resumed(tmp_path):
    whole = run(tmp_path / "whole", knowing)
    for index in range(3):
        last = run(tmp_path / "parts", knowing, options=EvaluationOptions(part=Part(index, 3)))
    assert last.summary == whole.summary
    assert (tmp_path / "parts/samples.jsonl").read_bytes() == (tmp_path / "whole/samples.jsonl").read_bytes()
    asked = []

    def counting(item, texts):
        asked.append(item.name)
        return knowing(item, texts)

    lines = (tmp_path / "whole/samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "whole/samples.jsonl").write_text("".join(lines[:3]))
    again = run(tmp_path / "whole", counting, options=EvaluationOptions(resume=True))
    assert again.summary == whole.summary and set(asked) == {"held_out_000003"}


def test_expressions_are_asked_together_or_alone(tmp_path):
    calls = []

    def predict(item, texts):
        calls.append(len(texts))
        return knowing(item, texts)

    joint = run(tmp_path / "joint", predict, count=2, controls=False)
    alone = run(tmp_path / "alone", predict, count=2, controls=False, alone=True)
    assert calls == [5, 5] + [1] * 10 and joint.scores == alone.scores
    assert not joint.summary["alone"] and alone.summary["alone"]


def test_too_few_predictions_and_lists_of_another_length(tmp_path):
    done = run(tmp_path / "few", lambda item, texts: knowing(item, texts[:-1]), controls=False)
    assert not done.complete and len(done.failed) == 4 and "4 predictions for 5" in done.failed[0]["error"]
    assert done.summary["expressions"] == {"expected": 20, "scored": 0}
    run(tmp_path / "run", knowing, controls=False)
    path = tmp_path / "run/samples.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2]["expressions"].pop()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(CheckFailed, match="held_out_000002 has 4 scored expressions, the list has 5"):
        run(tmp_path / "run", knowing, controls=False, options=EvaluationOptions(resume=True))


def test_masks_that_were_written_score_the_same(tmp_path):
    def shifted(item, texts):
        return [said(np.roll(one.mask, 3, axis=1), one.status) for one in knowing(item, texts)]

    own = run(tmp_path / "own", shifted, controls=False, masks_folder=tmp_path / "masks")
    read = run(tmp_path / "read", image_jobs.from_folder(tmp_path / "masks"), controls=False)
    assert own.summary["overall"] == read.summary["overall"] and 0.3 < own.summary["overall"]["gIoU"] < 1
    with pytest.raises(InputError, match="all of them together"):
        image_jobs.from_folder(tmp_path / "masks")(FirstStills(1)[0], ["another phrase"])


def test_jobs_name_what_they_do_not_have(tmp_path):
    options = EvaluationOptions()
    cases = [
        ({"name": "cityscapes"}, "not scored on 'cityscapes'"),
        ({"name": "refcoco"}, "needs its folder"),
        ({"name": "refcoco", "root": tmp_path, "protocol": "official"}, "no protocol 'official' here"),
        ({"name": "grefcoco", "root": tmp_path, "split": "test"}, "no split 'test'"),
    ]
    for given, message in cases:
        with pytest.raises(InputError, match=message):
            image_jobs.evaluate(
                predict=knowing, folder=tmp_path / "x", settings={}, options=options, **{"root": None} | given
            )
    assert image_jobs.names() == tuple(image_jobs.image_jobs(CONFIG))


def test_the_report_names_protocols_and_counts(tmp_path, capsys):
    report.show(run(tmp_path / "run", knowing, count=2), tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == PLAIN.text and "expressions: expected 10, scored 10" in lines
    (official,) = [line for line in lines if line.startswith("as official: ")]
    assert "cIoU 1.0000  gIoU 1.0000  N-acc 1.0000" in official and not any(
        line.startswith("as plain") for line in lines
    )
    (reject,) = [line for line in lines if line.startswith("always_reject: ")]
    assert "gIoU 0.3000" in reject and "none" not in reject
    assert any(line.startswith("margin over other_phrase: 1.0000") for line in lines)
