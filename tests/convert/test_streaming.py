"""Layers and rows of a converted folder, read by themselves."""

import numpy as np
import pytest
import tensorstore as ts
from rvseg_jax.convert import store, streaming
from rvseg_jax.convert.plan import ConversionError
from safetensors.numpy import save_file

from rvseg_jax import convert


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
