"""Meshes, rules and shardings on eight devices."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rvseg_jax import parallel
from rvseg_jax.parallel import MeshShape, make_mesh

TABLE = (
    (r"embedding$", ("vocab", "embed")),
    (r"up/kernel$", ("layers", "embed", "mlp")),
    (r"down/kernel$", ("layers", "mlp", "embed")),
    (r"(bias|scale)$", ()),
)


def shapes() -> dict:
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    return {
        "embed": {"embedding": leaf(16, 8)},
        "blocks": {"up": {"kernel": leaf(2, 8, 12), "bias": leaf(2, 12)}, "down": {"kernel": leaf(2, 12, 8)}},
    }


def test_eight_devices_are_there():
    assert jax.device_count() == 8


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ({}, (1, 8, 1, 1)),
        ({"data": 2, "tensor": 2}, (2, 2, 1, 2)),
        ({"data": -1, "fsdp": 2}, (4, 2, 1, 1)),
        (MeshShape(1, 2, 2, 2), (1, 2, 2, 2)),
    ],
)
def test_mesh_sizes(shape, sizes):
    mesh = make_mesh(shape)
    assert mesh.axis_names == ("data", "fsdp", "seq", "tensor")
    assert mesh.devices.shape == sizes
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"data": 3}, "needs a multiple of 3 devices but there are 8"),
        ({"data": 2, "fsdp": 2}, "needs 4 devices but there are 8"),
        ({"data": -1, "fsdp": -1}, "only one axis may be -1"),
        ({"fsdp": 0}, "1 or more"),
        ({"model": 8}, "unknown mesh axis 'model'"),
    ],
)
def test_mesh_errors_name_the_cause(shape, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(shape)


def test_parameter_shardings_follow_the_table():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    found = parallel.shardings(shapes(), TABLE, parallel.DEFAULT_RULES, mesh)
    assert found["embed"]["embedding"].spec == PartitionSpec("tensor", "fsdp")
    assert found["blocks"]["up"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert found["blocks"]["down"]["kernel"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert found["blocks"]["up"]["bias"].is_fully_replicated


def test_a_leaf_without_a_rule_is_named():
    mesh = make_mesh()
    with pytest.raises(ValueError, match="blocks/down/kernel"):
        parallel.shardings(shapes(), TABLE[:2] + TABLE[3:], parallel.DEFAULT_RULES, mesh)
    with pytest.raises(ValueError, match=r"blocks/down/kernel.*2 axis names.*\(2, 12, 8\)"):
        parallel.shardings(shapes(), ((".", ("embed", "mlp")),), parallel.DEFAULT_RULES, mesh)
    with pytest.raises(ValueError, match="no rule for the logical axis 'width'"):
        parallel.shardings({"w": jnp.zeros(8)}, ((".", ("width",)),), parallel.DEFAULT_RULES, mesh)


def test_a_dimension_that_does_not_divide_gives_up_its_axis_and_says_so_once(caplog):
    mesh = make_mesh({"data": 2, "fsdp": 4})
    with caplog.at_level(logging.WARNING, logger="rvseg_jax.parallel.rules"):
        for _ in range(2):
            spec = parallel.partition_spec(
                ("batch", "embed"), (6, 8), parallel.DEFAULT_RULES, mesh, where="a leaf of this test"
            )
    # 6 samples: data=2 stays and fsdp=4 goes; "embed" does not take fsdp up, it belongs to the batch.
    assert spec == PartitionSpec("data", None)
    assert [record.getMessage() for record in caplog.records] == [
        "a leaf of this test: batch of 6 does not divide by data=2 x fsdp=4; sharded over ('data',)"
    ]


def test_optimizer_state_and_average_are_sharded_like_their_parameters():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    params = shapes()
    of_params = parallel.shardings(params, TABLE, parallel.DEFAULT_RULES, mesh)
    decayed = {
        "embed": {"embedding": False},
        "blocks": {"up": {"kernel": True, "bias": False}, "down": {"kernel": True}},
    }
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mask=decayed))
    state = jax.eval_shape(transform.init, params)
    found = parallel.shardings_like({"opt": state, "ema": params}, params, of_params, mesh)
    adam = found["opt"][1][0]
    for copy in (adam.mu, adam.nu, found["ema"]):
        assert jax.tree.leaves(copy) == jax.tree.leaves(of_params)
    assert adam.count == NamedSharding(mesh, PartitionSpec())

    # Adafactor's moments have the path of a parameter and another shape.
    factored = jax.eval_shape(optax.adafactor(1e-3, min_dim_size_to_factor=4).init, params)
    for sharding in jax.tree.leaves(parallel.shardings_like(factored, params, of_params, mesh)):
        assert sharding.is_fully_replicated or sharding in jax.tree.leaves(of_params)


def test_batches_are_cut_along_their_first_axis():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    batch = {"video": np.arange(8 * 3.0).reshape(8, 3), "step": np.float32(2)}
    found = parallel.batch_to_global(batch, mesh)
    assert found["video"].sharding.spec == PartitionSpec(("data", "fsdp"))
    assert found["video"].addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(found["video"], batch["video"])
    assert found["step"].sharding.is_fully_replicated
    assert parallel.data_shard(mesh) == (0, 1)
    with pytest.raises(ValueError, match="'video' has 6 samples for 4 parts"):
        parallel.batch_to_global({"video": batch["video"][:6]}, mesh)


def test_constrain_resolves_names_under_a_mesh_only():
    x = jnp.zeros((8, 6, 4))
    assert parallel.constrain(x, "batch", "seq", "embed") is x
    mesh = make_mesh({"fsdp": 4, "seq": 2})
    constrained = jax.jit(lambda x: parallel.constrain(x, "batch", "seq", "embed"))
    with jax.set_mesh(mesh):
        assert constrained(x).sharding.spec == PartitionSpec("fsdp", "seq")
        with parallel.use_rules({**parallel.DEFAULT_RULES, "seq": None, "embed": "seq"}):
            other = jax.jit(lambda x: parallel.constrain(x, "batch", "seq", "embed"))
            assert other(x).sharding.spec == PartitionSpec("fsdp", None, "seq")
        with pytest.raises(ValueError, match="2 axis names"):
            parallel.constrain(x, "batch", "seq")


def test_constrain_inside_shard_map_leaves_the_manual_axes_alone():
    mesh = make_mesh({"fsdp": 4, "seq": 2})

    def local(x: jax.Array) -> jax.Array:
        return parallel.constrain(x, "batch", "seq") * 2

    with jax.set_mesh(mesh):
        mapped = jax.jit(
            jax.shard_map(
                local, in_specs=PartitionSpec(None, "seq"), out_specs=PartitionSpec(None, "seq"), axis_names={"seq"}
            )
        )
        np.testing.assert_array_equal(mapped(jnp.ones((8, 4))), 2 * np.ones((8, 4)))


def test_pjit_requires_shardings_and_keeps_them():
    mesh = make_mesh()
    cut, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())
    with pytest.raises(ValueError, match="out_shardings is None"):
        parallel.pjit(jnp.sin, in_shardings=cut, out_shardings=None)
    double = parallel.pjit(lambda x, y: 2 * x + y, in_shardings=(cut, whole), out_shardings=cut, donate_argnums=0)
    x = jax.device_put(jnp.arange(8.0), cut)
    with jax.set_mesh(mesh):
        result = double(x, 1.0)
    assert x.is_deleted() and result.sharding == cut
    np.testing.assert_array_equal(result, 2 * np.arange(8.0) + 1)


def test_a_table_under_a_prefix_matches_there_only():
    mesh = make_mesh({"fsdp": 8})
    table = parallel.prefixed(((r"^up/kernel$", ("embed", "mlp")), (r"(^|/)scale$", ())), "dit")
    tree = {"dit": {"up": {"kernel": jnp.zeros((8, 8))}, "norm": {"scale": jnp.zeros(8)}}}
    found = parallel.shardings(tree, table, parallel.DEFAULT_RULES, mesh)
    assert found["dit"]["up"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert found["dit"]["norm"]["scale"].is_fully_replicated
    with pytest.raises(ValueError, match="no sharding rule matches .vae/"):
        parallel.shardings({"vae": tree["dit"]}, table, parallel.DEFAULT_RULES, mesh)
