"""RAFT against torchvision: the golden case at published size, and a tiny one beside it where it is installed."""

import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.convert import from_torch
from rvseg_jax.core.errors import InputError
from rvseg_jax.core.tree_paths import flatten
from rvseg_jax.models.raft.config import RaftConfig
from rvseg_jax.models.raft.loss import sequence_loss
from rvseg_jax.parity import golden as golden_cases
from rvseg_jax.parity import kinds
from rvseg_jax.parity.compare import compare
from rvseg_jax.parity.weights_rule import rule_weights

TINY = RaftConfig.tiny()
SIZE = (32, 48)


def test_golden_case_passes(golden):
    case = golden_cases.read(golden / "raft_large" / "a_128x160.json")
    report = compare(case, kinds.run(case))
    assert report.passed, [row for row in report.rows if not row.passed]
    assert all(row.status == "ok" for row in report.rows), "every tap is exposed"
    assert [row.name for row in report.rows if row.is_tap][:2] == ["tap/features", "tap/corr_level0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_encoder": {"layers": [64, 64, 96, 128, 256], "norm": "layer"}}, "context_encoder.norm"),
        ({"recurrent": {"hidden": 128, "kernels": [[1, 5], [5, 1]], "padding": [[0, 0], [0, 0]]}}, "padding"),
        ({"corr_radius": 3}, "convcorr1"),
        ({"corr_pixels_yx": [[16, 0]]}, "corr_pixels_yx"),
        ({"dilation": 2}, "dilation"),
    ],
    ids=["norm", "padding", "radius", "pixels", "unknown"],
)
def test_configs_that_cannot_be_run_are_errors(change, message, golden, tmp_path):
    source = golden / "raft_large" / "a_128x160.json"
    meta = json.loads(source.read_text())
    shutil.copy(source.with_suffix(".safetensors"), tmp_path / "copy.safetensors")
    (tmp_path / "copy.json").write_text(json.dumps(meta | {"config": meta["config"] | change}))
    with pytest.raises(InputError, match=message):
        kinds.run(golden_cases.read(tmp_path / "copy.json"))


@pytest.fixture(scope="module")
def original(torch):
    """torchvision's RAFT at tiny sizes, whose every branch matters."""
    if importlib.util.find_spec("torchvision") is not None:
        # Its compiled operators do not load beside the CPU build of torch; nothing here calls them.
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    pytest.importorskip("torchvision")
    from torchvision.models.optical_flow import raft

    cfg, hidden = TINY, TINY.recurrent_block_hidden_state_size
    model = raft._raft(
        feature_encoder_layers=cfg.feature_encoder_layers,
        feature_encoder_block=raft.ResidualBlock,
        feature_encoder_norm_layer=torch.nn.InstanceNorm2d,
        context_encoder_layers=cfg.context_encoder_layers,
        context_encoder_block=raft.ResidualBlock,
        context_encoder_norm_layer=torch.nn.BatchNorm2d,
        corr_block_num_levels=cfg.corr_block_num_levels,
        corr_block_radius=cfg.corr_block_radius,
        motion_encoder_corr_layers=cfg.motion_encoder_corr_layers,
        motion_encoder_flow_layers=cfg.motion_encoder_flow_layers,
        motion_encoder_out_channels=cfg.motion_encoder_out_channels,
        recurrent_block_hidden_state_size=hidden,
        recurrent_block_kernel_size=cfg.recurrent_block_kernel_size,
        recurrent_block_padding=((0, 2), (2, 0)),
        flow_head_hidden_size=cfg.flow_head_hidden_size,
        use_mask_predictor=True,
        mask_predictor=raft.MaskPredictor(in_channels=hidden, hidden_size=cfg.mask_predictor_hidden_size),
    ).eval()
    state = model.state_dict()
    drawn = rule_weights({key: list(value.shape) for key, value in state.items()}, 0, [])
    model.load_state_dict({key: torch.tensor(value).to(state[key].dtype) for key, value in drawn.items()})
    return model


def first(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def test_every_prediction_loss_and_gradient_match_torchvision(torch, original):
    """Two pairs; gradients of the loss in every parameter and in the images."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 2, *SIZE, 3)).astype(np.float32)
    flow = (4 * rng.standard_normal((2, *SIZE, 2))).astype(np.float32)
    flow[0, 0, 0] = (500, 0)
    valid = rng.uniform(size=(2, *SIZE)) < 0.8

    given = [torch.tensor(first(image), requires_grad=True) for image in images]
    predicted = torch.stack(original(*given, num_flow_updates=3))
    truth = torch.tensor(first(flow))
    counted = torch.tensor(valid) & (truth.square().sum(1).sqrt() < 400)
    errors = ((predicted - truth).abs() * counted[:, None]).mean((1, 2, 3, 4))
    loss = (errors * 0.8 ** torch.arange(2, -1, -1)).sum()
    loss.backward()

    tensors = {key: value.numpy() for key, value in original.state_dict().items()}
    model = from_torch("raft", tensors, TINY)
    graph, parameters, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)

    def ours(parameters, images):
        flows = nnx.merge(graph, parameters, statistics).predictions(*images, unroll=False)
        return sequence_loss(flows, flow, valid), flows

    run = jax.jit(jax.value_and_grad(ours, argnums=(0, 1), has_aux=True))
    (found_loss, flows), (gradients, of_images) = run(parameters, images)
    reference = np.moveaxis(predicted.detach().numpy(), 2, -1)
    assert np.abs(flows - reference).max() <= 1e-5 * np.abs(reference).max() and np.abs(reference).max() > 1
    np.testing.assert_allclose(found_loss, loss.item(), rtol=1e-5)

    wanted = {key: value.grad.numpy() for key, value in original.named_parameters()}
    wanted_tree = from_torch("raft", tensors | wanted, TINY)
    expected = flatten(nnx.to_pure_dict(nnx.state(wanted_tree, nnx.Param)))
    found = flatten(nnx.to_pure_dict(gradients))
    assert found.keys() == expected.keys()
    scale = max(np.abs(value).max() for value in expected.values())
    for path, value in expected.items():
        bar = 1e-4 * max(np.abs(value).max(), 1e-3 * scale)
        assert np.abs(found[path] - value).max() <= bar, path
    assert min(np.abs(value).max() for path, value in expected.items() if path.endswith("kernel")) > 1e-5 * scale
    for index, image in enumerate(given):
        theirs = np.moveaxis(image.grad.numpy(), 1, -1)
        assert np.abs(of_images[index] - theirs).max() <= 1e-4 * np.abs(theirs).max()
