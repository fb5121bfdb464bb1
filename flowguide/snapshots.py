"""Snapshots of the averages that a run tracks, and averages of any width made of them (``training.posthoc``).

They lie in ``snapshots`` beside ``checkpoints``. Orbax writes them as it writes checkpoints, with hashes.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo, PreservationContext

from flowguide import processes, storage
from flowguide.checkpoint import copy_on_cpu, failing_to_save, finish
from flowguide.errors import UserError
from flowguide.hashes import json_hash, leaf_hashes
from flowguide.restore import attempt, check_place, compare, read_parts, steps_in
from flowguide.training.posthoc import mixture, spread
from flowguide.training.step import TrainState
from flowguide.typing import PyTree

LARGEST_ERROR = 0.1  # of the weights of an average, relative to their norm


def folder(workdir: Path) -> Path:
    """Returns the folder of a run's snapshots."""
    return workdir / "snapshots"


@dataclasses.dataclass
class _Spread:
    """Orbax's policy that keeps ``n`` snapshots, evenly spread over the run."""

    n: int

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        steps = [info.step for info in checkpoints]
        kept = set(spread(sorted(steps), self.n))
        return [step in kept for step in steps]


def manager(workdir: Path, keep: int) -> ocp.CheckpointManager:
    """Returns a manager that saves in the background and keeps ``keep`` snapshots. All processes save together."""
    options = ocp.CheckpointManagerOptions(preservation_policy=_Spread(keep), create=True)
    return ocp.CheckpointManager(storage.absolute(folder(workdir)), options=options)


def save(to: ocp.CheckpointManager, state: TrainState, info: dict[str, Any], *, wait: bool = False) -> None:
    """Starts saving the averages that ``state`` tracks, and their hashes, under the state's step.

    Args:
      to: an open manager.
      state: of training.
      info: the JSON of ``info.json``, without which they cannot be understood.
      wait: whether to wait until everything is written. Several processes always wait: two managers of Orbax that save
        at once would meet at the same barriers.

    Raises:
      SaveError: if this snapshot cannot be written, or the one before, which was written in the background.
    """
    with failing_to_save():
        to.check_for_errors()
        step, tracked = int(state.step), jax.tree.map(copy_on_cpu, state.tracked)
        hashes = {"tracked": leaf_hashes(tracked), "step": step, "info": json_hash(info)}
        items = {"tracked": ocp.args.StandardSave(tracked), "hashes": ocp.args.JsonSave(hashes)}
        to.save(step, args=ocp.args.Composite(**items))
    if wait or processes.is_distributed():
        finish(to)


def resume(to: ocp.CheckpointManager, state: TrainState, info: dict[str, Any]) -> None:
    """Makes the snapshots those of a run that is at ``state``, restored or fresh. Arguments as for ``save``.

    It deletes those of later steps, which the run makes again, and saves one of this step if that was lost.

    Raises:
      SaveError: if it cannot write that snapshot.
    """
    at = int(state.step)
    processes.check_same("list of snapshots", sorted(to.all_steps()))
    for step in sorted(to.all_steps()):
        if step > at:
            to.delete(step)
    if at and at not in to.all_steps():
        save(to, state, info)


def reconstruct(
    workdir: Path,
    like: PyTree,
    widths: Sequence[float],
    width: float,
    step: int | None = None,
    info: dict[str, Any] | None = None,
) -> tuple[PyTree, int]:
    """Returns the average of relative width ``width`` at a step, and that step. Sums are in float64.

    A snapshot that is damaged is left out, with a warning.

    Args:
      workdir: of the run.
      like: the parameters, arrays or ``jax.ShapeDtypeStruct``: structure, shapes and dtypes.
      widths: of the averages that the run tracks.
      width: above 0 and below 12^-½ = 0.2887.
      step: of a snapshot; None for the newest.
      info: the JSON of ``info.json``; None to skip its comparison.

    Raises:
      UserError: if no average can have that width, the snapshots cannot give it, or there is none of that step.
    """
    check_place(workdir)
    damaged: dict[int, str] = {}
    read = partial(_whole, workdir, like, len(widths), info)
    while True:
        there = _steps(workdir, damaged)
        at = _wanted(workdir, there, step, damaged)
        coefficients = _coefficients(there, widths, at, width)
        total = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float64), like)
        unread = _add(total, zip(there, coefficients, strict=True), read)
        if not unread:
            return jax.tree.map(lambda part, leaf: jax.numpy.asarray(part, leaf.dtype), total, like), at
        damaged |= unread
        _warn(workdir, unread)


def _add(
    total: PyTree, terms: Iterable[tuple[int, np.ndarray]], read: Callable[[int], tuple[PyTree, ...]]
) -> dict[int, str]:
    """Adds the averages of each snapshot to ``total``, in place, weighted by their coefficients.

    It stops at a snapshot that it cannot read, and returns that step with the reason; empty if it reads them all.
    """
    for step, coefficients in terms:
        averages, reason = attempt(partial(read, step))
        if reason:
            return {step: reason}
        for x, average in zip(coefficients, averages, strict=True):
            for part, leaf in zip(jax.tree.leaves(total), jax.tree.leaves(average), strict=True):
                part += x * np.asarray(leaf, np.float64)
    return {}


def _steps(workdir: Path, damaged: dict[int, str]) -> list[int]:
    """Returns the steps of the snapshots that are there and not known to be damaged, the same in all processes."""
    there = steps_in(folder(workdir)) if folder(workdir).is_dir() else []
    there = [step for step in there if step not in damaged]
    processes.check_same("list of snapshots", there)
    return there


def _wanted(workdir: Path, there: Sequence[int], step: int | None, damaged: dict[int, str]) -> int:
    """Returns the step that is wanted, that of a snapshot."""
    if there and (step is None or step in there):
        return there[-1] if step is None else step
    of = "" if step is None else f" of step {step}"
    why = f" that can be read ({list(damaged.values())[-1]})" if damaged else ""
    others = (
        f": there are those of steps {', '.join(map(str, there))}" if there else ": let train.py reach its first one"
    )
    raise UserError(f"no snapshot{of}{why} in {folder(workdir)}{others}")


def _coefficients(there: Sequence[int], widths: Sequence[float], at: int, width: float) -> np.ndarray:
    """Returns the coefficient of each average in each snapshot, float64 ``(snapshots, widths)``."""
    found = mixture(np.repeat(there, len(widths)), np.tile(widths, len(there)), at, width)
    if found.error > LARGEST_ERROR:
        raise UserError(
            f"ema takes a width that {len(there)} snapshots of the widths {', '.join(f'{w:g}' for w in widths)} can "
            f"give; got {width:g}, of whose weights they miss {found.error:.0%}: ask for one nearer to these, or train "
            "with a smaller posthoc.every"
        )
    return found.coefficients.reshape(len(there), len(widths))


def _whole(workdir: Path, like: PyTree, count: int, info: dict[str, Any] | None, step: int) -> tuple[PyTree, ...]:
    """Returns the averages of a snapshot, checked against their hashes."""
    parts = read_parts(folder(workdir), info, {"tracked": (like,) * count}, (), step)
    compare(parts["hashes"], {"tracked": leaf_hashes(parts["tracked"])})
    return tuple(parts["tracked"])


def _warn(workdir: Path, unread: dict[int, str]) -> None:
    for step, reason in unread.items():
        place = folder(workdir) / str(step)
        if place.exists() and processes.is_main_process():  # a trainer may have deleted it meanwhile
            print(f"warning: the snapshot {place} is damaged ({reason}); the others are used", file=sys.stderr)
