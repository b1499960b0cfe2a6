"""Weight files: what is read equals what torch and safetensors wrote, and every defect has its own line."""

import argparse
import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.sources import open_checkpoint


def arrays():
    """Tensors of several number formats."""
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.standard_normal((3, 4)).astype(np.float32),
        "a.half": rng.standard_normal((5,)).astype(np.float16),
        "a.brain": rng.standard_normal((2, 3)).astype(ml_dtypes.bfloat16),
        "a.count": np.asarray(3, np.int64),
        "a.mask": np.asarray([True, False]),
        "a.empty": np.zeros((0, 3), np.float32),
    }


def assert_same(read, wanted):
    assert set(read) == set(wanted)
    for key, value in wanted.items():
        assert read[key].dtype == value.dtype and read[key].shape == value.shape, key
        assert np.ascontiguousarray(read[key]).tobytes() == value.tobytes(), key


def error_of(path, **options):
    with pytest.raises(ConversionError) as caught:
        open_checkpoint(path, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def shards(folder):
    made = arrays()
    keys = sorted(made)
    files = {"one.safetensors": keys[:3], "two.safetensors": keys[3:]}
    for name, mine in files.items():
        save_file({key: made[key] for key in mine}, folder / name)
    index = {"weight_map": {key: name for name, mine in files.items() for key in mine}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path, index, made


def test_safetensors(tmp_path):
    save_file(arrays(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same(open_checkpoint(tmp_path / "model.safetensors").tensors, arrays())
    assert_same(open_checkpoint(tmp_path).tensors, arrays())


def test_sharded_index(tmp_path):
    path, _, made = shards(tmp_path)
    opened = open_checkpoint(tmp_path)
    assert_same(opened.tensors, made)
    assert [file.name for file in opened.files] == [path.name, "one.safetensors", "two.safetensors"]


def test_files_given_one_by_one_are_joined(tmp_path):
    _, _, made = shards(tmp_path)
    assert_same(open_checkpoint([tmp_path / "one.safetensors", tmp_path / "two.safetensors"]).tensors, made)
    assert "is in another shard too" in error_of([tmp_path / "one.safetensors"] * 2)


def test_arrays_are_mapped_not_copied(tmp_path):
    save_file(arrays(), tmp_path / "model.safetensors")
    tensors = open_checkpoint(tmp_path / "model.safetensors").tensors
    assert not tensors["a.weight"].flags.owndata and not tensors["a.weight"].flags.writeable
    before = tensors["a.weight"].copy()
    tensors.drop_pages()
    np.testing.assert_array_equal(tensors["a.weight"], before)


@pytest.mark.parametrize("keep", [0, 4, 40, -5])
def test_truncated_safetensors(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    save_file(arrays(), path)
    path.write_bytes(path.read_bytes()[:keep])
    assert str(path) in error_of(path)


def header_file(path, header, body=b"\0" * 64):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"{nonsense", "no safetensors file"),
        ([1], "no safetensors file"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}, "cannot be 12 bytes"),
        ({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, "damaged"),
        ({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, "number format 'F4'"),
        ({"a": {"dtype": "F32", "shape": [99], "data_offsets": [0, 396]}}, "truncated"),
        ({"a": 3}, "damaged"),
        (b'{"a": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}, "a": {}}', "twice"),
        (
            {
                "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]},
            },
            "overlap",
        ),
    ],
)
def test_damaged_safetensors(tmp_path, header, says):
    assert says in error_of(header_file(tmp_path / "model.safetensors", header))


def test_missing_shard(tmp_path):
    path, _, _ = shards(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    message = error_of(path)
    assert "two.safetensors" in message and "1 of 2 shards are missing" in message


@pytest.mark.parametrize("name", ["../two.safetensors", "/etc/passwd", "..", "", "a\\b"])
def test_index_with_a_path_is_refused(tmp_path, name):
    path, index, _ = shards(tmp_path)
    index["weight_map"]["a.mask"] = name
    path.write_text(json.dumps(index))
    assert "no bare file name" in error_of(path)


def test_index_and_shards_disagree(tmp_path):
    path, index, _ = shards(tmp_path)
    listed = dict(index["weight_map"])
    path.write_text(json.dumps({"weight_map": {**listed, "b": "one.safetensors"}}))
    assert "b is not in one.safetensors" in error_of(path)
    listed.pop("a.mask")
    path.write_text(json.dumps({"weight_map": listed}))
    assert "does not list a.mask" in error_of(path)
    path.write_text("{}")
    assert "no index of shards" in error_of(path)


def test_paths_that_hold_nothing(tmp_path):
    assert "no such file" in error_of(tmp_path / "absent.pth")
    assert "holds no weight file" in error_of(tmp_path)
    assert "local disk" in error_of("gs://bucket/model.safetensors")
    (tmp_path / "a.pth").write_bytes(b"")
    assert "empty" in error_of(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in error_of(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(b"just some text that is no weight file")
    assert "neither" in error_of(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"x")
    assert "several weight files" in error_of(tmp_path)


def torch_tensors(torch):
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    made = {
        "whole": whole,
        "rows": whole[1:3],
        "turned": whole.t(),
        "stepped": whole[::2, 1::3],
        "spread": torch.ones(3, 1).expand(3, 4),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    for name in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"):
        made[name] = torch.arange(5).to(getattr(torch, name))
    for name in ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "complex64"):
        made[name] = torch.arange(5).to(getattr(torch, name))
    return made


def numpy_of(torch, tensor):
    """The array of a tensor, by its bytes where numpy lacks the number format."""
    tensor = tensor.detach().contiguous()
    name = str(tensor.dtype).removeprefix("torch.")
    if hasattr(ml_dtypes, name):
        return tensor.view(torch.uint8).numpy().view(getattr(ml_dtypes, name)).reshape(tensor.shape)
    return tensor.numpy()


@pytest.mark.parametrize("protocol", [2, 4])
def test_torch_archive(tmp_path, torch, protocol):
    made = torch_tensors(torch)
    torch.save(OrderedDict(made), tmp_path / "model.pth", pickle_protocol=protocol)
    read = open_checkpoint(tmp_path / "model.pth").tensors
    assert_same(read, {key: numpy_of(torch, value) for key, value in made.items()})
    assert np.shares_memory(read["whole"], read["rows"]) and np.shares_memory(read["whole"], read["turned"])


def test_module_state_dict_and_prefixes(tmp_path, torch):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    wanted = {key: numpy_of(torch, value) for key, value in module.state_dict().items()}
    torch.save(module.state_dict(), tmp_path / "plain.pth")
    assert_same(open_checkpoint(tmp_path / "plain.pth").tensors, wanted)
    prefixed = {f"module.vae.{key}": value for key, value in module.state_dict().items()}
    torch.save({"model": prefixed}, tmp_path / "wrapped.pth")
    opened = open_checkpoint(tmp_path / "wrapped.pth", prefixes=("vae.",))
    assert_same(opened.tensors, wanted)
    assert opened.prefix == "module.vae."


def training_checkpoint(torch, module):
    """A training checkpoint as FlowRVS writes it."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30], gamma=0.9)
    return {
        "model": module.state_dict(),
        "ema_model": {
            "decay": 0.9999,
            "use_ema_warmup": False,
            "optimization_step": 3,
            "shadow_params": [parameter.detach() + 1 for parameter in module.parameters()],
        },
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "epoch": 1,
        "args": argparse.Namespace(lr=5e-5, device="cuda", best=np.float64(0.5)),
    }


def test_ema_wins_over_model_and_can_be_refused(tmp_path, torch):
    module = torch.nn.Linear(2, 3)
    path = tmp_path / "checkpoint.pth"
    torch.save(training_checkpoint(torch, module), path)
    trained = {key: value.numpy() for key, value in module.state_dict().items()}
    averaged = {key: value + 1 for key, value in trained.items()}
    assert_same(open_checkpoint(path).named(["weight", "bias"]), averaged)
    assert_same(open_checkpoint(path, weights="ema").named(["weight", "bias"]), averaged)
    assert_same(open_checkpoint(path, weights="model").named(None), trained)


def test_ema_list_needs_its_order(tmp_path, torch):
    path = tmp_path / "checkpoint.pth"
    torch.save({"ema_model": {"shadow_params": [torch.ones(2), torch.ones(3)]}}, path)
    opened = open_checkpoint(path)
    assert_same(opened.named(["a", "b"]), {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)})
    with pytest.raises(ConversionError, match="has 2 tensors, the model has 3 parameters"):
        opened.named(["a", "b", "c"])
    with pytest.raises(ConversionError, match="order of its EMA list is not known"):
        opened.named(None)
    assert "only EMA" in error_of(path, weights="model")


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        ([1, 2], "holds a list"),
        ({}, "not a state dict"),
        ({"epoch": 3, "loss": 0.5}, "its entries are epoch, loss"),
        ({"model": {"a": 3}}, "entry 'a' of its state dict is a int"),
        ({"model": {}}, "holds no tensors"),
        ({"ema_model": {"decay": 0.9}, "model": {}}, "no list shadow_params"),
    ],
)
def test_archives_without_a_state_dict(tmp_path, torch, saved, says):
    torch.save(saved, tmp_path / "model.pth")
    assert says in error_of(tmp_path / "model.pth")


def test_weights_that_are_not_there(tmp_path, torch):
    torch.save({"a": torch.ones(2)}, tmp_path / "plain.pth")
    assert "no EMA" in error_of(tmp_path / "plain.pth", weights="ema")
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "model.pth")
    assert "no EMA" in error_of(tmp_path / "model.pth", weights="ema")
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    assert "no EMA" in error_of(tmp_path / "a.safetensors", weights="ema")


def test_legacy_format_names_the_fix(tmp_path, torch):
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    message = error_of(path)
    assert "legacy format" in message and "torch.save(torch.load('old.pth'" in message


def test_plain_pickle_is_no_archive(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"a": 1}))
    assert "no tensor archive" in error_of(tmp_path / "a.pth")


class Command:
    """What a malicious file would hold."""

    def __reduce__(self):
        return os.system, ("echo this must not run",)


def archive(path, content, records=None, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("archive/data.pkl", content)
        for name, data in (records or {}).items():
            file.writestr(f"archive/{name}", data)
    return path


def test_forbidden_name_is_not_run(tmp_path, capfd):
    path = archive(tmp_path / "a.pth", pickle.dumps({"a": Command()}, protocol=2))
    message = error_of(path)
    assert "system" in message and "nothing was run" in message
    assert "must not run" not in capfd.readouterr().out


def forged(shape, strides, offset=0, count=4, storage=None):
    """A pickle of one tensor with chosen geometry, over a storage of four float32."""

    class Name:
        def __init__(self, module, name):
            self.module, self.name = module, name

    class Writer(pickle._Pickler):
        def persistent_id(self, thing):
            if thing == "the storage":
                return ("storage", Name("torch", "FloatStorage"), "0", "cpu", count)
            return None

        def save(self, thing, save_persistent_id=True):
            if isinstance(thing, Name):
                self.write(pickle.GLOBAL + f"{thing.module}\n{thing.name}\n".encode())
            elif isinstance(thing, Tensor):
                self.save(Name("torch._utils", "_rebuild_tensor_v2"))
                self.save((thing.storage, thing.offset, thing.shape, thing.strides, False, None))
                self.write(pickle.REDUCE)
            else:
                super().save(thing, save_persistent_id)

    class Tensor:
        def __init__(self, storage, offset, shape, strides):
            self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    first = "the storage" if storage is None else Tensor("the storage", *storage)
    buffer = io.BytesIO()
    Writer(buffer, 2).dump({"a": Tensor(first, offset, shape, strides)})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("geometry", "says"),
    [
        ({"shape": (5,), "strides": (1,)}, "beyond its storage"),
        ({"shape": (2,), "strides": (4,)}, "beyond its storage"),
        ({"shape": (2,), "strides": (-1,)}, "strides"),
        ({"shape": (1,), "strides": (1,), "offset": 4}, "beyond its storage"),
        ({"shape": (2, 2), "strides": (1,)}, "strides"),
        ({"shape": (4,), "strides": (1,), "count": 5}, "too short"),
        # A view of one number spread to a million entries must not serve as a storage of a million numbers.
        (
            {"shape": (9,), "strides": (1,), "storage": (0, (1000000,), (0,))},
            "without a storage",
        ),
    ],
)
def test_forged_tensors_stay_inside_their_storage(tmp_path, geometry, says):
    path = archive(tmp_path / "a.pth", forged(**geometry), {"data/0": np.arange(4, dtype=np.float32).tobytes()})
    assert says in error_of(path)


def test_forged_tensor_within_its_storage_is_read(tmp_path):
    body = {"data/0": np.arange(4, dtype=np.float32).tobytes()}
    path = archive(tmp_path / "a.pth", forged((2, 2), (1, 2)), body)
    np.testing.assert_array_equal(open_checkpoint(path).tensors["a"], [[0, 2], [1, 3]])


def test_damaged_archives(tmp_path, torch):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.arange(1000.0)}, path)
    whole = path.read_bytes()
    for keep in (10, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:keep])
        assert "truncated or damaged" in error_of(path)
    assert "record data/0 of a tensor is missing" in error_of(archive(path, forged((4,), (1,))))
    assert "its pickle is damaged" in error_of(archive(path, b"\x80\x02}q\x00("))
    assert "compressed" in error_of(archive(path, pickle.dumps({}), method=zipfile.ZIP_DEFLATED))
    assert "TorchScript" in error_of(archive(path, pickle.dumps({}), {"constants.pkl": b""}))
    assert "big-endian" in error_of(archive(path, pickle.dumps({}), {"byteorder": b"big"}))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("word/document.xml", b"<xml/>")
    assert "no archive of torch.save" in error_of(path)
