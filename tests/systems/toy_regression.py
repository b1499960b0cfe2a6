"""A task small enough to train in a test: a frozen random encoder and a trained head, on points of a plane."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from rvseg_jax.core.precision import PARITY, Precision


@dataclass(frozen=True)
class ModelConfig:
    width: int = 16
    precision: Precision = PARITY


@dataclass(frozen=True)
class PointsConfig:
    """Attributes: poison: index of a sample whose target is infinite, -1 for none."""

    samples: int = 48
    poison: int = -1


@dataclass(frozen=True)
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: PointsConfig = field(default_factory=PointsConfig)
    noise: float = 0.01


class Points:
    """Samples (x, y) with y a linear function of x.

    Attributes:
      reads_left: how often samples can be read, over all sources, before `failure` is raised.
    """

    reads_left: ClassVar[float] = float("inf")
    failure: ClassVar[BaseException] = KeyboardInterrupt()

    def __init__(self, config: PointsConfig) -> None:
        self.config = config

    def __repr__(self) -> str:
        return f"Points({self.config.samples})"

    def __len__(self) -> int:
        return self.config.samples

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if Points.reads_left <= 0:
            raise Points.failure
        Points.reads_left -= 1
        x = np.random.default_rng(index).normal(size=8).astype(np.float32)
        y = np.float32(np.inf if index == self.config.poison else x @ np.linspace(-1, 1, 8))
        return {"x": x, "y": y}


def jitter(sample: Mapping[str, Any], rng: np.random.Generator) -> Mapping[str, Any]:
    """The sample with a little noise on the input, so that the random state of the loader matters."""
    return {"x": sample["x"] + np.float32(0.01) * rng.normal(size=8).astype(np.float32), "y": sample["y"]}


class Regression:
    """tanh(x W) v + b with a frozen W."""

    Config = Config
    sharding_table = (
        ("^encoder/kernel$", ("embed", "mlp")),
        ("^head/kernel$", ("embed",)),
        ("^head/bias$", ()),
    )

    def __init__(self, config: Config, *, precision: Precision) -> None:
        self.config = config
        self.precision = precision

    def init(self, key: jax.Array) -> dict[str, Any]:
        first, second = jax.random.split(key)
        dtype = self.precision.param_dtype
        width = self.config.model.width
        return {
            "encoder": {"kernel": 0.5 * jax.random.normal(first, (8, width), dtype)},
            "head": {"kernel": 0.1 * jax.random.normal(second, (width,), dtype), "bias": jnp.zeros((), dtype)},
        }

    def loss(
        self, params: Mapping[str, Any], batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        x = batch["x"] + self.config.noise * jax.random.normal(key, batch["x"].shape)
        out = jnp.tanh(x @ params["encoder"]["kernel"]) @ params["head"]["kernel"] + params["head"]["bias"]
        error = out - batch["y"]
        return jnp.mean(error**2), {"mean_error": jnp.mean(jnp.abs(error))}

    def source(self, split: str) -> Points:
        return Points(self.config.data)

    def transform(self, split: str) -> Callable[..., Mapping[str, Any]]:
        return jitter

    def evaluate(self, params: Mapping[str, Any], *, step: int) -> Mapping[str, float]:
        x = jnp.ones((1, 8))
        out = jnp.tanh(x @ params["encoder"]["kernel"]) @ params["head"]["kernel"] + params["head"]["bias"]
        return {"score": -abs(float(out[0]))}
