"""Losses of SAM 2's fine-tuning against PyTorch's own functions, and the forward pass over a clip against inference."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.models.sam2.model import Sam2
from rvseg_jax.models.sam2.tracking import Place
from rvseg_jax.models.sam2.tracking_programs import TrackingPrograms
from rvseg_jax.models.sam2.tracking_state import empty_state
from rvseg_jax.trackers.sam2.clips import clip_losses, simulated_prompts, taught, track_clip
from rvseg_jax.trackers.sam2.losses import TrackerLossConfig, frame_losses, true_iou

CFG = replace(Sam2Config.tiny(), tracking=replace(Sam2Config.tiny().tracking, memory_dtype="float32"))
ROWS, FRAMES = 2, 3


def reference_losses(torch, cfg, logits, iou, valid, score, masks, supervised):
    """Row by row, with torch's own functions where there are any."""
    functional = torch.nn.functional
    totals = {"focal": 0.0, "dice": 0.0, "iou": 0.0, "object_score": 0.0}
    for row in range(len(masks)):
        if not supervised[row]:
            continue
        truth, found = masks[row], []
        present = truth.any().float()
        totals["object_score"] += functional.binary_cross_entropy_with_logits(score[row], present)
        for index in torch.nonzero(valid[row])[:, 0]:
            one, probability = logits[row, index], logits[row, index].sigmoid()
            entropy = functional.binary_cross_entropy_with_logits(one, truth.float(), reduction="none")
            right = torch.where(truth, probability, 1 - probability)
            weight = torch.where(truth, torch.tensor(cfg.focal_alpha), torch.tensor(1 - cfg.focal_alpha))
            focal = (weight * (1 - right) ** cfg.focal_gamma * entropy).mean()
            dice = 1 - (2 * probability[truth].sum() + 1) / (probability.sum() + truth.sum() + 1)
            union = ((one > 0) | truth).sum()
            actual = ((one > 0) & truth).sum() / union.clamp(min=1)
            error = (iou[row, index] - actual).abs() if cfg.iou_l1 else (iou[row, index] - actual) ** 2
            found.append((cfg.focal * focal + cfg.dice * dice, focal, dice, error))
        best = min(range(len(found)), key=lambda index: float(found[index][0].detach()))
        quality = sum(entry[3] for entry in found) / len(found) if cfg.supervise_all_iou else found[best][3]
        for name, value in (("focal", found[best][1]), ("dice", found[best][2]), ("iou", quality)):
            totals[name] = totals[name] + value * present
    total = sum(getattr(cfg, name) * value for name, value in totals.items())
    return {**totals, "total": total}


@pytest.mark.parametrize(
    "cfg", [TrackerLossConfig(), TrackerLossConfig(iou_l1=False, supervise_all_iou=False)], ids=str
)
def test_losses_of_a_frame(torch, cfg):
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((5, 4, 9, 7))).astype(np.float32)
    masks = rng.random((5, 9, 7)) < 0.4
    masks[3] = False  # an absent object trains its score alone
    arrays = [logits, rng.random((5, 4)).astype(np.float32), np.array([[1, 0, 0, 0], *[[0, 1, 1, 1]] * 4], bool)]
    arrays += [rng.standard_normal(5).astype(np.float32), masks, np.array([1, 1, 1, 1, 0], bool)]

    def total(logits, iou, score):
        losses = frame_losses(cfg, logits, iou, arrays[2], score, arrays[4], arrays[5])
        return losses["total"], losses

    inputs = (arrays[0], arrays[1], arrays[3])
    (_, ours), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*inputs)
    tensors = [torch.tensor(array) for array in arrays]
    for index in (0, 1, 3):
        tensors[index].requires_grad_()
    wanted = reference_losses(torch, cfg, *tensors)
    wanted["total"].backward()
    assert set(ours) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(ours[name], float(value.detach()), rtol=1e-5, err_msg=name)
    for gradient, index in zip(gradients, (0, 1, 3), strict=True):
        np.testing.assert_allclose(gradient, tensors[index].grad, atol=1e-6, rtol=1e-4)
    assert not np.asarray(gradients[0])[4].any() and not np.asarray(gradients[0])[3].any()


def test_a_sure_object_score_has_a_finite_gradient():
    def loss(score):
        empty = jnp.zeros((1, 1, 2, 2))
        return frame_losses(
            TrackerLossConfig(),
            empty,
            jnp.zeros((1, 1)),
            jnp.ones((1, 1), bool),
            score,
            jnp.ones((1, 2, 2), bool),
            jnp.ones(1, bool),
        )["object_score"]

    for score in (200.0, -200.0):
        assert np.isfinite(jax.grad(loss)(jnp.array([score]))).all()


def test_overlap_of_empty_masks_is_none():
    logits = jnp.array([[[-1.0, 1.0]], [[-1.0, -1.0]]])
    masks = jnp.array([[[True, True]], [[False, False]]])
    assert np.asarray(true_iou(logits, masks)).tolist() == [0.5, 0.0]


@pytest.mark.parametrize("kind", ["click", "box", "mask"])
def test_simulated_prompts(kind):
    masks = np.zeros((3, 128, 128), bool)
    masks[0, 20:60, 30:90] = masks[1, 100:104, 5:9] = True
    prompts = simulated_prompts(jax.random.key(1), jnp.asarray(masks), kind, low_res_size=32)
    points, labels = np.asarray(prompts.points), np.asarray(prompts.labels)
    if kind == "click":
        for row in (0, 1):
            x, y = points[row, 0].astype(int)
            assert masks[row, y, x] and labels[row].tolist() == [1, -2]
        assert labels[2].tolist() == [0, -2], "an absent object is clicked on as background"
    elif kind == "box":
        assert labels.tolist() == [[2, 3]] * 3
        reach = np.float32([[[6, 4]], [[0.4, 0.4]]])
        exact = np.float32([[[30, 20], [89, 59]], [[5, 100], [8, 103]]])
        assert (np.abs(points[:2] - exact) <= reach).all() and (points[:2] != exact).any()
    else:
        np.testing.assert_array_equal(prompts.mask, masks)
        assert (labels == -2).all() and np.asarray(prompts.has_mask).all()
    assert np.asarray(prompts.given).tolist() == [True] * 3


@pytest.fixture(scope="module")
def model(random_leaves) -> Sam2:
    graph, state = nnx.split(nnx.eval_shape(lambda: Sam2(CFG, rngs=nnx.Rngs(0))))
    made = nnx.merge(graph, random_leaves(state))
    head = made.sam_mask_decoder.pred_obj_score_head.layers[-1]
    head.bias[...] = jnp.full_like(head.bias[...], 20.0)
    return made


@pytest.mark.slow
def test_a_clip_is_what_inference_makes_of_it_and_every_part_learns(model):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((FRAMES, 1, 128, 128, 3)), jnp.float32)
    masks = np.zeros((FRAMES, ROWS, 128, 128), bool)
    masks[:, 0, 20:60, 30:90] = masks[:, 1, 70:120, 10:50] = True
    prompts = simulated_prompts(jax.random.key(0), jnp.asarray(masks[0]), "click", low_res_size=CFG.low_res_size)
    graph, state = nnx.split(model)

    def loss(state):
        output = track_clip(nnx.merge(graph, state), images, prompts)
        supervised = taught(prompts, jnp.ones((FRAMES, ROWS), bool))
        return clip_losses(TrackerLossConfig(), output, jnp.asarray(masks), supervised)["total"], output

    (value, output), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    programs = TrackingPrograms(model)
    place = Place.of(ROWS, 0, num_frames=FRAMES)
    seen = programs.observe(programs.encode_image(images[0]), None, prompts, place)
    held = programs.settle(empty_state(CFG, ROWS), seen, place, jnp.ones(ROWS, bool))
    np.testing.assert_allclose(output.logits[0], seen.logits, rtol=1e-4, atol=1e-4)
    for frame in range(1, FRAMES):
        here = Place.of(ROWS, frame, num_frames=FRAMES)
        held, seen = programs.track_step(held, programs.encode_image(images[frame]), here)
        np.testing.assert_allclose(output.logits[frame], seen.logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(output.object_score[frame], seen.object_score, rtol=1e-4)
    assert np.isfinite(value)
    silent = {"no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial", "mask_downsample", "pe_layer", "mask_downscaling"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(gradients)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.isfinite(leaf).all(), name
        if not any(part in name for part in silent):
            assert np.asarray(leaf).any(), f"{name} does not learn"
