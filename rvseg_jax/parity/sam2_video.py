"""Golden cases of SAM 2's video predictor: prompts on several frames, then runs forwards and backwards."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rvseg_jax.convert import from_torch
from rvseg_jax.core.errors import InputError
from rvseg_jax.models.sam2.model import ImageFeatures
from rvseg_jax.models.sam2.tracking import NO_OBJ_SCORE, Place
from rvseg_jax.models.sam2.tracking_programs import TrackingPrograms
from rvseg_jax.models.sam2.tracking_prompts import RowPrompt, batched_prompts, scaled_mask, scaled_points
from rvseg_jax.models.sam2.tracking_state import FrameMemory, empty_state
from rvseg_jax.parity.compare import Produced
from rvseg_jax.parity.golden import Case
from rvseg_jax.parity.kinds import Fields, Kind
from rvseg_jax.parity.sam2_config import MODEL_FIELDS, model_config

_POINTS, _MASK = "add_new_points_or_box", "add_new_mask"
_PROMPT_FIELDS = {
    "call",
    "frame_idx",
    "obj_id",
    "points",
    "labels",
    "box",
    "mask",
    "clear_old_points",
    "normalize_coords",
}
_RUN_FIELDS = {"name", "start_frame_idx", "max_frame_num_to_track", "reverse"}


class VideoRun:
    """`SAM2VideoPredictor` on a video of which all frames are at hand.

    Args:
      frames: float32 [T, S, S, 3], resized and normalised.
      video_size: (height, width) of the masks.
      objects: ids in the order of their rows.
      prompts: the most prompted frames that an object may get.
    """

    def __init__(
        self,
        programs: TrackingPrograms,
        frames: np.ndarray,
        video_size: tuple[int, int],
        objects: Sequence[int],
        prompts: int,
    ):
        count = len(frames)
        self.programs, self.frames, self.video_size, self.objects = programs, frames, video_size, list(objects)
        self.known: list[int] = []
        # Room for every frame, so that any order of runs finds what upstream finds.
        self.state = empty_state(
            programs.cfg,
            len(self.objects),
            prompted_slots=prompts,
            memory_slots=max(count, programs.cfg.num_maskmem - 1),
            pointer_slots=max(count, programs.cfg.tracking.max_obj_ptrs_in_encoder),
        )
        rows = range(len(self.objects))
        self.points: list[dict[int, tuple[np.ndarray, np.ndarray]]] = [{} for _ in rows]
        self.tracked: list[dict[int, bool]] = [{} for _ in rows]
        self.prompted: list[set[int]] = [set() for _ in rows]
        self.pending: list[dict[tuple[bool, int], tuple[FrameMemory, Place]]] = [{} for _ in rows]
        self.given: list[dict[int, np.ndarray]] = [{} for _ in rows]
        self._features: tuple[int, ImageFeatures] | None = None

    def add(
        self,
        object_id: int,
        frame: int,
        *,
        points: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        clear_old_points: bool = True,
    ) -> np.ndarray:
        """Masks of all objects known so far after a prompt. Shapes: -> float32 [O, Hv, Wv]."""
        if object_id not in self.known:
            self.known.append(object_id)
        row, cfg = self.objects.index(object_id), self.programs.cfg
        initial = frame not in self.tracked[row]
        as_prompted = initial or cfg.tracking.add_all_frames_to_correct_as_cond
        if mask is not None:
            self.points[row].pop(frame, None)
            prompt = RowPrompt(mask=scaled_mask(cfg, mask))
        else:
            places, kinds = scaled_points(cfg, self.video_size, points=points, labels=labels, box=box)
            if not clear_old_points and frame in self.points[row]:
                before = self.points[row][frame]
                places, kinds = np.concatenate([before[0], places]), np.concatenate([before[1], kinds])
            self.points[row][frame] = places, kinds
            prompt = RowPrompt(places, kinds, logits=self._latest(row, frame, as_prompted))
        place = Place.of(
            1, frame, num_frames=len(self.frames), reverse=self.tracked[row].get(frame, False), initial=initial
        )
        state = None if initial else self.state.row(row)
        seen = self.programs.observe(self.features(frame), state, batched_prompts(cfg, [prompt]), place)
        self.pending[row][as_prompted, frame] = seen, place
        rows = [self.objects.index(known) for known in self.known]
        absent = np.full((cfg.low_res_size,) * 2, NO_OBJ_SCORE, np.float32)
        latest = [self._latest(other, frame, as_prompted) for other in rows]
        return self._output(np.stack([absent if logits is None else logits for logits in latest]))

    def propagate(
        self, *, start: int | None = None, most: int | None = None, reverse: bool = False
    ) -> dict[int, np.ndarray]:
        """Masks of all objects, frame by frame. Shapes: -> {frame: float32 [O, Hv, Wv]}."""
        self._settle()
        start = min(min(frames) for frames in self.prompted) if start is None else start
        most = len(self.frames) if most is None else most
        if reverse:
            order = range(start, max(start - most, 0) - 1, -1) if start > 0 else range(0)
        else:
            order = range(start, min(start + most, len(self.frames) - 1) + 1)
        rows, outputs = len(self.objects), {}
        for frame in order:
            place = Place.of(rows, frame, num_frames=len(self.frames), reverse=reverse)
            self.state, seen = self.programs.track_step(self.state, self.features(frame), place)
            logits = np.asarray(seen.logits)
            for row in range(rows):
                self.tracked[row][frame] = reverse
                self.given[row][frame] = logits[row]
                if frame in self.prompted[row]:
                    self._forget_around(row, frame)
            outputs[frame] = self._output(logits)
        return outputs

    def features(self, frame: int) -> ImageFeatures:
        """Features of a frame; those of the last one asked for are kept."""
        if self._features is None or self._features[0] != frame:
            self._features = frame, self.programs.encode_image(jnp.asarray(self.frames[frame][None]))
        return self._features[1]

    def _settle(self) -> None:
        if self.known != self.objects:
            raise InputError(f"only the objects {self.known} of {self.objects} were prompted before a run")
        for row, pending in enumerate(self.pending):
            rows = jnp.arange(len(self.objects)) == row
            for (as_prompted, frame), (seen, place) in sorted(pending.items(), key=lambda item: item[0][0]):
                count = len(self.objects)
                seen, place = jax.tree.map(partial(jnp.repeat, repeats=count, axis=0), (seen, place))
                self.state = self.programs.settle(self.state, seen, place, rows)
                self.given[row][frame] = np.asarray(seen.logits[row])
                if as_prompted:
                    self.prompted[row].add(frame)
                self._forget_around(row, frame)
            pending.clear()

    def _forget_around(self, row: int, frame: int) -> None:
        """Drops what was given out of tracked frames near a prompted one, if the config says so."""
        cfg = self.programs.cfg
        if cfg.tracking.clear_non_cond_mem_around_input:
            reach = cfg.tracking.memory_temporal_stride_for_eval * cfg.num_maskmem
            kept = self.prompted[row]
            self.given[row] = {t: x for t, x in self.given[row].items() if t in kept or abs(t - frame) > reach}

    def _latest(self, row: int, frame: int, as_prompted: bool) -> np.ndarray | None:
        """The last logits of an object in a frame: of a prompt that is not settled yet, else what was given out."""
        if (as_prompted, frame) in self.pending[row]:
            return np.asarray(self.pending[row][as_prompted, frame][0].logits[0])
        return self.given[row].get(frame)

    def _output(self, logits: np.ndarray) -> np.ndarray:
        return np.asarray(self.programs.enlarged(jnp.asarray(logits), self.video_size))


def _video(case: Case) -> Produced:
    config = case.config
    programs = TrackingPrograms(from_torch("sam2", case.weights, model_config(config)))
    frames = np.moveaxis(case.input("frames"), 1, -1)
    prompts = [_checked(entry, _PROMPT_FIELDS, "prompt") for entry in config["prompts"]]
    order = list(dict.fromkeys(entry["obj_id"] for entry in prompts))
    if list(config.get("object_order", order)) != order:
        raise InputError(f"object_order {config['object_order']} is not the order {order} of the prompts")
    size = (int(config["video_height"]), int(config["video_width"]))
    most = max(len({e["frame_idx"] for e in prompts if e["obj_id"] == object_id}) for object_id in order)
    run = VideoRun(programs, frames, size, order, most)
    outputs: dict[str, np.ndarray] = {}
    for index, entry in enumerate(prompts):
        outputs[f"prompt{index}"] = run.add(entry["obj_id"], entry["frame_idx"], **_arguments(case, entry))[:, None]
    for entry in config["runs"]:
        _checked(entry, _RUN_FIELDS, "run")
        masks = run.propagate(
            start=entry.get("start_frame_idx"),
            most=entry.get("max_frame_num_to_track"),
            reverse=entry.get("reverse", False),
        )
        outputs |= {f"{entry['name']}/{frame}": mask[:, None] for frame, mask in masks.items()}
    return Produced(outputs, sentinel=NO_OBJ_SCORE)


def _arguments(case: Case, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What `VideoRun.add` takes, from a prompt of the config."""
    if entry["call"] == _MASK:
        return {"mask": case.input(entry["mask"].removeprefix("in/")) != 0}
    if entry["call"] != _POINTS:
        raise InputError(f"call {entry['call']!r} of a prompt is unknown: {_POINTS} or {_MASK}")
    given = {name: np.asarray(entry[name], np.float32) for name in ("points", "labels", "box") if name in entry}
    if not entry.get("normalize_coords", True):
        scale = np.array([case.config["video_width"], case.config["video_height"]], np.float32)
        for name in {"points", "box"} & given.keys():
            given[name] = (given[name].reshape(-1, 2) * scale).reshape(given[name].shape)
    return {**given, "clear_old_points": entry.get("clear_old_points", True)}


def _checked(entry: Mapping[str, Any], known: set[str], what: str) -> Mapping[str, Any]:
    unknown = sorted(set(entry) - known)
    if unknown:
        raise InputError(f"a {what} has the field {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return entry


VIDEO_FIELDS = Fields(
    build=MODEL_FIELDS.build,
    call=frozenset({"video_height", "video_width", "num_frames", "prompts", "runs", "object_order"}),
    ignored=MODEL_FIELDS.ignored,
    nested=MODEL_FIELDS.nested,
)
KINDS: Mapping[str, Kind] = MappingProxyType({"video": Kind(_video, VIDEO_FIELDS)})
