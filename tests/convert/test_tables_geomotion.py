"""GeoMotion's table is a bijection onto upstream's keys: all of Pi3, and the fusion."""

import dataclasses
import json
import math
import re

import numpy as np
from safetensors.numpy import load_file

from rvseg_jax.convert import converter, export, from_torch, registry, to_torch
from rvseg_jax.convert.engine import plan_for
from rvseg_jax.convert.manifest import config_fields, config_from
from rvseg_jax.core.precision import PARITY
from rvseg_jax.core.tree_paths import matches
from rvseg_jax.models.geomotion.config import GeoMotionConfig
from rvseg_jax.models.geomotion.model import SHARDING, TRAINED
from rvseg_jax.parity import geomotion as cases

PART = registry.part("pi3_motion")
TINY = GeoMotionConfig.tiny()
STATISTICS = {"image_mean", "image_std"}


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    plan, _ = plan_for(PART, TINY)
    made = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in plan.key_shapes.items()}
    return made | {name: rng.uniform(0, 1, (1, 3, 1, 1)).astype(np.float32) for name in STATISTICS}


def test_bijection_with_upstream(golden):
    meta = json.loads((golden / "geomotion" / "a_3x42x56.json").read_text())
    shapes = {key: tuple(shape) for key, shape in meta["weights"]["keys"].items()}
    plan, _ = plan_for(PART, cases.model_config(meta["config"]))
    assert dict(plan.key_shapes) == {key: shape for key, shape in shapes.items() if key not in STATISTICS}
    assert plan.match(shapes).dropped.keys() == STATISTICS


def test_published_size():
    plan, model = plan_for(PART, GeoMotionConfig.published())
    assert len(plan.key_shapes) + len(STATISTICS) == 1_220
    assert sum(map(math.prod, model.shapes.values())) == 972_687_132
    trained = {path: math.prod(shape) for path, shape in model.shapes.items() if matches(path, TRAINED)}
    assert sum(trained.values()) == 80_320_196
    assert sum(count for path, count in trained.items() if path.startswith("motion_aware_decoder")) == 13_990_400
    pi3, _ = plan_for(registry.part("pi3"), GeoMotionConfig.published().pi3)
    assert {key: shape for key, shape in plan.key_shapes.items() if not key.startswith("motion_")} == pi3.key_shapes
    wanted = {
        "motion_aware_decoder.feature_proj.0.weight": (2048, 4096),
        "motion_aware_decoder.flow_encoder.4.weight": (128, 64, 3, 3),
        "motion_aware_decoder.fusion_proj.weight": (2048, 2688),
    }
    assert {key: plan.key_shapes[key] for key in wanted} == wanted


def test_a_training_checkpoint_comes_back_unchanged(torch, tmp_path):
    """The layout of `best_model.pth`, with what its training keeps beside the weights."""
    weights = tensors()
    state = {f"module.{key}": torch.from_numpy(value) for key, value in weights.items()}
    layer = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=5e-5)
    layer(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=20, eta_min=5e-6)
    saved = {
        **{"epoch": 3, "best_iou": np.float64(0.7), "test_results": {"iou": np.float64(0.7), "loss": 0.5}},
        **{"optimizer_state_dict": optimiser.state_dict(), "scheduler_state_dict": schedule.state_dict()},
        "model_state_dict": state,
    }
    torch.save(saved, tmp_path / "best_model.pth")
    file = tmp_path / "best_model.pth"
    converter.convert({"pi3_motion": converter.Source((file,), config=TINY)}, tmp_path / "out")
    export.export(tmp_path / "out", "pi3_motion", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert {key.removeprefix("module.") for key in back} == weights.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, weights[key.removeprefix("module.")], err_msg=key)


def test_round_trip_through_python():
    weights = tensors()
    model = from_torch("pi3_motion", weights, TINY)
    kernel = weights["motion_aware_decoder.flow_encoder.2.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(model.motion_aware_decoder.flow_encoder.convs[1].kernel[...], kernel)
    back = to_torch("pi3_motion", model)
    assert back.keys() | STATISTICS == weights.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, weights[key], err_msg=key)


def test_every_leaf_has_a_sharding_rule_of_its_rank():
    _, model = plan_for(PART, TINY)
    for path, shape in model.shapes.items():
        names = next((names for pattern, names in SHARDING if re.search(pattern, path)), None)
        assert names is not None and len(names) in (0, len(shape)), path


def test_configs_survive_a_manifest():
    cfg = dataclasses.replace(TINY, normalise_twice=False, flow_windows=False)
    assert config_from(GeoMotionConfig, config_fields(cfg), PARITY) == cfg
