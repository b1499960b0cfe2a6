"""Sizes of GeoMotion's network."""

from dataclasses import dataclass, field, replace

from rvseg_jax.core.precision import PARITY, Precision
from rvseg_jax.models.pi3.config import Pi3Config, check_blocks


@dataclass(frozen=True)
class GeoMotionConfig:
    """Sizes of GeoMotion; the defaults are the published ones, 972,687,132 parameters of which 80,320,196 are trained.

    Attributes:
      pi3: the backbone; its branch of the confidence is the motion decoder, trained anew.
      low_blocks: decoder blocks whose outputs are fused, besides those of `pi3.heads_from`.
      feature_width: of the fused tokens.
      flow_channels: of the three convolutions that see the flow.
      flow_windows: compute these only where the patches look, in a window of 8 x 8 pixels each; the numbers are equal.
      normalise_twice: subtract and divide by ImageNet's statistics twice, as the published weights were trained.
    """

    pi3: Pi3Config = field(default_factory=Pi3Config)
    low_blocks: tuple[int, ...] = (5, 15)
    feature_width: int = 2048
    flow_channels: tuple[int, int, int] = (32, 64, 128)
    flow_windows: bool = True
    normalise_twice: bool = True
    precision: Precision = PARITY

    def __post_init__(self) -> None:
        object.__setattr__(self, "pi3", replace(self.pi3, precision=self.precision))
        check_blocks("low_blocks", self.low_blocks, self.pi3.depth)

    @classmethod
    def published(cls, precision: Precision = PARITY) -> "GeoMotionConfig":
        """`xingyang1/GeoMotion`: 972,687,132 parameters."""
        return cls(precision=precision)

    @classmethod
    def tiny(cls, precision: Precision = PARITY) -> "GeoMotionConfig":
        """A network for tests."""
        return cls(
            pi3=Pi3Config.tiny(precision),
            low_blocks=(1, 3),
            feature_width=64,
            flow_channels=(4, 8, 16),
            precision=precision,
        )
