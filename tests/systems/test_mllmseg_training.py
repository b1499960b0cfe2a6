"""MLLMSeg's training task: what it asks for, what moves, and what does not."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rvseg_jax as rv
from rvseg_jax.core.errors import InputError
from rvseg_jax.core.precision import FLOAT32
from rvseg_jax.core.tree_paths import flatten, matches
from rvseg_jax.input_pipeline.datasets.moving_shapes import vocabulary
from rvseg_jax.input_pipeline.datasets.moving_shapes.stills import StillShapesConfig
from rvseg_jax.models.internvl.model import InternVL
from rvseg_jax.models.mllmseg.config import MLLMSegConfig
from rvseg_jax.models.mllmseg.mask_decoder import BatchStatistics
from rvseg_jax.parts import bundle
from rvseg_jax.processing import chat, mllmseg_text
from rvseg_jax.systems.mllmseg.training import (
    TRAINED,
    TRAINED_PUBLISHED,
    SegmentTask,
    SegmentTrainingConfig,
    moved,
)
from rvseg_jax.training.state import trainable
from rvseg_jax.training.tasks import UPDATES

TINY = MLLMSegConfig.tiny()
NORM = "mask_decoder/norm"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "tokenizer.json"
    said = [*mllmseg_text.QUESTIONS, *(text for pair in mllmseg_text.ANSWERS for text in pair), ". ,", *vocabulary()]
    chat.write_word_tokenizer([text.replace("{}", " ") for text in said], file, marks=("[SEG]", "[REJ]"))
    return file


@pytest.fixture(scope="module")
def config(words):
    return SegmentTrainingConfig(
        model=TINY,
        tokenizer=str(words),
        stills=StillShapesConfig(size=(56, 56), expressions=(1, 3)),
        size=56,
        text_length=128,
        expressions=3,
        box=(0, 0),
        qualities=(0, 0),
        remat="none",
        lora_rank=2,
        lora_alpha=4.0,
        lora_dropout=0.2,
        validation_images=1,
    )


@pytest.fixture(scope="module")
def task(config):
    return SegmentTask(config, precision=FLOAT32)


@pytest.fixture(scope="module")
def batch(task):
    source, row = task.source("train"), task.transform("train")
    rows = [row(source[index], np.random.default_rng(index)) for index in range(2)]
    return {name: np.stack([one[name] for one in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def params(task):
    return jax.jit(task.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def gradient(task):
    return jax.jit(jax.value_and_grad(task.loss, has_aux=True))


def test_rows_hold_questions_answers_and_masks(task, batch):
    assert batch["image"].shape == (2, 56, 56, 3) and batch["masks"].shape == (2, 3, 56, 56)
    tokenizer = chat.ChatTokenizer.from_file(task.config.tokenizer)
    for row in range(2):
        count = int(batch["phrases"][row].sum())
        at = batch["ids"][row][batch["marks"][row][:count]]
        assert [tokenizer.decode([number]) for number in at] == [
            "[SEG]" if drawn else "[REJ]" for drawn in batch["drawn"][row][:count]
        ]
        assert batch["labelled"][row][batch["marks"][row][:count]].all()
        assert not batch["labelled"][row][~batch["valid"][row]].any()
        assert int((batch["ids"][row] == tokenizer.image_id).sum()) == 4
        np.testing.assert_array_equal(batch["masks"][row].any((1, 2)), batch["drawn"][row])
    short = dataclasses.replace(task.config, text_length=20)
    with pytest.raises(InputError, match="text_length is 20"):
        SegmentTask(short, precision=FLOAT32).transform("train")(task.source("train")[0], np.random.default_rng(0))


def test_gradients_reach_all_but_statistics_and_dead_weights(task, params, batch, gradient):
    """Adapters begin at zero, so the first half of each has no gradient yet; neither have the queries and keys of a
    memory of one token."""
    (loss, terms), slopes = gradient(params, batch, jax.random.key(1))
    assert np.isfinite(loss)
    weights = task.config.losses
    parts = weights.text * terms["text"] + weights.focal * terms["focal"] + weights.dice * terms["dice"]
    np.testing.assert_allclose(loss, parts, rtol=1e-6)
    still = {path for path, slope in flatten(slopes).items() if not np.asarray(slope).any()}
    dead = r"lora_a$|norm/(mean|var)$|text/cross_attn/[qk]/|self_attn/k/bias$|attn/qkv/bias$|upsample/offset"
    assert {path for path in still if not re.search(dead, path)} == set()
    assert {f"{NORM}/mean", f"{NORM}/var"} <= still
    assert any(path.endswith("lora_a") for path in still)


def test_published_and_own_sets_of_trained_parameters(params):
    own, _ = trainable(params, TRAINED)
    assert all(
        re.search(r"^mask_decoder|lora_[ab]$|language/(norm|embed_tokens|lm_head)", path) for path in flatten(own)
    )
    published, frozen = trainable(params, TRAINED_PUBLISHED["qwen2"])
    assert "internvl/language/lm_head/kernel" in flatten(frozen)
    assert not any(matches(path, ["vision|projector|language/layers.*kernel"]) for path in flatten(published))
    assert flatten(trainable(params, TRAINED_PUBLISHED["internlm2"])[0]).keys() == flatten(own).keys()
    adapted = {path for path in flatten(published) if path.endswith("lora_a")}
    assert len(adapted) == 7 and not any("lm_head" in path for path in adapted)


def test_statistics_move_as_torchs(torch):
    """One image after the other, those without a mask left out."""
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((count, 5)).astype(np.float32) for count in (12, 7, 9)]
    norm = torch.nn.BatchNorm1d(5).train()
    with torch.no_grad():
        norm.running_mean.copy_(torch.from_numpy(rng.standard_normal(5).astype(np.float32)))
    mean, var = norm.running_mean.numpy().copy(), norm.running_var.numpy().copy()
    for image in images:
        norm(torch.from_numpy(image))
    seen = BatchStatistics(
        jnp.asarray(np.stack([*(image.mean(0) for image in images[:2]), np.full(5, 9.0), images[2].mean(0)])),
        jnp.asarray(np.stack([*(image.var(0) for image in images[:2]), np.full(5, 9.0), images[2].var(0)])),
        jnp.array([12.0, 7.0, 0.0, 9.0]),
    )
    found = moved(jnp.asarray(mean), jnp.asarray(var), seen)
    np.testing.assert_allclose(found["mean"], norm.running_mean.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["var"], norm.running_var.numpy(), rtol=1e-5)


def test_it_learns_what_it_sees(task, params, batch, gradient):
    """The same two images again and again; the statistics move without a gradient."""
    optimiser = optax.adam(3e-3)
    state = optimiser.init(params)
    losses, now = [], params
    for step in range(30):
        (loss, terms), slopes = gradient(now, batch, jax.random.key(step))
        losses.append(float(loss))
        updates, state = optimiser.update(slopes, state)
        now = optax.apply_updates(now, updates)
        for path, value in terms[UPDATES].items():
            now["mask_decoder"]["norm"][path.rsplit("/", 1)[1]] = value
    assert losses[-1] < 0.5 * losses[0]
    assert np.abs(np.asarray(now["mask_decoder"]["norm"]["mean"])).max() > 0


def test_padding_is_no_label_unless_asked(config, params, batch):
    plain = SegmentTask(dataclasses.replace(config, lora_dropout=0.0, dropout=False), precision=FLOAT32)
    padded = SegmentTask(dataclasses.replace(plain.config, label_padding=True), precision=FLOAT32)
    key = jax.random.key(0)
    both = [jax.jit(one.loss)(params, batch, key)[1] for one in (plain, padded)]
    lengths = batch["valid"].sum(1)
    assert lengths[0] != lengths[1]
    other = {**batch, "ids": np.where(batch["valid"], batch["ids"], 7)}
    again = jax.jit(plain.loss)(params, other, key)[1]
    np.testing.assert_allclose(again["text"], both[0]["text"], rtol=1e-6)
    assert float(both[1]["text"]) != pytest.approx(float(both[0]["text"]), rel=1e-3)
    np.testing.assert_allclose(both[0]["dice"], both[1]["dice"], rtol=1e-6)


def test_a_vocabulary_grows_from_internvl(config, task, tmp_path):
    """Two more words: small rows to read, the mean of all to say; everything else as it was."""
    language = dataclasses.replace(TINY.internvl.language, vocab_size=TINY.internvl.language.vocab_size - 2)
    cfg = dataclasses.replace(TINY.internvl, language=language)
    base = InternVL(cfg, rngs=nnx.Rngs(0))
    bundle.save(tmp_path, "internvl", {"internvl": base})
    own = SegmentTask(dataclasses.replace(config, pretrained=(("internvl", str(tmp_path)),)), precision=FLOAT32)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        jax.eval_shape(own.init, jax.random.key(0)),
    )
    given = flatten(own.restore_pretrained(target))
    head, table = given["internvl/language/lm_head/kernel"], given["internvl/language/embed_tokens/embedding"]
    assert head.shape == (48, 120) and table.shape == (120, 48)
    np.testing.assert_allclose(head[:, -1], base.language.lm_head.kernel[...].mean(1), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(head[:, :118], base.language.lm_head.kernel[...])
    assert 0 < np.abs(table[-2:]).max() < 0.2
    np.testing.assert_array_equal(given["internvl/vision/cls_token"], base.vision.cls_token[...])
    assert not any(path.startswith("mask_decoder") or "lora" in path for path in given)
    with pytest.raises(ValueError, match="mllmseg or internvl"):
        dataclasses.replace(config, pretrained=(("sam2", "x"),))


def test_its_export_answers(task, params, tmp_path):
    """The recipe's adapters are merged, and the system reads what training wrote."""
    scores = task.evaluate(params, step=0)
    assert scores.keys() == {"ciou", "t_acc", "n_acc"} and all(0 <= value <= 1 for value in scores.values())
    task.export(params, tmp_path / "out")
    predictor = rv.load("mllmseg", tmp_path / "out", answer_tokens=4)
    item = task.source("validation")[0]
    found = predictor.predict(item.image()[None], [item.expressions[0].text])
    assert found.masks.shape == (1, 1, 56, 56) and found.status[0] in ("ok", "no_target", "no_seg_token")
