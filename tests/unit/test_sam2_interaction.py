"""Prompts and corrections of a simulated user in SAM 2's training, and what they teach, against upstream's."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.convert import from_torch, to_torch
from rvseg_jax.core import config as configs
from rvseg_jax.core.precision import FLOAT32
from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.models.sam2.memory_attention import _dropped
from rvseg_jax.models.sam2.tracking_prompts import RowPrompt, batched_prompts
from rvseg_jax.parity import golden
from rvseg_jax.parity.sam2_config import model_config
from rvseg_jax.trackers.data import ClipsConfig
from rvseg_jax.trackers.sam2.clips import clip_losses, error_clicks, simulated_prompts
from rvseg_jax.trackers.sam2.interaction import ClipPlan, InteractionConfig, draw_plan, track_interactively
from rvseg_jax.trackers.sam2.losses import TrackerLossConfig
from rvseg_jax.trackers.sam2.training import Sam2Task, Sam2TrainingConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "sam2" / "video_fp32_memory.json"


def test_clicks_fall_where_the_prediction_is_wrong():
    masks, predicted = np.zeros((4, 40, 40), bool), np.zeros((4, 40, 40), bool)
    masks[0, 5:9, 5:9] = True  # missed
    predicted[1, 20:30, 1:4] = True  # not there
    masks[2, 10:20, 10:20] = predicted[2, 10:20, 10:20] = True  # all right
    masks[3, :10], predicted[3, 5:15] = True, True  # both sorts of errors
    draw = jax.jit(error_clicks)
    seen = set()
    for seed in range(40):
        points, labels = map(np.asarray, draw(jax.random.key(seed), masks, predicted))
        x, y = points.astype(int).T
        rows = range(4)
        np.testing.assert_array_equal(labels, [1, 0, 0, int(masks[3, y[3], x[3]])])
        wrong = masks ^ predicted
        assert all(wrong[row, y[row], x[row]] for row in rows if row != 2) and not masks[2, y[2], x[2]]
        seen.add((int(labels[3]), int(y[3]) // 5))
    assert seen == {(1, 0), (0, 2)}


CFG = InteractionConfig(
    num_init_cond_frames=2, num_frames_to_correct=3, rand_frames_to_correct=True, num_correction_pt_per_frame=2
)


def test_plans_hold_what_the_recipe_says():
    masks = np.zeros((5, 6, 32, 32), bool)
    masks[:, :, 5:20, 5:20] = True
    masks[:, :, 0, 0] = np.arange(5)[:, None] % 2 == 1

    @jax.jit
    def draw(key):
        def prompts_of(step, shown):
            kinds = [simulated_prompts(key, shown, kind, low_res_size=8) for kind in ("mask", "click")]
            given = jnp.arange(6) % 2 == 0
            return jax.tree.map(lambda a, b: jnp.where(given.reshape(-1, *(1,) * (a.ndim - 1)), a, b), *kinds)

        plan = draw_plan(key, CFG, jnp.asarray(masks), 3, prompts_of)
        return plan, plan.in_order(jnp.asarray(masks))

    counts = set()
    for seed in range(30):
        plan, seen = jax.device_get(draw(jax.random.key(seed)))
        for video in range(3):
            order, rows = plan.order[:, video], slice(2 * video, 2 * video + 2)
            assert sorted(order) == list(range(5)) and order[0] == 0
            initial, corrected = plan.initial[:, rows], plan.corrected[:, rows]
            prompted = int(initial[:, 0].sum())
            assert (initial[:prompted]).all() and not initial[prompted:].any()
            assert list(order[prompted:]) == sorted(order[prompted:])
            assert not corrected[:, 0].any(), "what is given by its mask is not corrected"
            assert corrected[:prompted, 1].all()
            counts.add((prompted, int(corrected[:, 1].sum())))
            np.testing.assert_array_equal(seen[:, rows.start, 0, 0], order % 2 == 1)
            np.testing.assert_array_equal(plan.prompts.mask[1, rows.start], masks[order[1], rows.start])
    assert counts == {(1, 1), (1, 2), (1, 3), (2, 2), (2, 3)}
    with pytest.raises(ValueError, match="every prompted frame is corrected"):
        InteractionConfig(num_init_cond_frames=2)


def test_dropout_leaves_out_a_share_and_scales_the_rest():
    x = jnp.ones((50, 400))
    kept = _dropped(x, share=0.1, key=jax.random.key(0), place=0)
    assert set(np.unique(kept)) == {0, np.float32(1 / 0.9)} and abs(float(kept.mean()) - 1) < 0.01
    assert (np.asarray(kept) != _dropped(x, share=0.1, key=jax.random.key(0), place=1)).any()
    np.testing.assert_array_equal(_dropped(x, share=0.1, key=None, place=0), x)


# Of upstream's `SAM2Train` with the same weights and choices: the loss of each frame, and norms of gradients.
UPSTREAM = {
    "click": (
        (37.18036651611328, 13.413763046264648, 58.12804412841797, 2.586542844772339),
        {
            "sam_mask_decoder.iou_token.weight": 1.0111782550811768,
            "sam_mask_decoder.output_upscaling.0.weight": 5.738992691040039,
            "sam_prompt_encoder.mask_downscaling.0.weight": 14.087655067443848,
            "memory_attention.layers.0.cross_attn_image.k_proj.weight": 0.7211542129516602,
            "memory_encoder.out_proj.weight": 19.02365493774414,
            "obj_ptr_proj.layers.0.weight": 0.006552530452609062,
            "image_encoder.trunk.patch_embed.proj.weight": 86.09970092773438,
        },
    ),
    "mask": (
        (0.0, 2.7295992374420166, 0.0, 2.5956127643585205),
        {
            "sam_mask_decoder.iou_token.weight": 0.08210666477680206,
            "sam_mask_decoder.output_upscaling.0.weight": 0.30890798568725586,
            "memory_attention.layers.0.cross_attn_image.k_proj.weight": 0.09490042179822922,
            "memory_encoder.out_proj.weight": 2.8939313888549805,
            "obj_ptr_proj.layers.0.weight": 0.0022749395575374365,
            "image_encoder.trunk.patch_embed.proj.weight": 2.4718523025512695,
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", UPSTREAM)
def test_losses_and_gradients_are_upstreams(kind):
    """Two prompted frames, 0 and 2, and in the case of clicks three corrections on each of 0, 2 and 1."""
    case = golden.read(GOLDEN)
    cfg = model_config(case.config)
    graph, state = nnx.split(from_torch("sam2", case.weights, cfg))
    frames = np.random.default_rng(3).standard_normal((4, 3, 128, 128)).astype(np.float32)
    masks = np.zeros((4, 2, 128, 128), bool)
    for t in range(4):
        masks[t, 0, 20 + 5 * t : 60 + 5 * t, 30:80] = masks[t, 1, 70:100, 10 + 8 * t : 50 + 8 * t] = True
    masks[2, 1] = False
    rng = np.random.default_rng(7)
    clicks = rng.integers(5, 123, (4, 3, 2, 2)).astype(np.float32)
    labels = rng.integers(0, 2, (4, 3, 2)).astype(np.int32)
    first = {0: [[[40, 35]], [[20, 80]]], 2: [[[60, 50]], [[80, 85]]]}

    def prompts(frame):
        if kind == "mask":
            return batched_prompts(cfg, [RowPrompt(mask=mask) for mask in masks[frame]])
        one = np.ones(1, np.int32)
        return batched_prompts(cfg, [RowPrompt(np.array(points, np.float32), one) for points in first[frame]])

    order = np.array([0, 2, 1, 3])
    both = np.ones((1, 2), bool)
    plan = ClipPlan(
        order=jnp.asarray(order)[:, None],
        initial=jnp.asarray([[True], [True], [False], [False]] & both),
        corrected=jnp.asarray([[True], [True], [True], [False]] & both & (kind == "click")),
        prompts=jax.tree.map(lambda *leaves: jnp.stack(leaves), prompts(0), prompts(2)),
        clicks=(jnp.asarray(clicks[order]), jnp.asarray(labels[order])),
        key=jax.random.key(0),
    )
    act = InteractionConfig(2, False, 3, False, 3, add_all_frames_to_correct_as_cond=True)
    images = jnp.asarray(np.moveaxis(frames, 1, -1))[:, None]

    def loss(state, plan):
        output = track_interactively(nnx.merge(graph, state), images, jnp.asarray(masks), plan, act, remat="none")
        counted = ~(plan.initial & plan.prompts.has_mask[0])
        return clip_losses(TrackerLossConfig(), output, plan.in_order(jnp.asarray(masks)), counted)["total"]

    total, gradients = jax.jit(jax.value_and_grad(loss))(state, plan)
    wanted, norms = UPSTREAM[kind]
    np.testing.assert_allclose(total, sum(wanted), rtol=1e-4)
    found = to_torch("sam2", nnx.merge(graph, gradients), cfg)
    for name, norm in norms.items():
        np.testing.assert_allclose(np.linalg.norm(found[name]), norm, rtol=1e-3, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_published_recipe_can_be_differentiated(remat):
    """Shapes alone: nothing is compiled."""
    published = configs.load("sam2_finetune")
    assert published.interaction.num_correction_pt_per_frame == 7 and published.model.memory_attention.dropout == 0.1
    tiny = Sam2Config.tiny()
    model = dataclasses.replace(tiny, memory_attention=dataclasses.replace(tiny.memory_attention, dropout=0.1))
    config = Sam2TrainingConfig(
        model=model, clips=ClipsConfig(frames=3), interaction=InteractionConfig.published(), remat=remat
    )
    task = Sam2Task(config, precision=FLOAT32)
    size = task.size
    batch = {
        "frames": jax.ShapeDtypeStruct((2, 3, size, size, 3), jnp.uint8),
        "masks": jax.ShapeDtypeStruct((2, 2, 3, size, size), jnp.bool_),
        "valid": jax.ShapeDtypeStruct((2, 2), jnp.bool_),
    }
    params = jax.eval_shape(task.init, jax.random.key(0))
    step = jax.value_and_grad(task.loss, has_aux=True)
    (total, losses), gradients = jax.eval_shape(step, params, batch, jax.random.key(0))
    assert total.shape == () and set(losses) == {"focal", "dice", "iou", "object_score"}
    assert jax.tree.map(lambda leaf: leaf.shape, gradients) == jax.tree.map(lambda leaf: leaf.shape, params)
