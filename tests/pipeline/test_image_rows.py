"""Rows of referring segmentation of images: draws, augmentation, masks, and the images that are replaced."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.input_pipeline.datasets.moving_shapes.stills import StillShapes, StillShapesConfig
from rvseg_jax.input_pipeline.image_referrals import Expression, ImageArray, ImageReferrals, MaskArray
from rvseg_jax.input_pipeline.image_rows import ReferringImageRow, encoded_again, mixed
from rvseg_jax.input_pipeline.loader import make_loader
from rvseg_jax.processing import mllmseg_text
from rvseg_jax.processing.image import squashed

SIZE = (20, 30)
PIXELS = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


def mask_of(number):
    mask = np.zeros(SIZE, bool)
    mask[number : number + 3, 2 * number : 2 * number + 5] = True
    return mask


def image(count, *, empty=(), name="image", texts=None):
    expressions = tuple(
        Expression(
            texts[number] if texts else f"The phrase {number}.",
            str(number),
            () if number in empty else (MaskArray(mask_of(number)),),
        )
        for number in range(count)
    )
    return ImageReferrals(name, SIZE, ImageArray(PIXELS), expressions)


class Spelled:
    """A tokeniser that keeps what it was given."""

    def __init__(self):
        self.said = []

    def __call__(self, question, answer):
        self.said.append((question, answer))
        return {"length": np.int32(len(question))}


def row_maker(**more):
    return ReferringImageRow(Spelled(), **({"size": 16, "box": (24, 32), "qualities": None} | more))


def test_all_expressions_in_order_where_there_are_few():
    make = row_maker()
    row = make(image(3, empty=[1]), np.random.default_rng(0))
    assert row["image"].shape == (16, 16, 3) and row["masks"].shape == (5, 24, 32) and row["masks"].dtype == bool
    assert row["phrases"].tolist() == [True] * 3 + [False] * 2 and row["drawn"].tolist() == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert row["sizes"].tolist() == [20, 30] and row["sizes"].dtype == np.int32
    np.testing.assert_array_equal(row["masks"][0, :20, :30], mask_of(0))
    np.testing.assert_array_equal(row["masks"][2, :20, :30], mask_of(2))
    assert row["masks"].sum() == 30 and not row["masks"][:, 20:].any() and not row["masks"][:, :, 30:].any()
    ((question, answer),) = make.tokenise.said
    assert "the phrase 0, the phrase 1, the phrase 2 in this image" in question and question.startswith("<image>\n")
    assert answer.count("[SEG]") == 2 and answer.count("[REJ]") == 1
    assert answer.index("The phrase 0") < answer.index("[REJ]") < answer.index("The phrase 2")
    assert row["length"] == len(question)


def test_draws_of_an_image_with_many_expressions():
    """Five of nine without repeats, each as likely; questions and answers of every style, independent of each other."""
    make, counts, styles = row_maker(), Counter(), Counter()
    item, rng = image(9), np.random.default_rng(1)
    for _ in range(400):
        row = make(item, rng)
        # A mask of phrase n begins in row n.
        chosen = [int(np.argwhere(mask)[0, 0]) for mask in row["masks"]]
        assert row["phrases"].all() and len(set(chosen)) == 5
        counts.update(chosen)
        texts = [f"The phrase {number}." for number in chosen]
        question, answer = make.tokenise.said[-1]
        (asked,) = [style for style in range(4) if question == mllmseg_text.question(texts, style)]
        (answered,) = [style for style in range(5) if answer == mllmseg_text.answer(texts, [False] * 5, style)]
        styles[asked, answered] += 1
    assert set(counts) == set(range(9)) and max(counts.values()) < 1.3 * min(counts.values())
    assert len(styles) == 20 and min(styles.values()) >= 5 and max(styles.values()) <= 45


def test_the_order_of_draws():
    make = row_maker(qualities=(75, 100))
    row = make(image(7), np.random.default_rng(5))
    rng = np.random.default_rng(5)
    chosen = rng.choice(7, size=5, replace=False)
    quality, answer_style, question_style = (int(rng.integers(*ends)) for ends in ((75, 101), (0, 5), (0, 4)))
    texts = [f"The phrase {n}." for n in chosen]
    expected = mllmseg_text.question(texts, question_style), mllmseg_text.answer(texts, [False] * 5, answer_style)
    assert make.tokenise.said == [expected]
    np.testing.assert_array_equal(row["image"], squashed(encoded_again(PIXELS, quality), 16))


def test_images_are_damaged_and_squashed_as_by_pillow():
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG", quality=80)
    np.testing.assert_array_equal(encoded_again(PIXELS, 80), np.asarray(Image.open(file)))
    expected = Image.fromarray(PIXELS).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(squashed(PIXELS, 16), np.asarray(expected))
    smooth = np.broadcast_to(np.arange(0, 240, 8, dtype=np.uint8)[:, None], (*SIZE, 3)).copy()
    noise = [np.abs(encoded_again(smooth, quality).astype(int) - smooth).mean() for quality in (75, 100)]
    assert noise[0] > 0.1 + noise[1]


def test_masks_squashed_like_the_image(torch):
    row = row_maker(box=None)(image(3), np.random.default_rng(0))
    assert row["masks"].shape == (5, 16, 16) and row["sizes"].tolist() == [16, 16]
    stack = torch.from_numpy(np.stack([mask_of(n) for n in range(3)]).astype(np.float32))[:, None]
    nearest = torch.nn.functional.interpolate(stack, size=(16, 16), mode="nearest")[:, 0].numpy() > 0
    np.testing.assert_array_equal(row["masks"][:3], nearest)


def test_images_beyond_the_box_are_shrunk_to_it():
    row = row_maker(box=(10, 40))(image(2), np.random.default_rng(0))
    assert row["sizes"].tolist() == [10, 15] and row["masks"].shape == (5, 10, 40)
    np.testing.assert_array_equal(row["masks"][1, :10, :15], mask_of(1)[::2, ::2])


def test_a_loss_on_padded_masks_is_that_at_the_images_own_size(torch):
    """What `sizes` is for: resizing a square's values within the box and leaving the padding out."""
    row = row_maker()(image(2), np.random.default_rng(0))
    values = np.random.default_rng(1).random((1, 16, 16)).astype(np.float32)
    height, width = row["sizes"]

    def weights(size, box):
        places = np.clip((np.arange(box) + 0.5) * (16 / size) - 0.5, 0, 15)
        return np.maximum(1 - np.abs(places[:, None] - np.arange(16)), 0)

    padded = np.einsum("hs,st,wt->hw", weights(height, 24), values[0], weights(width, 32))
    own = torch.nn.functional.interpolate(torch.from_numpy(values)[None], size=SIZE, mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(padded[:height, :width], own, atol=1e-6)
    truth = row["masks"][0]
    assert (padded * truth).sum() == pytest.approx((own * mask_of(0)).sum(), rel=1e-5)


def test_images_without_a_target_are_replaced():
    empty, other = image(4, empty=range(4), name="empty"), image(2, name="other")
    row = row_maker(others=[empty, other])(empty, np.random.default_rng(0))
    assert row["phrases"].sum() == 2 and row["drawn"].sum() == 2
    with pytest.raises(InputError, match="empty and 9 more images name nothing at all"):
        row_maker(others=[empty], tries=10)(empty, np.random.default_rng(0))
    with pytest.raises(InputError, match="empty and 2 more draws name nothing"):
        row_maker(tries=3)(empty, np.random.default_rng(0))
    # Of six expressions one names something: without others the same image is drawn of again until it is there.
    one = image(6, empty=range(1, 6))
    for seed in range(20):
        assert row_maker()(one, np.random.default_rng(seed))["drawn"].any()


def test_phrases_without_a_letter_are_not_drawn():
    make = row_maker()
    row = make(image(3, texts=["a cup", " .. ", ""]), np.random.default_rng(0))
    assert row["phrases"].sum() == 1 and "a cup in this image" in make.tokenise.said[0][0]


def test_bad_settings():
    with pytest.raises(ValueError, match="at least 1"):
        row_maker(size=0)
    with pytest.raises(ValueError, match="within 1 to 100"):
        row_maker(qualities=(90, 101))
    with pytest.raises(ValueError, match=r"returns \['masks'\], names that are taken"):
        ReferringImageRow(lambda q, a: {"masks": np.zeros(1)}, size=8, qualities=None)(
            image(1), np.random.default_rng(0)
        )
    with pytest.raises(InputError, match="no datasets"):
        mixed([])
    with pytest.raises(InputError, match="has no images"):
        mixed([[image(1)], []])


def test_datasets_in_equal_shares():
    source = mixed([[image(1, name=f"a{n}") for n in range(6)], [image(1, name=f"b{n}") for n in range(2)]])
    names = [source[index].name for index in range(len(source))]
    assert len(names) == 12 and Counter(name[0] for name in names) == {"a": 6, "b": 6}
    assert Counter(names)["a3"] == 1 and Counter(names)["b1"] == 3


def _length(question, answer):
    return {"length": np.int32(len(question) + len(answer))}


def test_rows_go_through_the_loader():
    source = StillShapes(StillShapesConfig(size=(64, 64), length=8))
    make = ReferringImageRow(_length, size=32, box=(64, 64))
    batch = next(iter(make_loader(source, transform=make, batch_size=4, seed=3)))
    assert batch["image"].shape == (4, 32, 32, 3) and batch["masks"].shape == (4, 5, 64, 64)
    assert batch["length"].shape == (4,) and (batch["drawn"].sum(1) > 0).all()
