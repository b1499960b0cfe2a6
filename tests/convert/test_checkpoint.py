"""Converted checkpoints: written whole or not at all, read back exactly, verified and exported."""

import errno
import json
import weakref
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rvseg_jax import convert
from rvseg_jax.convert import converter, engine, store
from rvseg_jax.convert.converter import Source
from rvseg_jax.convert.export import export
from rvseg_jax.convert.manifest import read_manifest
from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.sources import open_checkpoint
from rvseg_jax.convert.verify import verify


@pytest.fixture
def source(toy, tmp_path):
    """A torch-layout file of the toy model."""
    save_file(toy.tensors(), tmp_path / "toy.safetensors")
    return Source((tmp_path / "toy.safetensors",), config=toy.ToyConfig())


def assert_same_leaves(first, second):
    first, second = engine.leaves_of(first), engine.leaves_of(second)
    assert first.keys() == second.keys()
    for path, array in first.items():
        assert array.dtype == second[path].dtype, path
        np.testing.assert_array_equal(np.asarray(array), np.asarray(second[path]), err_msg=path)


def test_round_trip(toy, source, tmp_path):
    manifest = converter.convert({"toy": source}, tmp_path / "out", system="toys")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "toy",
        "toy.kept.safetensors",
    ]
    assert manifest == read_manifest(tmp_path / "out")
    loaded = store.load_part(tmp_path / "out", "toy")
    assert_same_leaves(loaded, convert.from_torch("toy", toy.tensors(), toy.ToyConfig()))
    assert verify(tmp_path / "out", {"toy": source}) == []
    export(tmp_path / "out", "toy", tmp_path / "back.safetensors")
    wanted = {key: value for key, value in toy.tensors().items() if not key.endswith("freqs")}
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == wanted.keys()
    for key, value in wanted.items():
        assert back[key].dtype == value.dtype and back[key].tobytes() == value.tobytes(), key


def test_folders_may_be_named_from_where_one_stands(toy, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    converter.convert({"toy": source}, "out", system="toys")
    assert_same_leaves(store.load_part("out", "toy"), store.load_part(tmp_path / "out", "toy"))
    assert verify("out", {"toy": source}) == []
    export("out", "toy", Path("back.safetensors"))
    assert (tmp_path / "back.safetensors").is_file()


def test_manifest_says_what_was_converted(toy, source, tmp_path):
    converter.convert({"toy": source}, tmp_path / "out")
    record = read_manifest(tmp_path / "out").parts["toy"]
    tensors = toy.tensors()
    assert record.licence == toy.PART.licence
    assert record.config == {"width": 4, "layers": 3, "vocab": 16, "window": [2, 3]}
    assert record.sources[0]["name"] == "toy.safetensors" and len(record.sources[0]["sha256"]) == 64
    assert record.leaves["blocks/scale"].shape == (3, 4)
    scales = np.stack([tensors[f"blocks.{layer}.norm.weight"] for layer in range(3)])
    assert record.leaves["blocks/scale"].sum == pytest.approx(scales.astype(np.float64).sum(), rel=1e-12)
    assert record.leaves["blocks/scale"].absmax == np.abs(scales).max()
    assert record.aliases == {"encoder.embed.weight": "shared.weight"}
    assert record.dropped == {f"blocks.{layer}.freqs": "computed from the config" for layer in range(3)}


def test_narrower_storage_is_rounded_once_and_exported_as_stored(toy, source, tmp_path):
    converter.convert({"toy": source}, tmp_path / "out", dtype="bfloat16")
    loaded = store.load_part(tmp_path / "out", "toy")
    assert loaded.cfg.precision.compute_dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        np.asarray(loaded.embed.embedding[...]), toy.tensors()["shared.weight"].astype(ml_dtypes.bfloat16)
    )
    wide = store.load_part(tmp_path / "out", "toy", precision="float32")
    assert wide.embed.embedding.dtype == jnp.float32
    assert verify(tmp_path / "out", {"toy": source}) == []
    export(tmp_path / "out", "toy", tmp_path / "back.safetensors")
    assert load_file(tmp_path / "back.safetensors")["up.weight"].dtype == ml_dtypes.bfloat16


def test_source_format_is_kept(toy, tmp_path):
    narrow = {key: value.astype(ml_dtypes.bfloat16) for key, value in toy.tensors().items() if key != "step"}
    save_file(narrow, tmp_path / "toy.safetensors")
    source = Source((tmp_path / "toy.safetensors",), config=toy.ToyConfig())
    assert converter.convert({"toy": source}, tmp_path / "narrow").parts["toy"].dtype == "bfloat16"
    converter.convert({"toy": source}, tmp_path / "wide", dtype="float32")
    export(tmp_path / "wide", "toy", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert all(back[key].tobytes() == narrow[key].tobytes() for key in back)


def test_prefix_is_taken_off_and_put_back(toy, tmp_path):
    prefixed = {f"module.{key}": value for key, value in toy.tensors().items()}
    save_file(prefixed, tmp_path / "toy.safetensors")
    source = Source((tmp_path / "toy.safetensors",), config=toy.ToyConfig())
    converter.convert({"toy": source}, tmp_path / "out")
    export(tmp_path / "out", "toy", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert all(np.array_equal(back[key], prefixed[key]) for key in back) and len(back) == len(prefixed) - 3


def test_only_the_alias_is_stored(toy, tmp_path):
    tensors = toy.tensors()
    del tensors["shared.weight"]
    save_file(tensors, tmp_path / "toy.safetensors")
    source = Source((tmp_path / "toy.safetensors",), config=toy.ToyConfig())
    converter.convert({"toy": source}, tmp_path / "out")
    export(tmp_path / "out", "toy", tmp_path / "back.safetensors")
    assert load_file(tmp_path / "back.safetensors").keys() == tensors.keys() - {
        f"blocks.{layer}.freqs" for layer in range(3)
    }


def test_verify_finds_a_changed_source(toy, source, tmp_path):
    converter.convert({"toy": source}, tmp_path / "out")
    changed = toy.tensors()
    changed["blocks.1.qkv.weight"][7, 0] += 1e-3
    changed["step"] += 1
    save_file(changed, source.paths[0])
    assert verify(tmp_path / "out", {"toy": source}) == [
        "toy: the files given are not those that were converted (toy.safetensors)",
        "toy: blocks/k differs from the torch file",
        "toy: the kept tensor step differs from the torch file",
    ]


def test_verify_finds_damage(toy, source, tmp_path):
    converter.convert({"toy": source}, tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    content = json.loads(path.read_text())
    content["parts"]["toy"]["leaves"]["pair/kernel"]["sum"] += 1e-3
    path.write_text(json.dumps(content))
    assert verify(tmp_path / "out") == ["toy: pair/kernel is not what the manifest says"]
    for file in (tmp_path / "out" / "toy").rglob("d/*"):
        file.write_bytes(b"")
    (problem,) = verify(tmp_path / "out")
    assert "cannot be read" in problem
    with pytest.raises(ConversionError, match="cannot be read"):
        store.load_part(tmp_path / "out", "toy")


def test_missing_kept_tensors_are_found(toy, source, tmp_path):
    converter.convert({"toy": source}, tmp_path / "out")
    (tmp_path / "out" / "toy.kept.safetensors").unlink()
    assert verify(tmp_path / "out", {"toy": source}) == ["toy: the kept tensor step differs from the torch file"]


def nothing_is_left(tmp_path):
    return not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_full_disk_leaves_nothing(source, tmp_path, monkeypatch):
    def full(folder, name, leaves):
        folder.joinpath(name).mkdir()
        folder.joinpath(name, "begun").write_bytes(b"1")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_part", full)
    with pytest.raises(ConversionError, match="the disk is full; nothing was kept"):
        converter.convert({"toy": source}, tmp_path / "out")
    assert nothing_is_left(tmp_path)


def test_too_small_a_disk_is_noticed_before_writing(source, tmp_path, monkeypatch):
    monkeypatch.setattr(converter, "SPARE_BYTES", 10**18)
    with pytest.raises(ConversionError, match="GB free"):
        converter.convert({"toy": source}, tmp_path / "out")
    assert nothing_is_left(tmp_path)


def test_interrupted_conversion_leaves_nothing(source, tmp_path, monkeypatch):
    def interrupted(found, leaf):
        raise KeyboardInterrupt

    monkeypatch.setattr(converter, "stored_leaf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        converter.convert({"toy": source}, tmp_path / "out")
    assert nothing_is_left(tmp_path)


def test_full_disk_during_export_leaves_nothing(source, tmp_path, monkeypatch):
    converter.convert({"toy": source}, tmp_path / "converted")

    def full(path, layout, tensors):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rvseg_jax.convert.export._write", full)
    with pytest.raises(ConversionError, match="the disk is full"):
        export(tmp_path / "converted", "toy", tmp_path / "out.safetensors")
    assert nothing_is_left(tmp_path)


def test_bad_sources_write_nothing(toy, source, tmp_path):
    broken = toy.tensors()
    broken["up.weight"] = broken["up.weight"][:4]
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(ConversionError, match=r"1 of wrong shape \(up.weight is \(4, 4, 2, 2\), the model wants"):
        converter.convert({"toy": Source((tmp_path / "broken.safetensors",), config=toy.ToyConfig())}, tmp_path / "out")
    with pytest.raises(ConversionError, match="tokenizer.json: no such file"):
        converter.convert({"toy": source}, tmp_path / "out", tokenizer=tmp_path / "tokenizer.json")
    assert nothing_is_left(tmp_path)


def test_existing_output_is_not_touched(source, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError, match="exists already"):
        converter.convert({"toy": source}, tmp_path / "out")
    converter.convert({"toy": source}, tmp_path / "fine")
    (tmp_path / "back.safetensors").write_bytes(b"mine")
    with pytest.raises(ConversionError, match="exists already"):
        export(tmp_path / "fine", "toy", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == b"mine"


def test_folders_that_are_no_checkpoint(toy, source, tmp_path):
    with pytest.raises(ConversionError, match="no such folder"):
        store.load_part(tmp_path / "absent", "toy")
    with pytest.raises(ConversionError, match="it has no manifest.json"):
        store.load_part(tmp_path, "toy")
    converter.convert({"toy": source}, tmp_path / "out", system="toys")
    with pytest.raises(ConversionError, match="a checkpoint of toys that holds toy, not umt5"):
        store.load_part(tmp_path / "out", "umt5")
    with pytest.raises(ConversionError, match="a checkpoint of toys, not of flowrvs"):
        store.check_system(tmp_path / "out", "flowrvs")
    assert store.check_system(tmp_path / "out", "toys").system == "toys"
    path = tmp_path / "out" / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "version": 99}))
    with pytest.raises(ConversionError, match="version 99 is not known"):
        store.load_part(tmp_path / "out", "toy")
    path.write_text("{}")
    with pytest.raises(ConversionError, match="damaged"):
        store.load_part(tmp_path / "out", "toy")


def test_leaves_of_another_version_are_named(toy, source, tmp_path):
    converter.convert({"toy": source}, tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    content = json.loads(path.read_text())
    content["parts"]["toy"]["config"]["layers"] = 4
    path.write_text(json.dumps(content))
    with pytest.raises(ConversionError, match="convert again"):
        store.load_part(tmp_path / "out", "toy")


def test_one_leaf_is_in_memory_at_a_time(toy, source, tmp_path, monkeypatch):
    made, alive = [], []
    original = converter.stored_leaf

    def watched(found, leaf):
        alive.append(sum(reference() is not None for reference in made))
        array = original(found, leaf)
        made.append(weakref.ref(array))
        return array

    monkeypatch.setattr(converter, "stored_leaf", watched)
    converter.convert({"toy": source}, tmp_path / "out")
    # The writer's thread may still hold the leaf before while the next one is made.
    assert len(alive) == len(engine.leaves_of(store.load_part(tmp_path / "out", "toy"))) and max(alive) <= 1


def test_open_checkpoint_of_an_export_is_a_checkpoint_again(toy, source, tmp_path):
    converter.convert({"toy": source}, tmp_path / "out")
    export(tmp_path / "out", "toy", tmp_path / "back.safetensors")
    again = convert.from_torch("toy", tmp_path / "back.safetensors", toy.ToyConfig())
    assert_same_leaves(again, store.load_part(tmp_path / "out", "toy"))
    assert not open_checkpoint(tmp_path / "back.safetensors").prefix
