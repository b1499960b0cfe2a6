"""What is measured on which dataset, in words that every result carries, and how each counts what is missing."""

from dataclasses import dataclass

from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation.runner import MissingPolicy

OFFICIAL = "official"
OFFICIAL_MASKS = "official_masks"
PER_EXPRESSION = "per_expression"


@dataclass(frozen=True)
class Protocol:
    """A way to evaluate on a dataset.

    Attributes:
      name: how the command line calls it.
      text: what is measured, and what the numbers are not comparable with.
      missing: what the official evaluation does about missing predictions, as a policy.
      missing_text: the same in words.
    """

    name: str
    text: str
    missing: MissingPolicy
    missing_text: str

    def settings(self) -> dict[str, str]:
        """What results say of the protocol."""
        return {"protocol": self.text, "official_missing_policy": f"{self.missing} ({self.missing_text})"}


_NOT_B = "Not comparable with per_expression (B)."
_ABORTS = "DAVIS17's evaluation aborts at a missing label map"
_REF_DAVIS = (
    "Ref-DAVIS17, {name} (A): label maps of four annotators, {source}; DAVIS17 unsupervised with matching, void not "
    "counted; mean over the four. {rest}"
)

DAVIS = Protocol(
    "semi_supervised",
    "DAVIS {year}, semi-supervised: objects given in the first frame, first and last frame not counted; mean over the "
    "objects of all videos",
    "zero",
    "a tracker gives a mask of every frame",
)
TRACKING_SHAPES = Protocol(
    "visible_frames",
    "moving_shapes for trackers, held-out clips: objects given in the first frame; mean over objects of the mean over "
    "the later frames in which the object shows; frames in which it is hidden apart",
    "zero",
    "a tracker gives a mask of every frame",
)
MEVIS = Protocol(
    PER_EXPRESSION,
    "MeViS: mean over (video, expression) of the mean over all frames of J and F",
    "zero",
    "MeViS's script gives J = F = 0 to a video without predictions and stops at a missing sentence or frame",
)
REF_YOUTUBE_VOS = Protocol(
    PER_EXPRESSION,
    "Ref-YouTube-VOS, local truth: mean over (video, expression) of the mean over all frames of J and F; the benchmark "
    "scores its valid split on a server",
    "zero",
    "the benchmark takes complete predictions only",
)
MOVING_SHAPES = Protocol(
    PER_EXPRESSION,
    "moving_shapes held out: mean over clips of the mean over frames of J and F, with controls",
    "zero",
    "every clip counts",
)
SUBMISSION = Protocol(
    "submission",
    "predictions for the benchmark's server, which holds the truth; no scores",
    "abort",
    "the archive is written only if every mask is there",
)
REF_DAVIS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            OFFICIAL,
            _REF_DAVIS.format(
                name=OFFICIAL, source="the largest score of at least 0.5 above a background of 0.1", rest=_NOT_B
            ),
            "abort",
            _ABORTS,
        ),
        Protocol(
            OFFICIAL_MASKS,
            _REF_DAVIS.format(
                name=OFFICIAL_MASKS,
                source="from masks, the object with the lowest number where they overlap (as RGA3 does)",
                rest=f"Differs from official where masks overlap. {_NOT_B}",
            ),
            "abort",
            _ABORTS,
        ),
        Protocol(
            PER_EXPRESSION,
            "Ref-DAVIS17, per_expression (B): mean over (video, expression) of the mean over all frames of J and F. "
            "Not comparable with official (A).",
            "zero",
            "VISA's script gives J = F = 0 to a video without predictions",
        ),
    )
}


def ref_davis(name: str | None) -> Protocol:
    """The protocol of Ref-DAVIS17 with this name; the official one for None.

    Raises:
      InputError: for an unknown name.
    """
    if (name or OFFICIAL) not in REF_DAVIS:
        raise InputError(f"Ref-DAVIS17 has no protocol {name!r}; choose one of {', '.join(REF_DAVIS)}")
    return REF_DAVIS[name or OFFICIAL]
