"""Layers and rows of a converted folder, read by themselves."""

import numpy as np
import pytest
import tensorstore as ts
from safetensors.numpy import save_file

from rvseg_jax import convert
from rvseg_jax.convert import engine, registry, store, streaming
from rvseg_jax.convert.plan import ConversionError


@pytest.fixture
def folder(toy, tmp_path, monkeypatch):
    """A converted toy model whose stored chunks are a row or a layer at most."""
    monkeypatch.setattr(store, "CHUNK_BYTES", 16)
    save_file(toy.tensors(), tmp_path / "toy.safetensors")
    convert.convert({"toy": convert.Source((tmp_path / "toy.safetensors",), config=toy.ToyConfig())}, tmp_path / "out")
    return tmp_path / "out"


def test_layers_are_those_of_the_loaded_part(toy, folder):
    whole = convert.load_part(folder, "toy")
    layers = list(streaming.open_part(folder, "toy").layers("blocks"))
    assert len(layers) == 3
    for index, layer in enumerate(layers):
        assert layer.keys() == {"q", "k", "v", "up", "scale"}
        for name, array in layer.items():
            np.testing.assert_array_equal(array, np.asarray(getattr(whole.blocks, name)[index]))


def test_layers_of_torch_tensors_are_the_same(toy, folder):
    stored = streaming.open_part(folder, "toy").layers("blocks")
    read = streaming.layer_states("toy", toy.tensors(), toy.ToyConfig())
    for ours, theirs in zip(read, stored, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_rows_and_leaves(toy, folder):
    part, embedding = streaming.open_part(folder, "toy"), toy.tensors()["shared.weight"]
    rows = part.rows("embed/embedding")
    wanted = [0, 15, 3, 3, 7, 1, 2, 9, 8, 4, 11]
    np.testing.assert_array_equal(rows[np.asarray(wanted)], embedding[wanted])
    np.testing.assert_array_equal(part.leaf("embed/embedding"), embedding)


def test_a_layer_is_stored_in_chunks_of_its_own(folder):
    spec = {"driver": "zarr", "kvstore": f"file://{folder}/toy/|ocdbt:blocks.q/"}
    assert ts.open(spec).result().chunk_layout.read_chunk.shape[0] == 1


def test_errors_name_what_is_not_there(folder, tmp_path):
    part = streaming.open_part(folder, "toy")
    with pytest.raises(ConversionError, match="has no leaf 'blocks/w'"):
        part.leaf("blocks/w")
    with pytest.raises(ConversionError, match="has no stacked module 'layers'"):
        part.layers("layers")
    with pytest.raises(ConversionError, match="no such folder"):
        streaming.open_part(tmp_path / "absent", "toy")
    for file in (folder / "toy").rglob("d/*"):
        file.write_bytes(b"")
    with pytest.raises(ConversionError, match="cannot read blocks/q"):
        part.leaf("blocks/q")


def test_text_encoder_runs_from_a_folder_block_by_block(tmp_path, monkeypatch):
    from rvseg_jax.models.umt5.encoder import UMT5Config, encode_blockwise

    monkeypatch.setattr(store, "CHUNK_BYTES", 4096)
    config, rng = UMT5Config.tiny(), np.random.default_rng(0)
    plan, _ = engine.plan_for(registry.part("umt5"), config)
    tensors = {key: rng.normal(0, 0.2, shape).astype(np.float32) for key, shape in plan.key_shapes.items()}
    save_file(tensors, tmp_path / "umt5.safetensors")
    convert.convert({"umt5": convert.Source((tmp_path / "umt5.safetensors",), config=config)}, tmp_path / "out")
    part = streaming.open_part(tmp_path / "out", "umt5")
    ids = np.asarray([[5, 9, 1, 0, 0]])
    rows, norm = part.rows("shared/embedding"), part.leaf("final_layer_norm/scale")
    ours = encode_blockwise(config, rows, part.layers("blocks"), norm, ids, ids > 0)
    whole = convert.load_part(tmp_path / "out", "umt5", precision="parity")
    # The same float32 sums, compiled once a block and once for the whole stack.
    np.testing.assert_allclose(ours, whole(ids, ids > 0), rtol=1e-5, atol=1e-5)
