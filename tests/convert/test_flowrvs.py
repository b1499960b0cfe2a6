"""FlowRVS's own files, at tiny sizes, through the command: pipeline folder, EMA checkpoint, tuned decoder."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from rvseg_jax import convert
from rvseg_jax.convert import engine, registry
from rvseg_jax.convert.__main__ import main
from rvseg_jax.convert.fit import fit
from rvseg_jax.convert.manifest import config_fields, read_manifest
from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.sources import Checkpoint
from rvseg_jax.convert.tensors import Tensors

PARTS = ("wan_dit", "wan_vae", "umt5")
CLASS_NAMES = {
    "wan_dit": {"_class_name": "WanTransformer3DModel"},
    "wan_vae": {"_class_name": "AutoencoderKLWan"},
    "umt5": {"architectures": ["UMT5EncoderModel"]},
}


def published_shapes(name, config):
    """Keys of a published checkpoint with arrays that have a shape and no memory."""
    plan, _ = engine.plan_for(registry.part(name), config)
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in plan.key_shapes.items()}


@pytest.mark.parametrize(
    ("name", "change", "keys", "parameters"),
    [
        ("wan_dit", lambda cfg: cfg, 825, 1_418_996_800),
        ("wan_dit", lambda cfg: cfg.with_direct_video_injection(), 825, 1_418_996_800 + 1536 * 16 * 4),
        ("wan_vae", lambda cfg: cfg, 194, 126_892_531),
        ("wan_vae", lambda cfg: dataclasses.replace(cfg, out_channels=1), 194, 126_887_345),
        ("umt5", lambda cfg: cfg, 242, 5_680_910_336),
    ],
)
def test_published_sizes_are_told_by_their_shapes(name, change, keys, parameters):
    part = registry.part(name)
    wanted = change(part.candidates(None)[0])
    tensors = published_shapes(name, wanted)
    assert len(tensors) == keys and sum(array.size for array in tensors.values()) == parameters
    assert fit(part, Checkpoint(Tensors(tensors))).config == wanted


def test_nearest_published_size_is_named_when_a_key_is_missing():
    part = registry.part("wan_dit")
    tensors = published_shapes("wan_dit", part.candidates(None)[0])
    del tensors["blocks.29.ffn.net.2.bias"]
    with pytest.raises(ConversionError, match=r"1 missing \(blocks.29.ffn.net.2.bias\); for sizes of your own"):
        fit(part, Checkpoint(Tensors(tensors)))


@pytest.fixture(scope="module")
def tiny():
    """{part: (config, torch tensors)} of random tiny models; FlowRVS's DiT with DVI, its VAE with one channel."""
    made = {}
    for name in PARTS:
        part = registry.part(name)
        config = part.config_class().tiny()
        if name == "wan_vae":
            config = dataclasses.replace(config, out_channels=3)
        made[name] = (config, random_tensors(name, config, 0))
    dvi = made["wan_dit"][0].with_direct_video_injection()
    mask = dataclasses.replace(made["wan_vae"][0], out_channels=1)
    made["flowrvs_dit"] = (dvi, random_tensors("wan_dit", dvi, 1))
    made["flowrvs_vae"] = (mask, random_tensors("wan_vae", mask, 1))
    return made


def random_tensors(name, config, seed):
    rng = np.random.default_rng(seed)
    plan, _ = engine.plan_for(registry.part(name), config)
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in plan.key_shapes.items()}


def write_pipeline(folder, tiny):
    """A folder laid out like Wan2.1-T2V-Diffusers; the transformer in two shards with an index."""
    for name in PARTS:
        config, tensors = tiny[name]
        place = folder / registry.part(name).folder
        place.mkdir(parents=True)
        fields = {**CLASS_NAMES[name], **config_fields(config)}
        fields.pop("conv_impl", None)  # how this library computes a convolution; upstream has no such field
        (place / "config.json").write_text(json.dumps(fields))
        if name == "wan_dit":
            keys = list(tensors)
            halves = {"a.safetensors": keys[: len(keys) // 2], "b.safetensors": keys[len(keys) // 2 :]}
            for file, mine in halves.items():
                save_file({key: tensors[key] for key in mine}, place / file)
            index = {"weight_map": {key: file for file, mine in halves.items() for key in mine}}
            (place / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
        else:
            save_file(tensors, place / "model.safetensors")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


def write_flowrvs(folder, tiny, torch):
    """A training checkpoint whose EMA list differs from its model by 1, and the tuned VAE."""
    config, tensors = tiny["flowrvs_dit"]
    order = registry.part("wan_dit").parameter_order(config)
    torch.save(
        {
            "model": {key: torch.from_numpy(value).bfloat16() for key, value in tensors.items()},
            "ema_model": {"decay": 0.999, "shadow_params": [torch.from_numpy(tensors[key] + 1) for key in order]},
            "epoch": 3,
        },
        folder / "dit.pth",
    )
    _, vae = tiny["flowrvs_vae"]
    torch.save({f"vae.{key}": torch.from_numpy(value) for key, value in vae.items()}, folder / "tuned_vae.pth")
    (folder / "dit.json").write_text(json.dumps(config_fields(config)))
    (folder / "vae.json").write_text(json.dumps(config_fields(tiny["flowrvs_vae"][0])))
    return [
        f"wan_dit={folder / 'dit.pth'}",
        f"wan_vae={folder / 'tuned_vae.pth'}",
    ], ["--config", f"wan_dit={folder / 'dit.json'}", "--config", f"wan_vae={folder / 'vae.json'}"]


def assert_holds(module, name, tensors):
    back = convert.to_torch(name, module, config_of(name, module, tensors))
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def config_of(name, module, tensors):
    return getattr(module, "cfg", None) or registry.part(name).config_class().tiny()


def test_pipeline_folder(tiny, tmp_path, capsys):
    wan, out = write_pipeline(tmp_path / "wan", tiny), tmp_path / "out"
    assert main(["convert", "flowrvs", str(wan), "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: licence of the weights: Apache-2.0" in printed for name in PARTS)
    assert {path.name for path in out.iterdir()} == {"manifest.json", "tokenizer.json", *PARTS}
    assert convert.check_system(out, "flowrvs").system == "flowrvs"
    for name in PARTS:
        module = convert.load_part(out, name)
        assert isinstance(module, nnx.Module)
        assert_holds(module, name, tiny[name][1])
    assert main(["verify", str(out), str(wan)]) == 0
    (out / "tokenizer.json").write_text("{}")
    assert main(["verify", str(out)]) == 1


def test_flowrvs_files_over_a_pipeline_folder(tiny, tmp_path, torch, capsys):
    wan, out = write_pipeline(tmp_path / "wan", tiny), tmp_path / "out"
    sources, configs = write_flowrvs(tmp_path, tiny, torch)
    assert main(["convert", "flowrvs", str(wan), *sources, *configs, "-o", str(out)]) == 0
    records = read_manifest(out).parts
    assert records["wan_dit"].weights == "ema" and records["wan_vae"].prefix == "vae."
    assert records["wan_dit"].config["in_channels"] == 2 * tiny["wan_dit"][0].in_channels
    averaged = {key: value + 1 for key, value in tiny["flowrvs_dit"][1].items()}
    assert_holds(convert.load_part(out, "wan_dit"), "wan_dit", averaged)
    assert_holds(convert.load_part(out, "wan_vae"), "wan_vae", tiny["flowrvs_vae"][1])
    assert main(["verify", str(out), str(wan), *sources]) == 0
    assert main(["export", str(out), "wan_vae", "-o", str(tmp_path / "vae.safetensors")]) == 0
    exported = load_file(tmp_path / "vae.safetensors")
    wanted = {f"vae.{key}": value for key, value in tiny["flowrvs_vae"][1].items()}
    assert exported.keys() == wanted.keys()
    assert all(np.array_equal(exported[key], value) for key, value in wanted.items())
    capsys.readouterr()


def test_trained_weights_can_be_asked_for(tiny, tmp_path, torch):
    sources, configs = write_flowrvs(tmp_path, tiny, torch)
    words = ["convert", "wan_dit", sources[0], *configs[:2], "--weights", "model", "-o", str(tmp_path / "out")]
    assert main(words) == 0
    record = read_manifest(tmp_path / "out").parts["wan_dit"]
    assert (record.weights, record.dtype) == ("model", "bfloat16")


def test_ema_of_another_model_is_refused(tiny, tmp_path, torch):
    config, tensors = tiny["flowrvs_dit"]
    order = registry.part("wan_dit").parameter_order(config)
    shadow = [torch.from_numpy(tensors[key]) for key in order]
    # The order of today's diffusers: norms behind the projections. A copy that broadcasts would take it.
    first = order.index("blocks.0.attn1.norm_q.weight")
    shadow[first], shadow[first + 2] = shadow[first + 2], shadow[first]
    for name, saved in {"swapped": shadow, "short": shadow[:-1]}.items():
        torch.save({"ema_model": {"shadow_params": saved}}, tmp_path / f"{name}.pth")
    with pytest.raises(ConversionError, match=r"2 of wrong shape \(blocks.0.attn1"):
        convert.from_torch("wan_dit", tmp_path / "swapped.pth", config)
    with pytest.raises(ConversionError, match=f"has {len(order) - 1} tensors, the model has {len(order)}"):
        convert.from_torch("wan_dit", tmp_path / "short.pth", config)


def test_bad_requests(tiny, tmp_path, capsys):
    wan, out = write_pipeline(tmp_path / "wan", tiny), str(tmp_path / "out")

    def error(*words):
        assert main(list(words)) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1
        return message

    assert "flowrvs has no weights for wan_dit" in error("convert", "flowrvs", f"umt5={wan}", "-o", out)
    assert "which part is it?" in error("convert", "flowrvs", str(tmp_path), "-o", out)
    assert "unknown part 'sam9'" in error("convert", "sam9", str(wan), "-o", out)
    assert "umt5 is not one of wan_dit" in error("convert", "wan_dit", f"umt5={wan}", "-o", out)
    assert "choose one of auto, ema, model" in error("convert", "wan_dit", str(wan), "--weights", "best", "-o", out)
    assert "none of the" in error("convert", "umt5", str(wan / "vae"), "-o", out)
    assert "no converted checkpoint" in error("verify", str(wan))
    assert "no such file or folder" in error("inspect", str(tmp_path / "absent"))
    (wan / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKLWan", "depth": 3}')
    assert "vae/config.json: unknown field 'depth'" in error("convert", "flowrvs", str(wan), "-o", out)
    (tmp_path / "config.json").write_text('{"depth": 3}')
    config = f"wan_dit={tmp_path / 'config.json'}"
    assert "has no field 'depth'" in error("convert", "flowrvs", str(wan), "--config", config, "-o", out)
    (wan / "tokenizer" / "tokenizer.json").unlink()
    assert "give --tokenizer" in error("convert", "flowrvs", str(wan), "-o", out)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_inspect(tiny, tmp_path, capsys):
    wan, out = write_pipeline(tmp_path / "wan", tiny), tmp_path / "out"
    assert main(["inspect", str(wan / "transformer"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [fitting["part"] for fitting in found["fits"]] == ["wan_dit"]
    tensors = tiny["wan_dit"][1]
    assert {key: tuple(entry["shape"]) for key, entry in found["tensors"].items()} == {
        key: value.shape for key, value in tensors.items()
    }
    assert main(["inspect", str(wan / "vae")]) == 0
    assert "fits wan_vae; licence" in capsys.readouterr().out
    assert main(["convert", "umt5", str(wan), "-o", str(out)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    assert "umt5: 12 leaves in float32" in capsys.readouterr().out
    assert main(["inspect", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"]["umt5"]["config"]["d_model"] == tiny["umt5"][0].d_model
