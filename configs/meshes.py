"""Mesh shapes by name: `config.mesh.update(meshes.FSDP)`.

Axes are those of `rvseg_jax.parallel.mesh.MeshShape`; -1 takes the devices that are left. Models up to 3
billion trained parameters want fsdp alone; language models of 7 billion and more add tensor 4; long video
adds seq 4.
"""

SINGLE = {"data": 1, "fsdp": 1, "seq": 1, "tensor": 1}
DATA = {"data": -1, "fsdp": 1, "seq": 1, "tensor": 1}
FSDP = {"data": 1, "fsdp": -1, "seq": 1, "tensor": 1}
FSDP8 = {"data": 1, "fsdp": 8, "seq": 1, "tensor": 1}
FSDP_TENSOR4 = {"data": 1, "fsdp": -1, "seq": 1, "tensor": 4}
FSDP_SEQ4 = {"data": 1, "fsdp": -1, "seq": 4, "tensor": 1}
