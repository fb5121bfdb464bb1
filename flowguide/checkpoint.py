"""Saves checkpoints with Orbax: all that a run needs to resume bit-exactly, and hashes of it."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flowguide import processes, storage
from flowguide.hashes import json_hash, leaf_hashes
from flowguide.restore import BEST_BY, best_step, check_place, folder, move_away, parts_of, restore, restore_ema
from flowguide.restore import alone as alone_options
from flowguide.training.step import TrainState

if TYPE_CHECKING:  # sampling needs no Grain
    import grain

__all__ = [
    "BEST_BY",
    "SaveError",
    "any_in",
    "best_step",
    "check_place",
    "closing",
    "finish",
    "folder",
    "manager",
    "rescue",
    "restore",
    "restore_ema",
    "save",
]

ARRAYS, JSON = ("params", "ema", "train"), ("data", "meta", "hashes")  # the parts of a checkpoint


def any_in(workdir: Path) -> bool:
    """Returns whether a run ever reached a checkpoint, even one that was later found to be broken."""
    found = [*folder(workdir).glob("*"), *(workdir / "broken").glob("*")]
    return any(path.name.partition("-")[0].isdigit() for path in found)  # not what Orbax calls 8.orbax-checkpoint-tmp-1


def manager(workdir: Path, keep: int = 2, alone: bool = False) -> ocp.CheckpointManager:
    """Returns a manager that saves in the background and keeps the newest ``keep`` checkpoints and the best one.

    The best has the lowest validation loss. All processes save together or, with ``alone``, only this one saves.
    """

    def score(metrics: dict[str, float]) -> float:
        return metrics[BEST_BY]

    best = BestN(get_metric_fn=score, reverse=True, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
        best_fn=score,  # without it Orbax would not write the scores down, and a new start would forget which was best
        best_mode="min",
        multiprocessing_options=alone_options() if alone else ocp.options.MultiprocessingOptions(),
        create=not alone,  # Orbax wants all processes for that
    )
    # Orbax would cut each leaf, however small, into as many pieces as it has copies, while the training waits.
    arrays: dict[str, Any] = {"min_slice_bytes_for_replica_parallel": 2**20}
    handlers: dict[str, Any] = {}
    if alone:
        folder(workdir).mkdir(exist_ok=True)
        if processes.is_distributed():  # left to itself, Orbax lets only the first of them write what all have
            arrays = {"primary_host": None, "replica_id": None, "use_replica_parallel": False}
        handlers = {name: ocp.JsonCheckpointHandler(multiprocessing_options=alone_options()) for name in JSON}
        handlers |= {name: ocp.StandardCheckpointHandler(multiprocessing_options=alone_options()) for name in ARRAYS}
    else:
        _set_aside_unreadable_scores(folder(workdir))
    ocp.type_handlers.register_type_handler(jax.Array, ocp.type_handlers.ArrayHandler(**arrays), override=True)
    return ocp.CheckpointManager(storage.absolute(folder(workdir)), options=options, item_handlers=handlers or None)


@contextlib.contextmanager
def closing(*managers: ocp.CheckpointManager) -> Generator[None]:
    """Closes managers at the end. After a failure, reports that failure, not what closing makes of a failed save."""
    try:
        yield
    except BaseException:
        for to in managers:
            with contextlib.suppress(Exception):
                to.close()
        raise
    for to in managers:
        to.close()


class SaveError(Exception):
    """A checkpoint could not be written."""


def save(
    to: ocp.CheckpointManager,
    state: TrainState,
    data: grain.DatasetIterator[Any],
    meta: dict[str, Any],
    metrics: dict[str, float] | None = None,
    *,
    info: dict[str, Any] | None = None,
    wait: bool = False,
) -> None:
    """Starts saving ``state``, the position in the data and ``meta`` (JSON) under the state's step.

    Hashes of all of it are saved too, with the step itself and the hash of ``info``.

    Args:
      to: an open manager.
      state: of training.
      data: the iterator whose position is kept.
      meta: ``restore`` returns it.
      metrics: of validation; they decide which checkpoint is the best.
      info: the JSON of ``info.json`` beside the checkpoints, without which they cannot be understood.
      wait: whether to wait until everything is written.

    Raises:
      SaveError: if this checkpoint cannot be written, or the one before, which was written in the background.
    """
    with failing_to_save():
        to.check_for_errors()  # if the last save failed only here, waiting for other processes would hang
        state = jax.tree.map(copy_on_cpu, state)
        parts = parts_of(state)
        hashes = {name: leaf_hashes(part) for name, part in parts.items()}
        position = data.get_state()  # the same in all processes, and for any number of them
        hashes |= {"data": json_hash(position), "meta": json_hash(meta), "step": int(state.step)}
        hashes |= {} if info is None else {"info": json_hash(info)}
        items: dict[str, Any] = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
        items["data"] = ocp.args.JsonSave(position)
        items["meta"] = ocp.args.JsonSave(meta)
        items["hashes"] = ocp.args.JsonSave(hashes)
        to.save(int(state.step), args=ocp.args.Composite(**items), metrics=metrics)
    if wait:
        finish(to)


def finish(to: ocp.CheckpointManager) -> None:
    """Waits until everything is written.

    Raises:
      SaveError: if it cannot be written.
    """
    with failing_to_save():
        while to.is_saving_in_progress():
            to.check_for_errors()  # a failed save would wait for the others at a barrier, and they for it
            time.sleep(0.05)
        to.wait_until_finished()


@contextlib.contextmanager
def failing_to_save() -> Generator[None]:
    """Raises ``SaveError`` for whatever fails."""
    try:
        yield
    except Exception as error:  # a full disk, a bucket that has gone: each storage has its own kinds
        text = " ".join(str(error).split())
        # The cause comes last, after all the layers that pass it on.
        raise SaveError(f"{type(error).__name__}: {text if len(text) <= 400 else f'… {text[-400:]}'}") from error


def copy_on_cpu(a: Any) -> Any:
    """Copies an array on a CPU: there Orbax writes from the memory that the next step reuses."""
    on_cpu = isinstance(a, jax.Array) and all(device.platform == "cpu" for device in a.devices())
    return a.copy() if on_cpu else a


def rescue(
    state: TrainState, data: grain.DatasetIterator[Any], meta: dict[str, Any], files: Mapping[str, str | bytes]
) -> Path:
    """Saves a state to a temporary folder, which is a run as well, because its own folder cannot take it; returns it.

    Args:
      state: of training.
      data: the iterator whose position is kept.
      meta: as for ``save``.
      files: contents by name that lie beside the checkpoints, ``info.json`` among them. The run's folder may be gone.

    Raises:
      SaveError: if there is no room there either, or this process holds only a part of the state.
    """
    if not all(a.is_fully_replicated or a.is_fully_addressable for a in jax.tree.leaves(state)):
        raise SaveError("the state is spread over several processes")
    try:
        place = Path(tempfile.mkdtemp(prefix="flowguide-rescued-"))
        for name, content in files.items():
            (place / name).write_bytes(content.encode() if isinstance(content, str) else content)
        with manager(place, alone=True) as to:
            save(to, state, data, meta, info=json.loads(files["info.json"]), wait=True)
    except OSError as error:
        raise SaveError(str(error)) from error
    return place


def _set_aside_unreadable_scores(checkpoints: Path) -> None:
    """Moves away checkpoints whose scores cannot be read: Orbax reads all scores when it opens the folder."""
    if processes.is_main_process():
        for file in sorted(checkpoints.glob("*/metrics/metrics")):
            step = file.parent.parent
            try:
                float(json.loads(file.read_bytes())[BEST_BY])
            except (ValueError, TypeError, KeyError):
                print(f"warning: the checkpoint {step} is damaged: its scores cannot be read", file=sys.stderr)
                move_away(step, checkpoints.parent / "broken" / step.name)
    processes.wait("scores")
