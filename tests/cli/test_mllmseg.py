"""`rvseg predict`, `eval` and `describe` over MLLMSeg itself, with small random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from rvseg_jax.core.precision import FLOAT32
from rvseg_jax.evaluation.image_jobs import evaluate, evaluate_images, from_folder, image_jobs
from rvseg_jax.evaluation.image_predictors import reading_truth
from rvseg_jax.evaluation.runner import EvaluationOptions
from rvseg_jax.input_pipeline.datasets.moving_shapes.stills import stills_held_out
from rvseg_jax.models.mllmseg.config import MLLMSegConfig
from rvseg_jax.models.mllmseg.model import MLLMSeg
from rvseg_jax.systems.mllmseg import loading
from rvseg_jax.systems.mllmseg.config import MLLMSegSystemConfig
from rvseg_jax.zoo import FOLDER


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Says `[SEG]` or `[REJ]` and nothing else, by chance."""
    folder = tmp_path_factory.mktemp("mllmseg") / "random"
    tokenizer = FOLDER / "mllmseg_tiny" / "tokenizer.json"
    config = MLLMSegSystemConfig(MLLMSegConfig.tiny(FLOAT32), size=56, answer_tokens=4)
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(lambda: MLLMSeg(config.model, rngs=nnx.Rngs(0))))
    model = nnx.merge(graph, jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), state))
    model.mask_decoder.norm.var[...] = jnp.abs(model.mask_decoder.norm.var[...]) + 0.5
    words = loading.ChatTokenizer.from_file(tokenizer)
    head = np.zeros(model.internvl.language.lm_head.kernel.shape, np.float32)
    head[:, words.token("[SEG]")] = rng.standard_normal(len(head))
    head[:, words.token("[REJ]")] = -head[:, words.token("[SEG]")]
    model.internvl.language.lm_head.kernel = nnx.Param(jnp.asarray(head))
    loading.save(folder, model, tokenizer, config=config, dtype=jnp.float32)
    return folder


def test_predict(tmp_path, rvseg, checkpoint):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "photo.png")
    phrases = ("the red circle", "the blue star", "a [SEG] <img>")
    arguments = ("predict", tmp_path / "photo.png", *phrases, "--system", "mllmseg", "--checkpoint", checkpoint)
    result = rvseg(*arguments, "-o", tmp_path / "out", "--format", "npz", "--json", system=False)
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    assert [sentence["text"] for sentence in summary["sentences"]] == list(phrases)
    masks = np.load(tmp_path / "out" / "photo.npz")["masks"]
    assert masks.shape == (3, 1, 40, 60)
    for sentence, own in zip(summary["sentences"], masks, strict=True):
        assert sentence["status"] in ("ok", "no_target") and (sentence["boxes"][0] is None) == (not own.any())
    for wrong in (["the red circle", " "], [""]):
        assert (
            rvseg("predict", tmp_path / "photo.png", *wrong, *arguments[5:], "-o", tmp_path / "no", system=False).code
            == 2
        )


def test_eval(tmp_path, rvseg, checkpoint):
    """By its own answers, and as published; what means nothing is refused."""
    arguments = ("eval", "mllmseg", "moving_shapes", "--checkpoint", checkpoint, "--limit", "2")
    tables = {}
    for name, more in (("own", ()), ("published", ("--read-truth", "--protocol", "upstream"))):
        result = rvseg(*arguments, *more, "-o", tmp_path / name, "--json", system=False)
        assert result.code == 0, result.err
        tables[name] = json.loads(result.out)
        assert tables[name]["expressions"] == {"expected": 10, "scored": 10}
        assert set(tables[name]["controls"]) == {"always_reject", "never_reject", "other_phrase"}
    assert tables["own"]["read_truth"] is False and tables["published"]["read_truth"] is True
    direct = evaluate(
        "moving_shapes",
        None,
        reading_truth(loading.load(checkpoint, dtype=None, mesh=None)),
        tmp_path / "direct",
        protocol="upstream",
        settings={},
        options=EvaluationOptions(limit=2),
    )
    assert direct.summary["overall"] == tables["published"]["overall"]
    for option in (["--whole-clip"], ["--missing", "zero"], ["--year", "2017"]):
        refused = rvseg(*arguments, *option, "-o", tmp_path / "no", system=False)
        assert refused.code == 2 and "means nothing for mllmseg" in refused.err
    assert rvseg(*arguments, "--read-truth", "--threshold", "0.4", "-o", tmp_path / "no", system=False).code == 2


def test_masks_in_folders_are_scored(tmp_path, rvseg):
    """A folder of masks of any model, here of a perfect one, on images."""
    source = stills_held_out()
    for index in range(2):
        item = source[index]
        (tmp_path / "masks" / item.name).mkdir(parents=True)
        for number, expression in enumerate(item.expressions):
            if expression.regions:
                file = tmp_path / "masks" / item.name / f"{expression.key}.png"
                Image.fromarray(item.mask(number).astype(np.uint8) * 255).save(file)
    job = image_jobs()["moving_shapes"]
    done = evaluate_images(
        source,
        from_folder(tmp_path / "masks"),
        tmp_path / "scores",
        protocols=job.protocols,
        settings={},
        options=EvaluationOptions(limit=2),
    )
    assert done.complete and done.summary["overall"]["cIoU"] == pytest.approx(1)
    assert done.summary["overall"]["N-acc"] == pytest.approx(1)


def test_describe(rvseg):
    described = json.loads(rvseg("describe", "mllmseg", "--json", system=False).out)
    assert described["parts"]["mllmseg"]["parameters"]["internvl2_5_8b"] > 8_000_000_000
