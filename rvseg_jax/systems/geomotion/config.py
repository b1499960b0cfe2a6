"""Sizes and settings of the system."""

from dataclasses import dataclass, field, replace

from rvseg_jax.core.precision import Precision
from rvseg_jax.models.geomotion.config import GeoMotionConfig
from rvseg_jax.models.raft.config import RaftConfig


@dataclass(frozen=True)
class GeoMotionSystemConfig:
    """Sizes of the networks, and how clips go through them. The defaults suit users; see `published`.

    Attributes:
      geomotion, raft: sizes of the networks.
      size: side in pixels of the squares that frames are squashed to, a multiple of the patch size.
      stride: frames of the video from one frame of a group to the next; the groups between take the frames between.
        Larger strides make slow motion visible and lose fast motion.
      group: most frames of a group: these are seen at once.
      overlap: share of a window of stride x group frames that the next one sees again, where a clip needs several.
      threshold: probability above which a pixel moves.
      refine: sharpen masks by SAM 2.
      prompt_threshold: probability above which a pixel is shown to SAM 2 as moving.
      refine_like_upstream: SAM 2 sees squashed frames out of JPEG files, and its masks are 0 or 1 before they are
        enlarged. Otherwise it sees the frames themselves, and its probabilities are enlarged.
    """

    geomotion: GeoMotionConfig = field(default_factory=GeoMotionConfig)
    raft: RaftConfig = field(default_factory=RaftConfig)
    size: int = 518
    stride: int = 1
    group: int = 32
    overlap: float = 0.25
    threshold: float = 0.5
    refine: bool = True
    prompt_threshold: float = 0.8
    refine_like_upstream: bool = False

    def __post_init__(self) -> None:
        if self.size % self.geomotion.pi3.patch_size or self.size < 1:
            raise ValueError(f"size {self.size} must be a multiple of the patches' {self.geomotion.pi3.patch_size}")
        if min(self.stride, self.group) < 1:
            raise ValueError(f"stride {self.stride} and group {self.group} must be at least 1")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap {self.overlap} must be a share of at least 0 and below 1")
        if not (0 < self.threshold < 1 and 0 < self.prompt_threshold < 1):
            raise ValueError(f"thresholds {self.threshold} and {self.prompt_threshold} must be between 0 and 1")

    def published(self) -> "GeoMotionSystemConfig":
        """These networks by upstream's evaluation: stride 4, groups of 32 apart from each other, masks above 0.1."""
        return replace(self, stride=4, group=32, overlap=0.0, threshold=0.1, refine_like_upstream=True)

    def with_precision(self, precision: Precision) -> "GeoMotionSystemConfig":
        """The same sizes and settings in other number formats."""
        return replace(
            self,
            geomotion=replace(self.geomotion, precision=precision),
            raft=replace(self.raft, precision=precision),
        )
