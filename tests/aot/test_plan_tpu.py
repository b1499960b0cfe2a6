"""The TPU compiler's answer to `rvseg plan`, where libtpu is installed; no TPU is needed."""

import json

import pytest

from rvseg_jax.cli.dispatch import main
from rvseg_jax.planning import compile as compiler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not compiler.available(), reason=f"libtpu is not installed: {compiler.INSTALL}"),
]
TINY = ["plan", "flowrvs", "--topology", "v5e:2x2", "--config", "tiny/flowrvs_dit", "--json"]


def test_the_compiler_takes_the_training_step(capsys):
    assert main([*TINY, "--mesh", "1,4,1,1"]) == 0
    found = json.loads(capsys.readouterr().out)
    compiled, estimated = found["compiled"], found["chosen"]
    # The estimate counts the autoencoder, which a step on cached latents is not given. The state is donated.
    assert 0.9 * estimated["arguments"] <= compiled["arguments"] < 4 * estimated["arguments"]
    assert compiled["aliased"] > 0.9 * compiled["outputs"]
    kinds = compiled["collectives"]
    # Weights are gathered and gradients summed over fsdp; nothing is cut along seq or tensor.
    assert kinds["all-gather"]["bytes"] > 0
    assert kinds.get("reduce-scatter", kinds.get("all-reduce"))["bytes"] > 0


def test_a_step_that_is_too_large_is_refused_with_its_size(capsys):
    # 4,096 clips of 9 frames on four chips, and all activations kept.
    assert main([*TINY, "--mesh", "1,4,1,1", "--batch-size", "65536", "remat=none"]) == 1
    compiled = json.loads(capsys.readouterr().out)["compiled"]
    assert not compiled["fits"] and compiled["memory"] > compiled["available"] > 15 * 2**30
