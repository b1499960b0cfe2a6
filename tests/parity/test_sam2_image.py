"""SAM 2's image half against the original (golden file, alive where installed) and transformers' `Sam2Model`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.convert import from_torch, to_torch
from rvseg_jax.core.precision import BFLOAT16
from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.models.sam2.image_predictor import ImagePredictor, ObjectPrompt
from rvseg_jax.models.sam2.prompt_encoder import Prompts
from rvseg_jax.parity import golden as golden_cases
from rvseg_jax.parity import kinds
from rvseg_jax.parity.compare import compare
from rvseg_jax.parity.weights_rule import rule_weights
from rvseg_jax.processing.sam2 import square_image

SIZE = 128
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
POINTS = np.array([[[20, 30], [90, 80]], [[64, 64], [5, 120]], [[100, 10], [40, 77]]], np.float32)
LABELS = np.array([[1, 0], [1, 1], [0, 1]], np.int32)
BOXES = np.array([[10, 20, 70, 90], [30, 5, 120, 60], [50, 50, 127, 127]], np.float32)
LOGITS = RNG.standard_normal((3, SIZE // 4, SIZE // 4)).astype(np.float32) * 4


@pytest.fixture(scope="module")
def original(torch):
    """A small `Sam2Model` whose every branch matters."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.sam2 import configuration_sam2 as configs

    trunk = configs.Sam2HieraDetConfig(
        hidden_size=16,
        num_attention_heads=1,
        image_size=[SIZE, SIZE],
        blocks_per_stage=[1, 2, 3, 2],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 6, 2],
        global_attention_blocks=[4],
    )
    vision = configs.Sam2VisionConfig(
        backbone_config=trunk,
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    )
    prompts = configs.Sam2PromptEncoderConfig(hidden_size=32, image_size=SIZE)
    decoder = configs.Sam2MaskDecoderConfig(
        hidden_size=32,
        mlp_dim=64,
        iou_head_hidden_dim=24,
        dynamic_multimask_stability_delta=0.1,
        dynamic_multimask_stability_thresh=0.59,
    )
    config = configs.Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    model = transformers.Sam2Model(config).eval()
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            drawn = rng.standard_normal(tensor.shape)
            if tensor.ndim > 1 and "embed" not in name:
                drawn /= np.sqrt(np.prod(tensor.shape[1:]))
            elif tensor.ndim == 1:
                drawn = 0.2 * drawn + ("norm" in name and name.endswith("weight"))
            tensor.copy_(torch.from_numpy(np.asarray(drawn, np.float32)))
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(
            model.shared_image_embedding.positional_embedding
        )
    return model


@pytest.fixture(scope="module")
def weights(original):
    return {key: value.numpy().copy() for key, value in original.state_dict().items()}


@pytest.fixture(scope="module")
def config(original):
    return Sam2Config.from_upstream(original.config.to_dict()).image_only()


@pytest.fixture(scope="module")
def predictor(weights, config):
    return ImagePredictor(from_torch("sam2", weights, config))


def theirs(torch, model, *, several, points, labels, boxes=None, logits=None, dtype=None):
    """(low-resolution logits, IoU, object score) of transformers, which takes input masks for one object at a time."""
    pixels = torch.from_numpy(np.moveaxis(square_image(IMAGE, SIZE), -1, 0))[None]
    given = {"input_points": points, "input_labels": labels, "input_boxes": boxes}
    calls = [slice(0, 3)] if logits is None else [slice(row, row + 1) for row in range(3)]
    made = []
    for rows in calls:
        inputs = {name: torch.from_numpy(value[rows])[None] for name, value in given.items() if value is not None}
        if logits is not None:
            inputs["input_masks"] = torch.from_numpy(logits[rows])[:, None]
        inputs = {name: value if "labels" in name else value.to(dtype) for name, value in inputs.items()}
        with torch.no_grad():
            made.append(model(pixel_values=pixels.to(dtype), multimask_output=several, **inputs))
    found = [(out.pred_masks[0], out.iou_scores[0], out.object_score_logits[0, :, 0]) for out in made]
    return [np.concatenate([array.float().numpy() for array in arrays]) for arrays in zip(*found, strict=True)]


def close(ours, reference, bar=1e-4):
    ours, reference = np.asarray(ours), np.asarray(reference)
    assert ours.shape == reference.shape
    assert np.abs(ours - reference).max() <= bar * np.abs(reference).max()


def asked(**arrays):
    names = list(arrays)
    return [ObjectPrompt(**dict(zip(names, row, strict=True))) for row in zip(*arrays.values(), strict=True)]


def test_golden_case_passes(golden):
    case = golden_cases.read(golden / "sam2" / "image_predictor.json")
    report = compare(case, kinds.run(case))
    assert report.passed, [row for row in report.rows if not row.passed]
    assert all(row.status == "ok" for row in report.rows), "every tap is exposed"


def test_every_prompt_matches_transformers(torch, original, predictor):
    image = predictor.encode(IMAGE)
    for several in (True, False):
        for boxes, logits in ((None, None), (BOXES, LOGITS)):
            more = {name: value for name, value in (("box", boxes), ("logits", logits)) if value is not None}
            found = predictor.predict(image, asked(points=POINTS, labels=LABELS, **more), multimask_output=several)
            masks, iou, score = theirs(
                torch, original, several=several, points=POINTS, labels=LABELS, boxes=boxes, logits=logits
            )
            close(found.low_res, np.clip(masks, -32, 32))
            close(found.iou, iou)
            close(found.object_score, score)
            assert (masks > 0).mean() > 0.02 and (masks < 0).mean() > 0.02
            # The image has the model's size, four times that of the logits.
            wanted = torch.nn.functional.interpolate(torch.from_numpy(masks), scale_factor=4.0, mode="bilinear").numpy()
            close(found.logits, wanted)


def test_an_unstable_mask_gives_way_to_the_best(predictor):
    prompts, image = asked(points=POINTS, labels=LABELS), predictor.encode(IMAGE)
    single = predictor.predict(image, prompts, multimask_output=False)
    several = predictor.predict(image, prompts, multimask_output=True)
    best = several.low_res[np.arange(3), several.iou.argmax(axis=1)]
    replaced = np.abs(single.low_res[:, 0] - best).max(axis=(1, 2)) < 1e-5
    assert replaced.any() and not replaced.all(), "both happen, so both are compared with transformers"


def test_objects_may_have_different_numbers_of_points(predictor):
    image = predictor.encode(IMAGE)
    one = ObjectPrompt(points=POINTS[0, :1], labels=LABELS[0, :1])
    first, second = asked(points=POINTS[1:], labels=LABELS[1:])
    together = predictor.predict(image, [one, first, second])
    apart = predictor.predict(image, [one]), predictor.predict(image, [first, second, first])
    close(together.low_res, np.concatenate([apart[0].low_res, apart[1].low_res[:2]]), 1e-5)
    close(together.iou, np.concatenate([apart[0].iou, apart[1].iou[:2]]), 1e-5)


def test_gradients_match_transformers(torch, original, weights, config):
    """Of a loss on all masks and their IoU, with respect to every weight."""
    rng = np.random.default_rng(3)
    mask_weights = rng.standard_normal((3, 3, SIZE // 4, SIZE // 4)).astype(np.float32)
    pixels = square_image(IMAGE, SIZE)
    out = original(
        pixel_values=torch.from_numpy(np.moveaxis(pixels, -1, 0))[None],
        input_points=torch.from_numpy(POINTS)[None],
        input_labels=torch.from_numpy(LABELS)[None],
        multimask_output=True,
    )
    expected_loss = (out.pred_masks[0] * torch.from_numpy(mask_weights)).mean() + out.iou_scores.square().mean()
    original.zero_grad()
    expected_loss.backward()
    expected = {name: one.grad.numpy() for name, one in original.named_parameters() if one.grad is not None}

    graph, state = nnx.split(from_torch("sam2", weights, config))

    def loss(state):
        model = nnx.merge(graph, state)
        found = model.segment_image(
            model.encode_image(jnp.asarray(pixels)[None]), Prompts(POINTS, LABELS), multimask_output=True
        )
        return (found.masks * mask_weights).mean() + jnp.square(found.iou).mean()

    value, gradients = jax.jit(jax.value_and_grad(loss))(state)
    np.testing.assert_allclose(value, expected_loss.item(), rtol=1e-4)
    found = to_torch("sam2", nnx.merge(graph, gradients), config, layout="transformers")
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    moved = {name for name, gradient in expected.items() if np.abs(gradient).max() > 1e-6 * largest}
    assert len(moved) > 150
    for name in moved:
        # Relative to the leaf, and to all where a leaf's own gradients nearly cancel.
        bar = 1e-4 * max(np.abs(expected[name]).max(), 1e-3 * largest)
        np.testing.assert_allclose(found[name], expected[name], atol=bar, rtol=0, err_msg=name)


def test_bfloat16_is_as_near_as_torch(torch, original, weights, config, predictor):
    import copy

    reference, iou, _ = theirs(torch, original, several=True, points=POINTS, labels=LABELS)
    halved = copy.deepcopy(original).to(torch.bfloat16)
    torch_masks, torch_iou, _ = theirs(torch, halved, several=True, points=POINTS, labels=LABELS, dtype=torch.bfloat16)
    rounded = ImagePredictor(from_torch("sam2", weights, dataclasses.replace(config, precision=BFLOAT16)))
    found = rounded.predict(rounded.encode(IMAGE), asked(points=POINTS, labels=LABELS))
    reference, torch_masks = (np.clip(masks, -32, 32) for masks in (reference, torch_masks))
    assert np.abs(found.low_res - reference).mean() <= 1.25 * np.abs(torch_masks - reference).mean()
    assert np.abs(found.iou - iou).mean() <= 0.05 * np.abs(iou).mean()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["t", "l"])
def test_published_size_matches_the_original(torch, shared_data, size):
    """SAM 2.1 tiny and large at 1024 px on a real frame, with random weights."""
    build = pytest.importorskip("sam2.build_sam")
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    from rvseg_jax.formats.frames import read_image

    model = build.build_sam2(f"configs/sam2.1/sam2.1_hiera_{size}.yaml", None, device="cpu", apply_postprocessing=False)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    converted = rule_weights(shapes, 0, [])
    model.load_state_dict({key: torch.from_numpy(value) for key, value in converted.items()})
    frame = read_image(sorted((shared_data / "davis16_mini" / "JPEGImages").rglob("*.jpg"))[0])
    height, width = frame.shape[:2]
    points = np.array([[0.5 * width, 0.5 * height], [0.2 * width, 0.3 * height]], np.float32)
    labels, box = np.array([1, 0], np.int32), np.array([0.2 * width, 0.2 * height, 0.8 * width, 0.9 * height])
    original = SAM2ImagePredictor(model)
    original.set_image(frame)
    ours = ImagePredictor(from_torch("sam2", converted))
    image = ours.encode(frame)
    embedding = np.moveaxis(original._features["image_embed"][0].numpy(), 0, -1)
    without = image.features.embedding[0] + converted["no_mem_embed"][0, 0]
    close(without, embedding)
    for several in (True, False):
        masks, iou, low_res = original.predict(points, labels, box, multimask_output=several, return_logits=True)
        found = ours.predict(image, [ObjectPrompt(points, labels, box)], multimask_output=several)
        for name, a, b in (
            ("masks", found.logits, masks),
            ("iou", found.iou, iou),
            ("low_res", found.low_res, low_res),
        ):
            print(f"{name}, several={several}: {np.abs(a[0] - b).max() / np.abs(b).max():.1e} of {np.abs(b).max():.3g}")
            close(a[0], b)
        assert ((found.logits[0] > 0) == (masks > 0)).mean() > 0.9999
