"""The weights of a training run, read back for evaluation and export."""

from pathlib import Path
from typing import Any

from rvseg_jax.core.errors import InputError
from rvseg_jax.training.checkpoint import Checkpoints, Item
from rvseg_jax.training.state import merge
from rvseg_jax.training.tasks import Params


def read_params(
    workdir: str | Path,
    *,
    step: int | None = None,
    averaged: bool = True,
    target: Params | None = None,
) -> tuple[Params, dict[str, Any]]:
    """The weights of a training run, for evaluation or export.

    Args:
      workdir: the run's folder.
      step: which checkpoint; None takes the newest.
      averaged: take the moving average where the run keeps one.
      target: nested `jax.ShapeDtypeStruct` with shardings for all leaves of the task; those that the
        checkpoint holds are returned. None puts the leaves on the first device.

    Returns:
      (parameters, meta). The parameters are the trained ones, with the frozen ones if the checkpoint holds
      them; averages are float32. The meta has the run config as JSON text under "config".

    Raises:
      InputError: if there is no checkpoint, or not of that step.
    """
    checkpoints = Checkpoints(workdir)
    try:
        chosen = checkpoints.latest() if step is None else step
        if chosen is None or chosen not in checkpoints.steps():
            known = ", ".join(map(str, checkpoints.steps())) or "none"
            wanted = "" if step is None else f" of step {step}"
            raise InputError(f"{workdir} has no checkpoint{wanted}; it has: {known}")
        trained: Item = "ema" if averaged and checkpoints.holds("ema", chosen) else "params"
        params = checkpoints.read(trained, chosen, target)
        if checkpoints.holds("frozen", chosen):
            params = merge(params, checkpoints.read("frozen", chosen, target))
        return params, checkpoints.document("meta", chosen)
    finally:
        checkpoints.close()
