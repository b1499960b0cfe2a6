"""The autoencoder's table is a bijection onto upstream's keys, at published and unusual sizes; no weights."""

import dataclasses

import pytest

from rvseg_jax.convert import registry
from rvseg_jax.convert.engine import plan_for
from rvseg_jax.convert.plan import compile_table
from rvseg_jax.models.wan.vae import SHARDING, WanVAEConfig

UNUSUAL = WanVAEConfig(
    base_dim=8,
    decoder_base_dim=12,
    z_dim=5,
    dim_mult=(1, 3, 2),
    num_res_blocks=3,
    temporal_downsample=(True, False),
    in_channels=2,
    latents_mean=(0.0,) * 5,
    latents_std=(1.0,) * 5,
)
CONFIGS = {
    "wan2_1": WanVAEConfig.wan2_1(),
    "flowrvs": WanVAEConfig.flowrvs(),
    "tiny": WanVAEConfig.tiny(),
    "unusual": UNUSUAL,
}


def upstream_shapes(torch, cfg: WanVAEConfig) -> dict[str, tuple[int, ...]]:
    diffusers = pytest.importorskip("diffusers")
    config = dataclasses.asdict(cfg)
    config["temperal_downsample"] = list(config.pop("temporal_downsample"))
    config["dim_mult"] = list(cfg.dim_mult)
    del config["precision"], config["conv_impl"]
    with torch.device("meta"):
        model = diffusers.AutoencoderKLWan(**config)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_bijection_with_upstream(torch, name):
    cfg = CONFIGS[name]
    shapes = upstream_shapes(torch, cfg)
    plan, _ = plan_for(registry.part("wan_vae"), cfg)
    assert dict(plan.key_shapes) == shapes
    plan.match(shapes)


@pytest.mark.parametrize(("name", "parameters"), [("wan2_1", 126_892_531), ("flowrvs", 126_887_345), ("tiny", 635_245)])
def test_parameter_counts(name, parameters):
    plan, model = plan_for(registry.part("wan_vae"), CONFIGS[name])
    sizes = [variable.size for variable in model.variables.values()]
    assert sum(sizes) == parameters
    if name != "tiny":
        assert len(plan.key_shapes) == len(sizes) == 194


def test_keys_of_flowrvs_checkpoints(torch):
    cfg = CONFIGS["flowrvs"]
    _, model = plan_for(registry.part("wan_vae"), cfg)
    part = registry.part("wan_vae")
    plan = compile_table(part.table(cfg).under("vae."), model.shapes)
    assert set(plan.key_shapes) == {f"vae.{key}" for key in upstream_shapes(torch, cfg)}
    assert plan.key_shapes["vae.decoder.conv_out.weight"] == (1, 96, 3, 3, 3)
    assert "vae." in part.prefixes


def test_every_leaf_has_a_sharding_rule_of_its_rank():
    import re

    _, model = plan_for(registry.part("wan_vae"), CONFIGS["flowrvs"])
    for path, shape in model.shapes.items():
        names = next((names for pattern, names in SHARDING if re.search(pattern, path)), None)
        assert names is not None and len(names) == len(shape), path
