"""Trackers train by their recipes' tasks: the loss falls, and what is exported is loaded and tracks the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvseg_jax as rv
from rvseg_jax.core.precision import FLOAT32
from rvseg_jax.input_pipeline.datasets.moving_shapes.tracking import TrackingShapesConfig
from rvseg_jax.models.sam2.config import HieraConfig, MaskDecoderConfig, MemoryAttentionConfig, Sam2Config
from rvseg_jax.models.xmem.config import XMemConfig
from rvseg_jax.trackers.data import ClipsConfig
from rvseg_jax.trackers.sam2.training import Sam2Task, Sam2TrainingConfig
from rvseg_jax.trackers.xmem.losses import BootstrapSchedule
from rvseg_jax.trackers.xmem.training import XMemTask, XMemTrainingConfig
from rvseg_jax.training.step import task_loss

CLIPS = ClipsConfig(shapes=TrackingShapesConfig(size=(96, 96), frames=8), frames=3, objects=2)
STEPS = 25


def sam2():
    model = dataclasses.replace(
        Sam2Config.tiny(),
        image_size=96,
        hiera=HieraConfig(embed_dim=8, stages=(1, 1, 1, 1), global_att_blocks=(2,), window_spec=(8, 4, 6, 3)),
        mask_decoder=MaskDecoderConfig(transformer_depth=1, transformer_mlp=32, iou_head_hidden=16),
        memory_attention=MemoryAttentionConfig(num_layers=1, dim_feedforward=32),
    )
    return Sam2Task(Sam2TrainingConfig(model=model, clips=CLIPS, remat="none"), precision=FLOAT32)


def xmem():
    config = XMemTrainingConfig(
        model=XMemConfig.tiny(), clips=CLIPS, size=96, bootstrap=BootstrapSchedule(start_warm=5, end_warm=20)
    )
    return XMemTask(config, precision=FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make"), [("sam2", sam2), ("xmem", xmem)])
def test_a_tracker_learns_and_its_export_tracks_the_same(name, make, tmp_path):
    task = make()
    row, clips = task.transform("train"), task.source("train")
    rows = [row(clips[index], np.random.default_rng(index)) for index in range(2)]
    batch = {key: np.stack([one[key] for one in rows]) for key in rows[0]}
    loss = task_loss(task.loss)
    timed = {"step": jnp.int32(30)} if name == "xmem" else {}
    params = jax.jit(task.init)(jax.random.key(0))
    transform = optax.adam(2e-3)

    @jax.jit
    def step(params, state, key):
        (value, _), grads = jax.value_and_grad(lambda p: loss(p, {}, batch, key, **timed), has_aux=True)(params)
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, values = transform.init(params), []
    for index in range(STEPS):
        params, state, value = step(params, state, jax.random.key(index))
        values.append(float(value))
    assert np.isfinite(values).all()
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])

    task.export(params, tmp_path)
    options = {} if name == "xmem" else {"postprocessing": False}
    tracker = rv.load(name, tmp_path, dtype="float32", **options)
    scores = task.evaluate(params, step=0)
    assert set(scores) >= {"j"} and 0 <= scores["j"] <= 1
    clip = task.source("validation")[0]
    session, own = tracker.session(objects=2), task._tracker.session(objects=2)
    for one in (session, own):
        one.add(1, mask=clip.masks[0, 0])
    for frame in clip.frames[:4]:
        np.testing.assert_array_equal(session.step(frame).masks, own.step(frame).masks)
