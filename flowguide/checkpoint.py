"""Checkpoints: Orbax, with what is needed to go on exactly where a run stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flowguide.errors import UserError
from flowguide.training.step import TrainState
from flowguide.typing import PyTree

BEST_BY = "val_loss"


def folder(workdir: Path) -> Path:
    """Where the checkpoints of a run are."""
    return workdir / "checkpoints"


def manager(workdir: Path, keep: int = 2) -> ocp.CheckpointManager:
    """Saves in the background; keeps the newest ``keep`` checkpoints and the one of the least validation loss."""
    best = BestN(
        get_metric_fn=lambda metrics: metrics[BEST_BY], reverse=True, n=1, keep_checkpoints_without_metrics=False
    )
    options = ocp.CheckpointManagerOptions(preservation_policy=AnyPreservationPolicy([LatestN(keep), best]))
    return ocp.CheckpointManager(folder(workdir).absolute(), options=options)


def save(
    to: ocp.CheckpointManager,
    state: TrainState,
    data: grain.DatasetIterator,
    meta: dict[str, Any],
    metrics: dict[str, float] | None = None,
) -> None:
    """Starts saving ``state``, the position in the data and ``meta`` (JSON) under the state's step."""
    # A copy, because the next step is given the memory of this state while the save is still reading it.
    state = jax.tree.map(lambda a: a.copy(), state)
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),  # pyright: ignore[reportCallIssue]
        ema=ocp.args.StandardSave(state.ema),  # pyright: ignore[reportCallIssue]
        train=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),  # pyright: ignore[reportCallIssue]
        data=grain.checkpoint.CheckpointSave(data),  # pyright: ignore[reportCallIssue]
        meta=ocp.args.JsonSave(meta),  # pyright: ignore[reportCallIssue]
    )
    to.save(int(state.step), args=items, metrics=metrics)


def restore(
    to: ocp.CheckpointManager, like: TrainState, data: grain.DatasetIterator
) -> tuple[TrainState, grain.DatasetIterator, dict[str, Any]]:
    """The newest checkpoint: the state, the data at its position, and the ``meta`` saved with it.

    Args:
      to: an open manager that has a checkpoint.
      like: a state of the same network and optimiser; gives structure, shapes and types.
      data: an iterator of the same pipeline; it is moved to the saved position.

    Raises:
      UserError: if there is no checkpoint, or it cannot be read, or it is of another network.
    """
    step = _newest(to)
    train = {"step": like.step, "opt_state": like.opt_state}
    items = ocp.args.Composite(
        params=ocp.args.StandardRestore(_abstract(like.params)),  # pyright: ignore[reportCallIssue]
        ema=ocp.args.StandardRestore(_abstract(like.ema)),  # pyright: ignore[reportCallIssue]
        train=ocp.args.StandardRestore(_abstract(train)),  # pyright: ignore[reportCallIssue]
        data=grain.checkpoint.CheckpointRestore(data),  # pyright: ignore[reportCallIssue]
        meta=ocp.args.JsonRestore(),  # pyright: ignore[reportCallIssue]
    )
    found = _read(to, step, items)
    state = TrainState(found["train"]["step"], found["params"], found["ema"], found["train"]["opt_state"])
    return state, data, found["meta"]


def restore_ema(workdir: Path, like: PyTree, step: int | None = None) -> tuple[PyTree, int]:
    """The averaged parameters alone, of the given step or the newest, and that step.

    Args:
      workdir: of the run.
      like: a tree of arrays or ``jax.ShapeDtypeStruct``: structure, shapes and types.
      step: which checkpoint; None for the newest.

    Raises:
      UserError: if there is no such checkpoint, or it cannot be read, or it is of another network.
    """
    if not folder(workdir).is_dir():
        raise UserError(f"no checkpoints in {workdir}: expected a --workdir that train.py has written to")
    options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
    with ocp.CheckpointManager(folder(workdir).absolute(), options=options) as found:
        newest = _newest(found)
        if step is not None and step not in found.all_steps():
            raise UserError(f"no checkpoint of step {step} in {workdir}: there are {sorted(found.all_steps())}")
        step = newest if step is None else step
        args = ocp.args.Composite(ema=ocp.args.StandardRestore(_abstract(like)))  # pyright: ignore[reportCallIssue]
        return _read(found, step, args)["ema"], step


def _newest(found: ocp.CheckpointManager) -> int:
    step = found.latest_step()
    if step is None:
        raise UserError(f"no finished checkpoint in {found.directory}: let train.py reach its first one")
    return step


def _read(found: ocp.CheckpointManager, step: int, args: ocp.args.Composite) -> Any:
    try:
        return found.restore(step, args=args)
    except Exception as error:  # Orbax and TensorStore raise a dozen kinds for files that are cut short
        others = [s for s in sorted(found.all_steps()) if s != step]
        cure = f"to go back to step {others[-1]}, move that folder away" if others else "no other is there"
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the checkpoint {found.directory / str(step)} cannot be read as this run's "
            f"({type(error).__name__}: {reason}): {cure}"
        ) from error


def _abstract(tree: PyTree) -> PyTree:
    """Shapes, types, and one device to restore to: whoever uses the arrays spreads them."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), tree)
