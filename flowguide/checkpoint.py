"""Checkpoints: Orbax, with what is needed to go on exactly where a run stopped."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flowguide import processes
from flowguide.errors import UserError
from flowguide.hashes import json_hash, leaf_hashes
from flowguide.training.step import TrainState
from flowguide.typing import PyTree

BEST_BY = "val_loss"
ARRAYS, JSON = ("params", "ema", "train"), ("data", "meta", "hashes")  # what a checkpoint has


def folder(workdir: Path) -> Path:
    """Where the checkpoints of a run are."""
    return workdir / "checkpoints"


def manager(workdir: Path, keep: int = 2, alone: bool = False) -> ocp.CheckpointManager:
    """Saves in the background; keeps the newest ``keep`` checkpoints and the one of the least validation loss.

    All processes save together or, if ``alone``, this one without the others.
    """

    def score(metrics: dict[str, float]) -> float:
        return metrics[BEST_BY]

    best = BestN(get_metric_fn=score, reverse=True, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
        best_fn=score,  # without it Orbax would not write the scores down, and a new start would forget which was best
        best_mode="min",
        multiprocessing_options=_alone() if alone else ocp.options.MultiprocessingOptions(),
        create=not alone,  # Orbax wants all processes for that
    )
    # Orbax would cut each leaf, however small, into as many pieces as it has copies, while the training waits.
    arrays: dict[str, Any] = {"min_slice_bytes_for_replica_parallel": 2**20}
    handlers: dict[str, Any] = {}
    if alone:
        folder(workdir).mkdir(exist_ok=True)
        if processes.several():  # left to itself, Orbax lets only the first of them write what all have
            arrays = {"primary_host": None, "replica_id": None, "use_replica_parallel": False}
        handlers = {name: ocp.JsonCheckpointHandler(multiprocessing_options=_alone()) for name in JSON}
        handlers |= {name: ocp.StandardCheckpointHandler(multiprocessing_options=_alone()) for name in ARRAYS}
    else:
        _set_aside_unreadable_scores(folder(workdir))
    ocp.type_handlers.register_type_handler(jax.Array, ocp.type_handlers.ArrayHandler(**arrays), override=True)
    return ocp.CheckpointManager(folder(workdir).absolute(), options=options, item_handlers=handlers or None)


@contextlib.contextmanager
def closing(to: ocp.CheckpointManager) -> Iterator[None]:
    """Closes a manager. After a failure that one is told, not what closing makes of a save that has failed as well."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            to.close()
        raise
    to.close()


class SaveError(Exception):
    """A checkpoint could not be written."""


def save(
    to: ocp.CheckpointManager,
    state: TrainState,
    data: grain.DatasetIterator,
    meta: dict[str, Any],
    metrics: dict[str, float] | None = None,
    *,
    wait: bool = False,
) -> None:
    """Starts saving ``state``, the position in the data and ``meta`` (JSON) under the state's step.

    Args:
      to: an open manager.
      state: of training.
      data: the iterator whose position is kept.
      meta: what is to come back from ``restore``.
      metrics: of validation, by which the best is kept.
      wait: until it is written.

    Raises:
      SaveError: if this one, or the one before it, which was written meanwhile, cannot be.
    """
    with _failing_to_save():
        to.check_for_errors()  # where the last save failed here alone, other processes must not be waited for
        state = jax.tree.map(_copy_on_cpu, state)
        parts = {"params": state.params, "ema": state.ema, "train": {"step": state.step, "opt_state": state.opt_state}}
        hashes = {name: leaf_hashes(part) for name, part in parts.items()}
        position = data.get_state()  # the same in all processes, and for any number of them
        hashes |= {"data": json_hash(position), "meta": json_hash(meta)}
        items: dict[str, Any] = {name: ocp.args.StandardSave(part) for name, part in parts.items()}  # pyright: ignore[reportCallIssue]
        items["data"] = ocp.args.JsonSave(position)  # pyright: ignore[reportCallIssue]
        items["meta"] = ocp.args.JsonSave(meta)  # pyright: ignore[reportCallIssue]
        items["hashes"] = ocp.args.JsonSave(hashes)  # pyright: ignore[reportCallIssue]
        to.save(int(state.step), args=ocp.args.Composite(**items), metrics=metrics)
    if wait:
        finish(to)


def finish(to: ocp.CheckpointManager) -> None:
    """Waits until all is written.

    Raises:
      SaveError: if it cannot be.
    """
    with _failing_to_save():
        while to.is_saving_in_progress():
            to.check_for_errors()  # one that failed would wait for the others at a barrier, and they for it
            time.sleep(0.05)
        to.wait_until_finished()


@contextlib.contextmanager
def _failing_to_save() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a full disk, a bucket that has gone: each storage has its own kinds
        text = " ".join(str(error).split())
        # The cause comes last, after all the layers that pass it on.
        raise SaveError(f"{type(error).__name__}: {text if len(text) <= 400 else f'… {text[-400:]}'}") from error


def _copy_on_cpu(a: Any) -> Any:
    """On CPUs Orbax writes from the very memory that the next step is given; elsewhere it has a copy of its own by the
    time that ``save`` returns."""
    on_cpu = isinstance(a, jax.Array) and all(device.platform == "cpu" for device in a.devices())
    return a.copy() if on_cpu else a


def rescue(state: TrainState, data: grain.DatasetIterator, meta: dict[str, Any], workdir: Path) -> Path:
    """Saves a state that its run's folder has no room for to a temporary one, which is a run as well.

    Args:
      state: of training.
      data: the iterator whose position is kept.
      meta: as for ``save``.
      workdir: of the run; its settings are copied.

    Raises:
      SaveError: if there is no room there either, or this process has only a part of the state.
    """
    if not all(a.is_fully_replicated or a.is_fully_addressable for a in jax.tree.leaves(state)):
        raise SaveError("the state is spread over several processes")
    try:
        place = Path(tempfile.mkdtemp(prefix="flowguide-rescued-"))
        for name in ("config.json", "info.json"):
            shutil.copy(workdir / name, place)
        with manager(place, alone=True) as to:
            save(to, state, data, meta, wait=True)
    except OSError as error:
        raise SaveError(str(error)) from error
    return place


def restore(
    to: ocp.CheckpointManager, like: TrainState, data: grain.DatasetIterator
) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint that is whole: the state and the ``meta`` saved with it; ``data`` is moved to its position.

    Whole means that it can be read and that all of it has the hashes that were stored with it. Newer ones that are not
    are warned of and moved to the folder ``broken`` beside ``checkpoints``.

    Args:
      to: an open manager that has a checkpoint.
      like: a state of the same network and optimiser, concrete or abstract: structure, shapes, types and where each
        leaf is to lie, however it lay when it was saved.
      data: an iterator of the same pipeline; it is moved to the saved position.

    Raises:
      UserError: if there is no checkpoint, or none can be read, or they are of another network.
    """
    train = {"step": like.step, "opt_state": like.opt_state}

    def read(found: ocp.CheckpointManager, step: int) -> Any:
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(_abstract(like.params)),  # pyright: ignore[reportCallIssue]
            ema=ocp.args.StandardRestore(_abstract(like.ema)),  # pyright: ignore[reportCallIssue]
            train=ocp.args.StandardRestore(_abstract(train)),  # pyright: ignore[reportCallIssue]
            data=ocp.args.JsonRestore(),  # pyright: ignore[reportCallIssue]
            meta=ocp.args.JsonRestore(),  # pyright: ignore[reportCallIssue]
            hashes=ocp.args.JsonRestore(),  # pyright: ignore[reportCallIssue]
        )
        return found.restore(step, args=items)

    def check(step: int, parts: Any) -> None:
        got = {name: leaf_hashes(parts[name]) for name in ("params", "ema", "train")}
        _compare(parts["hashes"], got | {name: json_hash(parts[name]) for name in ("data", "meta")})
        if int(parts["train"]["step"]) != step:
            raise _Damaged(f"it is of step {int(parts['train']['step'])}")

    with _reader(Path(to.directory)) as found:
        _, parts, broken = _newest_whole(found, read, check)
    if broken and processes.leads():
        for step in broken:
            _move_away(Path(to.directory) / str(step), Path(to.directory).parent / "broken" / str(step))
    if broken:
        processes.wait("broken checkpoints")
        to.reload()
        processes.check_same("list of checkpoints", sorted(to.all_steps()))
    data.set_state(parts["data"])
    state = TrainState(parts["train"]["step"], parts["params"], parts["ema"], parts["train"]["opt_state"])
    return state, parts["meta"]


def restore_ema(workdir: Path, like: PyTree, step: int | None = None) -> tuple[PyTree, int]:
    """The averaged parameters alone, of the given step or the newest that is whole, and that step.

    Args:
      workdir: of the run.
      like: a tree of arrays or ``jax.ShapeDtypeStruct``: structure, shapes and types.
      step: which checkpoint; None for the newest.

    Raises:
      UserError: if there is no such checkpoint, or it cannot be read, or it is of another network.
    """
    if not folder(workdir).is_dir():
        raise UserError(f"no checkpoints in {workdir}: expected a --workdir that train.py has written to")

    def read(found: ocp.CheckpointManager, step: int) -> Any:
        items = ocp.args.Composite(
            ema=ocp.args.StandardRestore(_abstract(like)),  # pyright: ignore[reportCallIssue]
            hashes=ocp.args.JsonRestore(),  # pyright: ignore[reportCallIssue]
        )
        return found.restore(step, args=items)

    def check(step: int, parts: Any) -> None:
        _compare(parts["hashes"], {"ema": leaf_hashes(parts["ema"])})

    with _reader(folder(workdir)) as found:
        if step is not None and step not in found.all_steps():
            raise UserError(f"no checkpoint of step {step} in {workdir}: there are {sorted(found.all_steps())}")
        used, parts, _ = _newest_whole(found, read, check, None if step is None else [step])
    return parts["ema"], used


def _reader(directory: Path) -> ocp.CheckpointManager:
    """Reads, and waits for no other process: one that cannot read must not be waited for by those who can."""
    options = ocp.CheckpointManagerOptions(
        read_only=True, create=False, save_interval_steps=0, multiprocessing_options=_alone()
    )
    return ocp.CheckpointManager(directory.absolute(), options=options)


def _alone() -> ocp.options.MultiprocessingOptions:
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(me, {me}, barrier_sync_key_prefix=f"process{me}")


class _Damaged(Exception):
    """Something in a checkpoint is not what was saved."""


def _newest_whole(
    found: ocp.CheckpointManager,
    read: Callable[[ocp.CheckpointManager, int], Any],
    check: Callable[[int, Any], None],
    steps: Sequence[int] | None = None,
) -> tuple[int, Any, list[int]]:
    """The newest step that all processes can ``read`` and ``check``, what it holds, and the newer ones that are not."""
    steps = sorted(found.all_steps(), reverse=True) if steps is None else steps
    if not steps:
        raise UserError(f"no finished checkpoint in {found.directory}: let train.py reach its first one")
    reasons: dict[int, str] = {}
    processes.check_same("list of checkpoints", list(steps))
    for step in steps:
        whole, reason = _attempt(partial(read, found, step))
        if not reason:  # the hashes are computed by all processes together, so all of them must have come to here
            _, reason = _attempt(partial(check, step, whole))
        if reason:
            reasons[step] = reason
            continue
        for bad, reason in reasons.items():
            print(
                f"warning: the checkpoint {found.directory / str(bad)} is damaged ({reason}); that of step {step} is "
                "used in its place",
                file=sys.stderr,
            )
        return step, whole, list(reasons)
    newest = steps[0]
    others = f"; neither can {', '.join(str(s) for s in steps[1:])}" if steps[1:] else ""
    raise UserError(
        f"the checkpoint {found.directory / str(newest)} cannot be read as this run's ({reasons[newest]}){others}: "
        "restore the folder from a copy, or train in another --workdir"
    )


def _attempt(action: Callable[[], Any]) -> tuple[Any, str]:
    """What an action gives, and why it failed, here or in another process; empty if it did not."""
    result, reason = None, ""
    try:
        result = action()
    except Exception as error:  # Orbax and TensorStore raise a dozen kinds for files that are cut short
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return result, reason if processes.all_of(not reason) else reason or "another process cannot read it"


def _set_aside_unreadable_scores(checkpoints: Path) -> None:
    """Moves away the checkpoints whose scores cannot be read: Orbax reads all of them as it opens the folder."""
    if processes.leads():
        for file in sorted(checkpoints.glob("*/metrics/metrics")):
            step = file.parent.parent
            try:
                float(json.loads(file.read_bytes())[BEST_BY])
            except (ValueError, TypeError, KeyError):
                print(f"warning: the checkpoint {step} is damaged: its scores cannot be read", file=sys.stderr)
                _move_away(step, checkpoints.parent / "broken" / step.name)
    processes.wait("scores")


def _compare(stored: dict[str, Any], got: dict[str, Any]) -> None:
    for part, value in got.items():
        expected = stored.get(part)
        if value == expected:
            continue
        leaves = [k for k in value if value[k] != expected.get(k)] if isinstance(expected, dict) else []
        raise _Damaged(f"{part}{''.join(leaves[:1])} is not what was saved: its hash differs")


def _move_away(source: Path, place: Path) -> None:
    """Moves a folder, to a place of another name if the first is taken."""
    count = 0
    while place.exists():
        count += 1
        place = place.with_name(f"{source.name}-{count}")
    place.parent.mkdir(exist_ok=True)
    shutil.move(source, place)


def _abstract(tree: PyTree) -> PyTree:
    """Shapes, types, and where to restore to; if that is not said, one device: whoever uses the arrays spreads them."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def like(a: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=getattr(a, "sharding", None) or here)

    return jax.tree.map(like, tree)
