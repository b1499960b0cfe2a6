"""Checkpoints on disk. Every call of Orbax in the library's training code is in this file.

A run's folder holds `checkpoints/<step>/` with one item a part: `params` (trained), `opt_state`, `ema` and
`frozen` where the run has them, `data` (position of the input pipeline) and `meta` (config, random key,
origin). Saves are asynchronous. A step's folder gets its name only when it is complete, so that a save cut
off at any moment leaves the earlier checkpoints as they were.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.tree_paths import flatten, unflatten
from rvseg_jax.training.config import CheckpointConfig
from rvseg_jax.training.report import WriteError
from rvseg_jax.training.state import TrainState, partition
from rvseg_jax.training.tasks import Params

FOLDER = "checkpoints"
Item = Literal["params", "ema", "frozen"]
_TREES = ("params", "frozen", "opt_state", "ema")
_DOCUMENTS = ("data", "meta")


class Checkpoints:
    """The checkpoints of one run, for writing and reading."""

    def __init__(self, workdir: str | Path, config: CheckpointConfig | None = None) -> None:
        """Opens the checkpoints under `workdir`.

        Args:
          workdir: the run's folder; local, or remote by `etils.epath`.
          config: what to keep. Without it nothing is created, deleted or cleaned up: for reading.

        Raises:
          InputError: for reading, if there is no such folder.
        """
        self._folder = epath.Path(workdir).resolve() / FOLDER  # Orbax takes absolute paths only
        self._config = config
        if config is None and not self._folder.is_dir():
            raise InputError(f"{workdir} holds no training run: there is no folder {self._folder}")
        if config is None:
            options = ocp.CheckpointManagerOptions(create=False)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=_preservation(config), cleanup_tmp_directories=True
            )
        handlers = {name: ocp.StandardCheckpointHandler() for name in _TREES}
        handlers |= {name: ocp.JsonCheckpointHandler() for name in _DOCUMENTS}
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """Number of steps done in the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        state: TrainState,
        step: int,
        *,
        data: Mapping[str, Any],
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to save `state`, after waiting for the save before it.

        Returns when the arrays have left the devices, so that the state may be donated.

        Args:
          state: what to save; its `frozen` part is saved if the config says so.
          step: steps done; a checkpoint of that step that exists already is left alone.
          data: position of the input pipeline, as JSON values.
          meta: what else to keep, as JSON values.
          metrics: scores at this step, by which the best checkpoints are kept.

        Raises:
          WriteError: if this save cannot start, or the one before it has failed, as on a full disk.
        """
        if step in self._manager.all_steps():
            return
        items: dict[str, Any] = {
            "params": ocp.args.StandardSave(state.params),
            "opt_state": ocp.args.StandardSave(state.opt_state),
            "data": ocp.args.JsonSave(dict(data)),
            "meta": ocp.args.JsonSave({**meta, "key": np.asarray(jax.random.key_data(state.key)).tolist()}),
        }
        if state.ema:
            items["ema"] = ocp.args.StandardSave(state.ema)
        if state.frozen and self._config is not None and self._config.save_frozen:
            items["frozen"] = ocp.args.StandardSave(state.frozen)
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=dict(metrics) if metrics else None)
        except Exception as error:  # Orbax and tensorstore raise many types
            raise self._not_written(error) from error

    def _not_written(self, error: Exception) -> WriteError:
        # The cause stands at the end of tensorstore's messages, behind long paths.
        reason = (str(error).splitlines() or [type(error).__name__])[0].rsplit(": ", 1)[-1][:200]
        whole = [step for step in self._manager.all_steps(read=True) if self.holds("meta", step)]
        rest = f"the newest complete one is of step {max(whole)}" if whole else "there is no earlier one"
        return WriteError(
            f"a checkpoint in {self._folder} could not be written ({reason}); {rest}: free space, run again"
        )

    def restore(self, target: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """The state saved after `step`, and the position of the input pipeline.

        Args:
          target: `jax.ShapeDtypeStruct` leaves with the shardings wanted now, which need not be the saved
            ones.

        Returns:
          The state; its `frozen` part is empty if the checkpoint holds none.

        Raises:
          InputError: if the checkpoint lacks a part or its tree or shapes differ from the target's.
        """
        names = ["params", "opt_state"] + ["ema"] * bool(target.ema)
        if target.frozen and self.holds("frozen", step):
            names.append("frozen")
        parts = {name: self._restore(step, name, getattr(target, name)) for name in names}
        key = jax.random.wrap_key_data(jnp.asarray(self.document("meta", step)["key"], jnp.uint32))
        state = replace(
            target,
            step=jax.device_put(jnp.asarray(step, jnp.int32), target.step.sharding),
            key=jax.device_put(key, target.key.sharding),
            healthy=jax.device_put(jnp.asarray(True), target.healthy.sharding),
            **{"frozen": {}, "ema": {}, **parts},
        )
        return state, self.document("data", step)

    def holds(self, name: str, step: int) -> bool:
        """Whether the checkpoint of `step` has the item `name`."""
        return (self._folder / str(step) / name).exists()

    def document(self, name: Literal["data", "meta"], step: int) -> dict[str, Any]:
        """One of the JSON items of a checkpoint."""
        return self._manager.restore(step, args=ocp.args.Composite(**{name: ocp.args.JsonRestore()}))[name]

    def read(self, name: Item, step: int, target: Params | None = None) -> Params:
        """One tree of a checkpoint, on the shardings of those leaves in `target`, or else on the first device."""
        saved = flatten(self._manager.item_metadata(step)[name])
        if target is None:
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            saved = {path: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device) for path, m in saved.items()}
            return self._restore(step, name, unflatten(saved))
        return self._restore(step, name, partition(target, saved.__contains__)[0])

    def _restore(self, step: int, name: str, target: Any) -> Any:
        where = self._folder / str(step) / name
        if not where.exists():
            raise InputError(f"{where.parent} has no {name!r}: set the config as it was, or use a new workdir")
        if name != "opt_state":  # whose tree follows that of the parameters
            _check_fit(flatten(self._manager.item_metadata(step)[name]), flatten(target), where)
        arguments = ocp.args.Composite(**{name: ocp.args.StandardRestore(target)})
        try:
            return self._manager.restore(step, args=arguments)[name]
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{where} does not fit the config ({reason}): use a new workdir") from error

    def close(self) -> None:
        """Waits for the save under way and ends the writing threads.

        Raises:
          WriteError: if that save fails.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(error) from error
        finally:
            self._manager.close()


def _check_fit(saved: Mapping[str, Any], wanted: Mapping[str, Any], where: epath.Path) -> None:
    """Raises InputError, naming the first leaf by path, if two flat trees differ in paths or shapes."""
    for path in sorted(saved.keys() ^ wanted.keys()):
        holder = "the checkpoint" if path in saved else "the config's model"
        raise InputError(f"{where} does not fit the config: only {holder} has {path!r}; use a new workdir")
    for path, leaf in wanted.items():
        there, here = list(saved[path].shape), list(leaf.shape)
        if there != here:
            raise InputError(
                f"{where} does not fit the config: {path!r} has shape {there} there and {here} here; "
                "set the config as it was, or use a new workdir"
            )


def _preservation(config: CheckpointConfig) -> ocp.checkpoint_managers.PreservationPolicy:
    newest = ocp.checkpoint_managers.LatestN(config.keep)
    if not config.keep_best:
        return newest
    best = ocp.checkpoint_managers.BestN(
        get_metric_fn=lambda metrics: metrics[config.best_metric],
        n=config.keep_best,
        keep_checkpoints_without_metrics=False,
    )
    return ocp.checkpoint_managers.AnyPreservationPolicy([newest, best])
