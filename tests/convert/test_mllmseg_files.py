"""MLLMSeg from the files that upstream publishes, by the command line, to masks."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import rvseg_jax as rv
from rvseg_jax.convert import registry
from rvseg_jax.convert.__main__ import main
from rvseg_jax.convert.engine import plan_for
from rvseg_jax.core.errors import InputError
from rvseg_jax.models.mllmseg.config import MLLMSegConfig
from rvseg_jax.parity.weights_rule import rule_weights

SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
UPSTREAM = {
    "architectures": ["MLLMSeg"],
    "downsample_ratio": 0.5,
    "ps_version": "v2",
    "select_layer": -1,
    "template": "internvl2_5",
    "llm_config": {
        **SIZES,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-6,
    },
    "vision_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 56,
        "patch_size": 14,
        "norm_type": "layer_norm",
        "qk_normalization": False,
    },
}
TOKENS = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "[SEG]", "[REJ]")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as upstream's, with a byte-level tokenizer in its slow form."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("published")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.train_from_iterator(
        ["the man on the left"] * 9,
        trainers.BpeTrainer(vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.model.save(str(folder))
    first = backend.get_vocab_size()
    (folder / "added_tokens.json").write_text(json.dumps({token: first + n for n, token in enumerate(TOKENS)}))
    values = json.loads(json.dumps(UPSTREAM))
    values["llm_config"]["vocab_size"] = first + len(TOKENS)
    (folder / "config.json").write_text(json.dumps(values))
    plan, _ = plan_for(registry.part("mllmseg"), MLLMSegConfig.from_upstream(values))
    weights = rule_weights({key: list(shape) for key, shape in plan.key_shapes.items()}, 0, [])
    weights["res_decoder.upsample_adapter_l.init_pos"] = np.zeros((1, 32, 1, 1), np.float32)
    weights["res_decoder.conv1.1.num_batches_tracked"] = np.array(3)
    save_file(weights, folder / "model.safetensors")
    return folder


def test_published_files_to_masks(published, tmp_path, capsys):
    assert main(["convert", "mllmseg", str(published), "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)).save(tmp_path / "a.png")
    predictor = rv.load("mllmseg", tmp_path / "out", answer_tokens=4)
    found = predictor.predict(tmp_path / "a.png", ["the man", "犬 <IMG_CONTEXT> [SEG]"])
    assert found.masks.shape == (2, 1, 30, 50) and len(found.status) == 2
    assert predictor.system.token_count("the man") == 2
    with pytest.raises(InputError, match="has .* tokens but mllmseg reads"):
        predictor.predict(tmp_path / "a.png", ["the man " * 400])


def test_adapters_that_are_not_merged(published, tmp_path, capsys):
    for path in published.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    name = "language_model.model.layers.0.self_attn.q_proj"
    weights = dict(load_file(published / "model.safetensors"))
    weights[f"{name}.base_layer.weight"] = weights.pop(f"{name}.weight")
    weights[f"{name}.lora_A.default.weight"] = np.zeros((2, 48), np.float32)
    save_file(weights, tmp_path / "model.safetensors")
    assert main(["convert", "mllmseg", str(tmp_path), "-o", str(tmp_path / "out")]) != 0
    assert "its adapters are not merged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_model(published, tmp_path):
    plan = {path.name: path for path in published.iterdir() if path.name != "added_tokens.json"}
    for name, path in plan.items():
        (tmp_path / name).write_bytes(path.read_bytes())
    assert main(["convert", "mllmseg", str(tmp_path), "-o", str(tmp_path / "out")]) == 0
    with pytest.raises(InputError, match="has no token <img>"):
        rv.load("mllmseg", tmp_path / "out")
