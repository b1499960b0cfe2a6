"""Golden cases: every bundled one passes, a moved number fails by name, and files are not trusted."""

import json
import shutil
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rvseg_jax.core.errors import InputError, NotAvailable, UserError
from rvseg_jax.parity import command, golden, kinds
from rvseg_jax.parity.compare import Excuse, Produced, compare
from rvseg_jax.parity.golden import Case
from rvseg_jax.parity.weights_rule import rule_weights

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CASES = sorted(path for part in ("flowrvs", "metrics_davis", "xmem") for path in (GOLDEN / part).glob("*.json"))


def run(*arguments: object) -> int:
    """`rvseg parity ARGUMENTS` with the exit code of the command line."""
    parser = ArgumentParser()
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args([str(argument) for argument in arguments]))
    except UserError as error:
        print(error)
        return error.exit_code


def copied(source: Path, folder: Path, name: str = "copy") -> Path:
    """The JSON of a copy of a case."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source.with_suffix(".safetensors"), folder / f"{name}.safetensors")
    meta = json.loads(source.read_text())
    if "file" in meta["weights"]:
        meta["weights"]["file"] = f"{name}.safetensors"
    (folder / f"{name}.json").write_text(json.dumps(meta))
    return folder / f"{name}.json"


def edited(path: Path, **changes: object) -> Path:
    """`path` after setting top-level fields of its JSON."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def a_case(outputs: dict[str, np.ndarray], **fields: object) -> Case:
    return Case(Path("a.json"), "part", "kind", {}, {}, outputs, **fields)


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_bundled_case_passes(path):
    case = golden.read(path)
    report = compare(case, kinds.run(case))
    assert report.passed, [row for row in report.rows if not row.passed]
    assert {row.name for row in report.rows} == set(case.outputs)
    assert all(row.status == "ok" for row in report.rows), "every tap of the bundled cases is exposed"


@pytest.mark.parametrize(
    ("part", "case", "moved"),
    [
        ("flowrvs", "dit_plain", "velocity"),
        ("flowrvs", "dit_plain", "tap/block0"),
        ("flowrvs", "dvi_surgery", "weight"),
        ("metrics_davis", "pairs_7x5", "f_void"),
        ("metrics_davis", "statistics", "24"),
    ],
)
def test_one_output_moved_by_a_percent_fails_and_is_named(part, case, moved, tmp_path, capsys):
    path = copied(GOLDEN / part / f"{case}.json", tmp_path)
    tensors = load_file(path.with_suffix(".safetensors"))
    tensors[f"out/{moved}"] = (tensors[f"out/{moved}"] * 1.01).astype(np.float32)
    save_file(tensors, path.with_suffix(".safetensors"))
    assert run(path) == 1
    printed = capsys.readouterr().out
    assert f"beyond tolerance: {moved}\n" in printed
    if moved.startswith("tap/"):
        assert "first tap that diverges: block0" in printed


def test_the_first_of_several_diverging_taps_is_named(tmp_path, capsys):
    path = copied(GOLDEN / "flowrvs" / "dit_dvi.json", tmp_path)
    tensors = load_file(path.with_suffix(".safetensors"))
    for name in ("velocity", "tap/block1", "tap/text"):
        tensors[f"out/{name}"] *= np.float32(1.01)
    save_file(tensors, path.with_suffix(".safetensors"))
    assert run(path, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False and report["cases"][0]["first_diverging_tap"] == "text"


def test_unknown_config_field_is_an_error(tmp_path, capsys):
    path = copied(GOLDEN / "flowrvs" / "dit_plain.json", tmp_path)
    config = json.loads(path.read_text())["config"] | {"window_size": 7}
    assert run(edited(path, config=config)) == 2
    assert "window_size" in capsys.readouterr().out
    nested = {"dit": {"heads": 3}, "vae": {}, "num_steps": [1]}
    with pytest.raises(InputError, match="config.dit has the field 'heads'"):
        kinds.kind_of("flowrvs", "euler").fields.check(nested)


def test_config_that_contradicts_the_weights_is_an_error(tmp_path):
    path = copied(GOLDEN / "flowrvs" / "dit_plain.json", tmp_path)
    config = json.loads(path.read_text())["config"] | {"ffn_dim": 128}
    assert run(edited(path, config=config)) == 2


def test_unknown_part_or_kind_is_not_a_pass(tmp_path, capsys):
    path = copied(GOLDEN / "metrics_davis" / "statistics.json", tmp_path)
    assert run(edited(path, part="raft_huge")) == 3
    assert "raft_huge" in capsys.readouterr().out
    assert run(edited(path, part="metrics_davis", kind="quartiles")) == 3
    assert "quartiles" in capsys.readouterr().out
    with pytest.raises(NotAvailable):
        kinds.kind_of("metrics_davis", "quartiles")


def test_nothing_to_run_is_an_error(tmp_path):
    assert run(tmp_path) == 2
    assert run(tmp_path / "absent") == 2


def test_a_difference_outranks_other_errors(tmp_path):
    unknown = copied(GOLDEN / "metrics_davis" / "statistics.json", tmp_path, "a")
    edited(unknown, part="raft_huge")
    copied(GOLDEN / "metrics_davis" / "statistics.json", tmp_path, "b")
    assert run(tmp_path) == 3
    broken = copied(GOLDEN / "metrics_davis" / "statistics.json", tmp_path, "c")
    edited(broken, config={"lengths": [], "colour": 1})
    assert run(tmp_path) == 2
    moved = copied(GOLDEN / "metrics_davis" / "statistics.json", tmp_path, "d").with_suffix(".safetensors")
    save_file(
        {name: array * np.float32(1.01) if name == "out/4" else array for name, array in load_file(moved).items()},
        moved,
    )
    assert run(tmp_path) == 1


@pytest.mark.parametrize("name", ["../other.json", "/etc/passwd", "sub/w.safetensors", "..", "", "c:x", "a\0b", 7])
def test_paths_inside_a_json_are_refused(name, tmp_path):
    path = copied(GOLDEN / "flowrvs" / "dit_plain.json", tmp_path)
    meta = json.loads(path.read_text())
    forms = [
        {"weights": {"file": name}},
        {"weights": {"transformer": name}},
        {"weights": {"rule": "", "keys_from": name, "seed": 0}},
        {"weights": {"rule": "", "keys": {}, "stored": ["x"], "stored_from": name}},
        {"tensors": {"in/timestep": {"file": name}}},
    ]
    for form in forms:
        path.write_text(json.dumps(meta | form))
        with pytest.raises(InputError, match="bare names"):
            golden.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors": {"out/velocity": {"shape": [1, 2]}}}, "describes"),
        ({"tensors": {"out/missing": {"shape": [1]}}}, "not in its tensors"),
        ({"tolerance": {"outputs": {"velocity": {"suggested_rel": float("inf")}}}}, "suggested_rel"),
        ({"tolerance": {"outputs": {"velocity": {"suggested_rel": "big"}}}}, "suggested_rel"),
        ({"weights": {"file": "copy.safetensors", "keys": {"proj_out.bias": [3]}}}, "differ at"),
        ({"weights": {"transformer": "copy.json"}}, "must hold them itself"),
        ({"weights": []}, "weights must be an object"),
        ({"part": None}, "part must be a text"),
    ],
)
def test_malformed_case_is_an_input_error(change, message, tmp_path):
    path = edited(copied(GOLDEN / "flowrvs" / "dit_plain.json", tmp_path), **change)
    if "transformer" in change.get("weights", ()):
        (tmp_path / "outer.json").write_text(path.read_text())
        shutil.copy(path.with_suffix(".safetensors"), tmp_path / "outer.safetensors")
    with pytest.raises(InputError, match=message):
        golden.read(path)


def test_unreadable_files_are_input_errors(tmp_path):
    path = copied(GOLDEN / "flowrvs" / "dvi_surgery.json", tmp_path)
    path.with_suffix(".safetensors").write_bytes(b"\xff" * 64)
    assert run(path) == 2
    path.with_suffix(".safetensors").unlink()
    assert run(tmp_path) == 2, "a case whose tensors are lost is not passed over"
    path.write_text("{" * 10_000)
    assert run(path) == 2


def test_weights_rule_by_hand():
    """The rule restated for single tensors, and the changes in their order."""
    weights = rule_weights(
        {"a.weight": [2, 3], "a.bias": [3], "n.weight": [4], "bn.running_var": [2], "n.num_batches_tracked": []}, 5
    )
    key = 0x0C3A6CF1 + 5 * 2**32  # CRC-32 of b"weight:a.weight"
    draw = np.random.Generator(np.random.Philox(key=key)).standard_normal((2, 3))
    np.testing.assert_array_equal(weights["a.weight"], (draw / np.sqrt(3)).astype(np.float32))
    assert np.all(weights["bn.running_var"] >= 1) and abs(weights["n.weight"].mean() - 1) < 0.2
    assert weights["n.num_batches_tracked"] == 0 and weights["n.num_batches_tracked"].dtype == np.int64
    changed = rule_weights(
        {"a.bias": [3]},
        5,
        [
            {"match": r"\.(weight|bias)$", "op": "mul", "value": 2.0},
            {"match": "bias", "op": "mul", "value": [0.0, 1.0, 1.0]},
        ],
    )["a.bias"]
    np.testing.assert_array_equal(changed, weights["a.bias"] * np.float32([0, 2, 2]))


@pytest.mark.parametrize(
    "change",
    [
        {"match": "(a+)+$", "op": "mul", "value": 1.0},
        {"match": "[", "op": "mul", "value": 1.0},
        {"match": "a", "op": "eval", "value": 1.0},
        {"match": "a", "op": "set", "value": [1.0, 2.0]},
        {"match": "a", "op": "set"},
    ],
)
def test_weights_rule_refuses_changes(change):
    with pytest.raises(InputError):
        rule_weights({"a": [3]}, 0, [change])
    with pytest.raises(InputError, match="elements"):
        rule_weights({"a": [2**20, 2**20]}, 0)


def test_sentinels_must_agree_and_do_not_set_the_scale():
    reference = np.float32([[-1024, -1024], [1.0, 2.0]])
    case = a_case({"x": reference}, bars={"x": 1e-3})
    close = np.float32([[-1024, -1024], [1.0, 2.001]])
    assert compare(case, Produced({"x": close}, sentinel=-1024.0)).passed
    far = np.float32([[-1024, -1024], [1.0, 2.1]])
    assert compare(case, Produced({"x": far})).passed, "without the sentinel the plane of -1024 hides the error"
    assert not compare(case, Produced({"x": far}, sentinel=-1024.0)).passed
    elsewhere = np.float32([[-1024, -1023], [1.0, 2.0]])
    assert not compare(case, Produced({"x": elsewhere}, sentinel=-1024.0)).passed


def test_comparison_rules():
    reference = np.zeros((200, 200), np.uint8)
    flipped = reference.copy()
    flipped.flat[:4] = 1
    case = a_case({"mask": reference})
    assert compare(case, Produced({"mask": flipped}, masks=frozenset({"mask"}))).passed
    assert not compare(case, Produced({"mask": flipped})).passed, "integers are equal or wrong"
    flipped.flat[4] = 1
    assert not compare(case, Produced({"mask": flipped}, masks=frozenset({"mask"}))).passed
    assert compare(case, Produced({"mask": reference[1:]})).rows[0].status == "shape"
    assert compare(case, Produced({"mask": reference.astype(np.float32)})).rows[0].status == "dtype"
    assert compare(case, Produced({})).rows[0].status == "missing"
    numbers = a_case({"x": np.ones(3, np.float32), "tap/t": np.ones(1, np.float32)})
    assert not compare(numbers, Produced({"x": np.array([1, 1, np.nan])})).passed
    excused = Produced({"x": np.array([1, 1, 9.0])}, excuses={"x": Excuse(np.array([False, False, True]), "known")})
    report = compare(numbers, excused)
    assert report.passed and report.rows[-1].status == "not exposed" and report.rows[0].note == "known"
    with pytest.raises(InputError, match="nothing to compare"):
        compare(a_case({"tap/t": np.ones(1)}), Produced({}))


def test_long_lists_excuse_only_the_decay(tmp_path):
    """Upstream's decay of 300 scores is NaN, stored as -1000; mean and recall are compared."""
    path = copied(GOLDEN / "metrics_davis" / "statistics.json", tmp_path)
    values = np.linspace(1, 0, 300, dtype=np.float32)
    mean, recall = np.float32(values.mean(dtype=np.float64)), np.float32(np.mean(values > 0.5))
    for stored, code in ((recall, 0), (recall + np.float32(0.01), 1)):
        tensors = {"in/values/300": values, "out/300": np.float32([mean, stored, -1000])}
        save_file(tensors, path.with_suffix(".safetensors"))
        assert run(edited(path, tensors={})) == code


RECORDED_DIT = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 3,
    "attention_head_dim": 14,
    "in_channels": 6,
    "out_channels": 6,
    "text_dim": 10,
    "freq_dim": 16,
    "ffn_dim": 40,
    "num_layers": 3,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "rope_max_seq_len": 16,
}
RECORDED_VAE = {
    "base_dim": 4,
    "z_dim": 3,
    "dim_mult": [1, 2, 1],
    "num_res_blocks": 2,
    "temperal_downsample": [True, False],
    "latents_mean": [0.1, -0.2, 0.3],
    "latents_std": [1.5, 0.5, 2.0],
}
SCRIPT = """
import torch
from diffusers import WanTransformer3DModel
from rvseg_jax.parity.record import Recording

def cases():
    torch.manual_seed(0)
    config = {config}
    model = WanTransformer3DModel(**config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    inputs = {{
        "hidden_states": torch.randn(1, 6, 2, 6, 4),
        "timestep": torch.tensor([700.0]),
        "encoder_hidden_states": torch.randn(1, 5, 10),
    }}
    yield Recording("mine", "dit_plain", model, config, inputs, source="diffusers")
"""


def test_recorded_transformer_of_another_size_passes(torch, tmp_path, capsys):
    pytest.importorskip("diffusers")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(config=repr(RECORDED_DIT)))
    assert run("record", script, "--part", "flowrvs", "-o", tmp_path / "cases") == 0
    assert run(tmp_path / "cases", "--json") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])["cases"][0]
    names = [row["output"] for row in report["outputs"] if row["status"] == "ok"]
    assert names == ["tap/temb", "tap/time_proj", "tap/text", "tap/block0", "tap/block1", "tap/block2", "velocity"]


@pytest.mark.parametrize("kind", ["mask_vae", pytest.param("wan_vae_rgb", marks=pytest.mark.slow)])
def test_recorded_autoencoder_of_another_size_passes(kind, torch, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from rvseg_jax.parity.record import Recording, record

    channels = 1 if kind == "mask_vae" else 3
    torch.manual_seed(1)
    model = diffusers.AutoencoderKLWan(**RECORDED_VAE, out_channels=channels)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    inputs = {"latent": torch.randn(1, 3, 2, 2, 3)}
    if kind == "mask_vae":
        inputs |= {"video": torch.rand(1, 3, 5, 16, 24) * 2 - 1, "mask": torch.randint(2, (1, 5, 1, 16, 24)).float()}
    else:
        inputs["one_frame"] = torch.rand(1, 3, 1, 16, 24) * 2 - 1
    config = RECORDED_VAE | {"out_channels_decoder": channels}
    path = record(Recording("vae", kind, model, config, inputs), "flowrvs", tmp_path)
    case = golden.read(path)
    assert case.outputs["tap/decode_unclamped"].shape == case.outputs["decode"].shape
    report = compare(case, kinds.run(case))
    assert report.passed, [row for row in report.rows if not row.passed]


def test_recorder_refuses_what_it_cannot_show(torch, tmp_path):
    from rvseg_jax.parity.record import Recording, record

    class Noisy(torch.nn.Module):
        def forward(self, hidden_states, timestep, encoder_hidden_states, return_dict):
            return (hidden_states + torch.rand_like(hidden_states),)

    inputs = {
        "hidden_states": torch.zeros(1, 1, 1, 2, 2),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, 1, 1),
    }
    good = Recording("noisy", "dit_plain", Noisy(), {}, inputs)
    with pytest.raises(InputError, match="switch off what is random"):
        record(good, "flowrvs", tmp_path)
    wrong = [
        (Recording("../up", "dit_plain", Noisy(), {}, inputs), "name of a file"),
        (Recording("a", "dit_plain", Noisy(), {"width": 3}, inputs), "width"),
        (Recording("a", "dit_plain", Noisy(), {}, {"timestep": torch.zeros(1)}), "lacks the input 'hidden_states'"),
        (Recording("a", "dit_plain", Noisy(), {}, {k: v.double() for k, v in inputs.items()}), "float32"),
        (Recording("a", "euler", Noisy(), {}, inputs), "cannot be recorded"),
    ]
    for recording, message in wrong:
        with pytest.raises(InputError, match=message):
            record(recording, "flowrvs", tmp_path)
    assert not list(tmp_path.iterdir())


def test_record_command_needs_a_script(tmp_path, capsys):
    pytest.importorskip("torch")
    assert run("record", tmp_path / "absent.py", "--part", "flowrvs", "-o", tmp_path) == 2
    assert run("record", tmp_path / "absent.py") == 2
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1")
    assert run("record", empty, "--part", "flowrvs", "-o", tmp_path / "out") == 2
    assert "cases()" in capsys.readouterr().out
    assert run(GOLDEN / "metrics_davis", "--part", "flowrvs") == 2
