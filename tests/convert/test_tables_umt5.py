"""The table of the UMT5 encoder, and reading it one layer at a time."""

import math
from collections.abc import Mapping

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from rvseg_jax.convert import converter, engine, registry
from rvseg_jax.convert.api import from_torch, to_torch
from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.streaming import layer_states, open_part
from rvseg_jax.core.tree_paths import flatten, unflatten
from rvseg_jax.models.umt5 import encoder
from rvseg_jax.models.umt5.encoder import SHARDING, UMT5Config, encode_blockwise
from rvseg_jax.parallel import AXES, DEFAULT_RULES, shardings

TINY = UMT5Config.tiny()
SIZES = {"XXL": UMT5Config.xxl(), "tiny": TINY}
ALIAS = "encoder.embed_tokens.weight"


class CountingTensors(Mapping):
    """A checkpoint that remembers which keys were read."""

    def __init__(self, tensors):
        self.tensors, self.read = tensors, set()

    def __getitem__(self, key):
        return Entry(self, key)

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self):
        return len(self.tensors)


class Entry:
    """A tensor whose shape is free and whose values count as a read."""

    def __init__(self, owner, key):
        self.owner, self.key, self.shape = owner, key, owner.tensors[key].shape

    def _array(self):
        self.owner.read.add(self.key)
        return self.owner.tensors[self.key]

    def __getattr__(self, name):
        return getattr(self._array(), name)

    def __getitem__(self, index):
        return self._array()[index]


def random_tensors(cfg: UMT5Config) -> dict[str, np.ndarray]:
    plan, _ = engine.plan_for(registry.part("umt5"), cfg)
    rng = np.random.default_rng(0)
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in plan.key_shapes.items()}


@pytest.mark.parametrize("cfg", SIZES.values(), ids=SIZES)
def test_bijection(torch, cfg):
    from transformers import UMT5Config as TorchConfig
    from transformers import UMT5EncoderModel

    with torch.device("meta"):
        model = UMT5EncoderModel(
            TorchConfig(
                vocab_size=cfg.vocab_size,
                d_model=cfg.d_model,
                d_kv=cfg.d_kv,
                d_ff=cfg.d_ff,
                num_layers=cfg.num_layers,
                num_heads=cfg.num_heads,
                relative_attention_num_buckets=cfg.relative_attention_num_buckets,
            )
        )
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    plan, _ = engine.plan_for(registry.part("umt5"), cfg)
    assert plan.match(shapes).repeats == {ALIAS: "shared.weight"}
    # The published files hold the table once, and other tools write it under its second name only.
    assert {key: shape for key, shape in shapes.items() if key != ALIAS} == plan.key_shapes
    assert plan.match(plan.key_shapes).repeats == {}
    second = {key: shape for key, shape in shapes.items() if key != "shared.weight"}
    assert plan.match(second).stored["shared.weight"] == ALIAS


def test_published_size():
    plan, model = engine.plan_for(registry.part("umt5"), UMT5Config.xxl())
    assert len(plan.key_shapes) == 242
    assert sum(map(math.prod, model.shapes.values())) == 5_680_910_336


def test_round_trip_and_tied_embedding():
    tensors = random_tensors(TINY)
    module = from_torch("umt5", tensors | {ALIAS: tensors["shared.weight"]}, TINY)
    back = to_torch("umt5", module, aliases=True)
    assert set(back) == {*tensors, ALIAS}
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value)
    with pytest.raises(ConversionError, match="differs from"):
        from_torch("umt5", tensors | {ALIAS: tensors["shared.weight"] + 1}, TINY)


def test_layers_are_read_one_at_a_time():
    tensors = random_tensors(TINY)
    whole = from_torch("umt5", tensors, TINY)
    counting = CountingTensors(tensors)
    states = layer_states("umt5", counting, TINY)
    assert not counting.read
    for layer, wanted in enumerate(encoder.layer_states(whole)):
        got = flatten(next(states))
        assert all(key.startswith(f"encoder.block.{layer}.") for key in counting.read)
        counting.read.clear()
        assert set(got) == set(flatten(wanted))
        for path, value in flatten(wanted).items():
            np.testing.assert_array_equal(got[path], value)
    with pytest.raises(StopIteration):
        next(states)


def test_encoding_straight_from_a_checkpoint():
    tensors = random_tensors(TINY)
    ids = np.array([[5, 9, 1, 0, 0]])
    mask = ids > 0
    ours = encode_blockwise(
        TINY,
        tensors["shared.weight"],
        layer_states("umt5", tensors, TINY),
        tensors["encoder.final_layer_norm.weight"],
        ids,
        mask,
    )
    np.testing.assert_allclose(ours, from_torch("umt5", tensors, TINY)(ids, mask), rtol=1e-5, atol=1e-5)


def test_encoding_from_a_converted_checkpoint(tmp_path):
    tensors = random_tensors(TINY)
    save_file(tensors, tmp_path / "umt5.safetensors")
    source = converter.Source((tmp_path / "umt5.safetensors",), config=TINY)
    converter.convert({"umt5": source}, tmp_path / "out")
    stored = open_part(tmp_path / "out", "umt5")
    ids = np.array([[5, 9, 1, 0, 0]])
    mask = ids > 0
    ours = encode_blockwise(
        TINY, stored.rows("shared/embedding"), stored.layers("blocks"), stored.leaf("final_layer_norm/scale"), ids, mask
    )
    np.testing.assert_allclose(ours, from_torch("umt5", tensors, TINY)(ids, mask), rtol=1e-5, atol=1e-5)


def test_streaming_refuses_what_it_cannot_read():
    tensors = random_tensors(TINY)
    with pytest.raises(ValueError, match="'layers'"):
        layer_states("umt5", tensors, TINY, stack="layers")
    del tensors["encoder.block.1.layer.0.layer_norm.weight"]
    with pytest.raises(ConversionError, match=r"encoder\.block\.1\.layer\.0\.layer_norm\.weight"):
        layer_states("umt5", tensors, TINY)


def test_large_leaves_are_cut_over_both_axes():
    model = engine.skeleton(registry.part("umt5"), UMT5Config.xxl())
    leaves = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in model.shapes.items()}
    mesh = AbstractMesh((1, 4, 1, 4), AXES)
    layout = flatten(shardings(unflatten(leaves), SHARDING, DEFAULT_RULES, mesh))
    assert layout["blocks/ffn/up/kernel"].spec == P(None, "fsdp", "tensor")
    assert layout["shared/embedding"].spec == P("tensor", "fsdp")
    held = sum(math.prod(layout[path].shard_shape(leaf.shape)) for path, leaf in leaves.items())
    assert held < 1.02 * 5_680_910_336 / 16
