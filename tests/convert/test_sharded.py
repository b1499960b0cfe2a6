"""Leaves land on their shardings, on eight devices, and each device reads its own piece."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
sys.path.insert(0, sys.argv[1])
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from safetensors.numpy import save_file
import toy
from rvseg_jax import convert, parallel
from rvseg_jax.convert import engine, registry
registry.PARTS = {**registry.PARTS, "toy": toy.PART}

mesh = parallel.make_mesh(parallel.MeshShape(fsdp=4, tensor=2))
cfg, tensors = toy.ToyConfig(), toy.tensors()
whole = engine.leaves_of(convert.from_torch("toy", tensors, cfg))
pieces = []
slice_leaf = engine.leaf_slice
def watched(plan, match, tensors, leaf, dtype, index):
    made = slice_leaf(plan, match, tensors, leaf, dtype, index)
    pieces.append((leaf, made.shape))
    return made
engine.leaf_slice = watched
sharded = engine.leaves_of(convert.from_torch("toy", tensors, cfg, mesh=mesh))
wanted = {"blocks/q": P(None, "fsdp", "tensor"), "embed/embedding": P("tensor", "fsdp"), "up/kernel": P()}
for leaf, array in sharded.items():
    np.testing.assert_array_equal(np.asarray(array), np.asarray(whole[leaf]), err_msg=leaf)
    if leaf in wanted:
        assert array.sharding.is_equivalent_to(NamedSharding(mesh, wanted[leaf]), array.ndim), (leaf, array.sharding)
assert [shape for leaf, shape in pieces if leaf == "blocks/q"] == [(3, 1, 2)] * 8
assert [shape for leaf, shape in pieces if leaf == "up/kernel"] == [(2, 2, 4, 8)]  # one read for eight replicas

save_file(tensors, sys.argv[2] + "/toy.safetensors")
source = convert.Source((sys.argv[2] + "/toy.safetensors",), config=cfg)
convert.convert({"toy": source}, sys.argv[2] + "/out")
loaded = engine.leaves_of(convert.load_part(sys.argv[2] + "/out", "toy", mesh=mesh))
for leaf, array in loaded.items():
    np.testing.assert_array_equal(np.asarray(array), np.asarray(whole[leaf]), err_msg=leaf)
    assert array.sharding.is_equivalent_to(sharded[leaf].sharding, array.ndim), leaf
print("sharded ok")
"""


def test_sharded_loading_on_eight_devices(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert "sharded ok" in ran.stdout, ran.stderr[-3000:]
