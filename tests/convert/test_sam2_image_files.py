"""SAM 2 checkpoints in both published layouts become one folder each, and come back equal tensor by tensor."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rvseg_jax.convert import converter, export, registry, store
from rvseg_jax.convert.engine import leaves_of, plan_for
from rvseg_jax.convert.manifest import read_manifest
from rvseg_jax.models.sam2.config import Sam2Config

CONFIG = Sam2Config.tiny()
LAYOUTS = ("", "transformers")
FOURIER = "positional_embedding"


def tensors(layout: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    plan, _ = plan_for(registry.part("sam2"), CONFIG, layout)
    made = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in plan.key_shapes.items()}
    if layout:
        made[f"prompt_encoder.shared_embedding.{FOURIER}"] = made[f"shared_image_embedding.{FOURIER}"].copy()
    return made


@pytest.mark.parametrize("layout", LAYOUTS, ids=["original", "transformers"])
def test_files_of_either_layout(torch, layout, tmp_path):
    weights = tensors(layout)
    if layout:
        file = tmp_path / "model.safetensors"
        save_file(weights, file)
    else:
        file = tmp_path / "sam2.1_hiera_tiny.pt"
        torch.save({"model": {key: torch.from_numpy(array) for key, array in weights.items()}}, file)
    out = tmp_path / "converted"
    converter.convert({"sam2": converter.Source((file,), config=CONFIG)}, out)
    record = read_manifest(out).parts["sam2"]
    assert record.layout == layout and json.loads((out / "manifest.json").read_text())
    assert store.stored_config(registry.part("sam2"), record).hiera == CONFIG.hiera

    model = store.load_part(out, "sam2")
    found = leaves_of(model)
    name = "memory_attention/layers/cross_attn_image/k_proj/kernel"
    key = "memory_attention.layers.{}.cross_attn_image.k_proj.weight"
    np.testing.assert_array_equal(found[name][1], weights[key.format(1)].T)

    back = tmp_path / "back.safetensors"
    export.export(out, "sam2", back)
    exported = load_file(back)
    assert exported.keys() == weights.keys()
    for key, array in weights.items():
        np.testing.assert_array_equal(exported[key], array, err_msg=key)
