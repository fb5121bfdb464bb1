"""Checkpoints: Orbax, with what is needed to go on exactly where a run stopped."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
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


def any_in(workdir: Path) -> bool:
    """Whether a run has come to a checkpoint, be it one that was found to be broken later."""
    found = [*folder(workdir).glob("*"), *(workdir / "broken").glob("*")]
    return any(path.name.partition("-")[0].isdigit() for path in found)  # not what Orbax calls 8.orbax-checkpoint-tmp-1


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
        if processes.is_distributed():  # left to itself, Orbax lets only the first of them write what all have
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
    info: dict[str, Any] | None = None,
    wait: bool = False,
) -> None:
    """Starts saving ``state``, the position in the data and ``meta`` (JSON) under the state's step.

    Hashes of all of it are saved too, with the step itself and the hash of ``info``.

    Args:
      to: an open manager.
      state: of training.
      data: the iterator whose position is kept.
      meta: what is to come back from ``restore``.
      metrics: of validation, by which the best is kept.
      info: the JSON of ``info.json`` beside the checkpoints, without which they cannot be understood.
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
        hashes |= {"data": json_hash(position), "meta": json_hash(meta), "step": int(state.step)}
        hashes |= {} if info is None else {"info": json_hash(info)}
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


def rescue(state: TrainState, data: grain.DatasetIterator, meta: dict[str, Any], files: Mapping[str, str]) -> Path:
    """Saves a state that its run's folder has no room for to a temporary one, which is a run as well.

    Args:
      state: of training.
      data: the iterator whose position is kept.
      meta: as for ``save``.
      files: what lies beside the checkpoints, text by name, ``info.json`` among them. The run's folder may be gone.

    Raises:
      SaveError: if there is no room there either, or this process has only a part of the state.
    """
    if not all(a.is_fully_replicated or a.is_fully_addressable for a in jax.tree.leaves(state)):
        raise SaveError("the state is spread over several processes")
    try:
        place = Path(tempfile.mkdtemp(prefix="flowguide-rescued-"))
        for name, text in files.items():
            (place / name).write_text(text)
        with manager(place, alone=True) as to:
            save(to, state, data, meta, info=json.loads(files["info.json"]), wait=True)
    except OSError as error:
        raise SaveError(str(error)) from error
    return place


def restore(
    to: ocp.CheckpointManager, like: TrainState, data: grain.DatasetIterator, info: dict[str, Any] | None = None
) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint that is whole: the state and the ``meta`` saved with it; ``data`` is moved to its position.

    Whole means that it can be read, and that its step and all of it are what was hashed. Newer ones that are not are
    warned of and moved to the folder ``broken`` beside ``checkpoints``.

    Args:
      to: an open manager that has a checkpoint.
      like: a state of the same network and optimiser, concrete or abstract: structure, shapes, types and where each
        leaf is to lie, however it lay when it was saved.
      data: an iterator of the same pipeline; it is moved to the saved position.
      info: as for ``save``, of the data now; None not to compare it.

    Raises:
      UserError: if there is no checkpoint, or none can be read, or they are of another network.
    """
    train = {"step": like.step, "opt_state": like.opt_state}
    arrays = {"params": like.params, "ema": like.ema, "train": train}

    def check(step: int, parts: Any) -> None:
        got = {name: leaf_hashes(parts[name]) for name in arrays}
        _compare(parts["hashes"], got | {name: json_hash(parts[name]) for name in ("data", "meta")})
        if int(parts["train"]["step"]) != step:
            raise _Damaged(f"it is of step {int(parts['train']['step'])}")

    checkpoints = Path(to.directory)
    _, parts, broken = _newest_whole(checkpoints, partial(_read, checkpoints, info, arrays, ("data", "meta")), check)
    if broken and processes.is_main_process():
        for step in broken:
            _move_away(checkpoints / str(step), checkpoints.parent / "broken" / str(step))
    if broken:
        processes.wait("broken checkpoints")
        to.reload()
        processes.check_same("list of checkpoints", sorted(to.all_steps()))
    data.set_state(parts["data"])
    state = TrainState(parts["train"]["step"], parts["params"], parts["ema"], parts["train"]["opt_state"])
    return state, parts["meta"]


def restore_ema(
    workdir: Path, like: PyTree, step: int | None = None, info: dict[str, Any] | None = None
) -> tuple[PyTree, int]:
    """The averaged parameters alone, of the given step or the newest that is whole, and that step.

    A checkpoint that a trainer deletes meanwhile, as it has a newer one, is looked up again.

    Args:
      workdir: of the run.
      like: a tree of arrays or ``jax.ShapeDtypeStruct``: structure, shapes and types.
      step: which checkpoint; None for the newest.
      info: the JSON of ``info.json``; None not to compare it with what was saved.

    Raises:
      UserError: if there is no such checkpoint, or it cannot be read, or it is of another network.
    """
    checkpoints = folder(workdir)
    if not checkpoints.is_dir():
        raise UserError(f"no checkpoints in {workdir}: expected a --workdir that train.py has written to")

    def check(step: int, parts: Any) -> None:
        _compare(parts["hashes"], {"ema": leaf_hashes(parts["ema"])})

    used, parts, _ = _newest_whole(checkpoints, partial(_read, checkpoints, info, {"ema": like}, ()), check, step)
    return parts["ema"], used


def _steps(checkpoints: Path) -> list[int]:
    """The finished checkpoints that there are now. Unlike a manager this opens none of them, and so fails for none."""
    found = ocp.path.step.standard_name_format().find_all(checkpoints.absolute())
    return sorted(metadata.step for metadata in found)


def _read(
    checkpoints: Path, info: dict[str, Any] | None, arrays: Mapping[str, PyTree], jsons: tuple[str, ...], step: int
) -> dict[str, Any]:
    """The named parts of a checkpoint and its ``hashes``; ``arrays`` are structures, as ``_abstract`` takes them.

    It waits for no other process: one that cannot read must not be waited for by those who can.

    Raises:
      _Damaged: if it is of another step or other data, whose arrays may have other shapes.
    """
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=_alone()))
    with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as reader:

        def restored(**items: Any) -> dict[str, Any]:
            return dict(reader.restore((checkpoints / str(step)).absolute(), args=ocp.args.Composite(**items)).items())

        as_json = ocp.args.JsonRestore()
        stored = restored(hashes=as_json)
        if stored["hashes"].get("step", step) != step:
            raise _Damaged(f"it was saved as that of step {stored['hashes']['step']}")
        if info is not None and stored["hashes"].get("info", json_hash(info)) != json_hash(info):
            raise _Damaged("it was saved with another info.json")
        trees = {name: ocp.args.StandardRestore(_abstract(tree)) for name, tree in arrays.items()}  # pyright: ignore[reportCallIssue]
        return stored | restored(**trees, **dict.fromkeys(jsons, as_json))


def _alone() -> ocp.options.MultiprocessingOptions:
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(me, {me}, barrier_sync_key_prefix=f"process{me}")


class _Damaged(Exception):
    """Something in a checkpoint is not what was saved."""


def _newest_whole(
    checkpoints: Path, read: Callable[[int], Any], check: Callable[[int, Any], None], only: int | None = None
) -> tuple[int, Any, list[int]]:
    """The newest step, or that ``only``, which all processes can ``read`` and ``check``; what it holds; newer ones that
    they cannot.

    It lists the folder again after every failure: a trainer deletes a checkpoint once it has a newer one.
    """
    reasons: dict[int, str] = {}

    def untried() -> int:
        """As the leader sees it: others may see a change of the folder a little later."""
        steps = [step for step in _steps(checkpoints) if step not in reasons and only in (None, step)]
        return int(processes.broadcast_from_main(max(steps, default=-1)))

    while (step := untried()) >= 0:
        whole, reason = _attempt(partial(read, step))
        if not reason:  # the hashes are computed by all processes together, so all of them must have come to here
            _, reason = _attempt(partial(check, step, whole))
        if reason:
            reasons[step] = reason
            continue
        broken = [
            bad for bad in reasons if bad > step and processes.broadcast_from_main((checkpoints / str(bad)).exists())
        ]
        for bad in broken:
            print(
                f"warning: the checkpoint {checkpoints / str(bad)} is damaged ({reasons[bad]}); that of step {step} is "
                "used in its place",
                file=sys.stderr,
            )
        return step, whole, broken

    there = _steps(checkpoints)
    unread = [step for step in sorted(reasons, reverse=True) if step in there]
    if not unread and only is not None:
        raise UserError(f"no checkpoint of step {only} in {checkpoints.parent}: there are {there}")
    if not unread:
        raise UserError(f"no finished checkpoint in {checkpoints}: let train.py reach its first one")
    others = f"; neither can {', '.join(map(str, unread[1:]))}" if unread[1:] else ""
    raise UserError(
        f"the checkpoint {checkpoints / str(unread[0])} cannot be read as this run's ({reasons[unread[0]]}){others}: "
        "restore the folder from a copy, or train in another --workdir"
    )


def _attempt(action: Callable[[], Any]) -> tuple[Any, str]:
    """What an action gives, and why it failed, here or in another process; empty if it did not."""
    result, reason = None, ""
    try:
        result = action()
    except Exception as error:  # Orbax and TensorStore raise a dozen kinds for files that are cut short
        kind = "" if isinstance(error, _Damaged) else f"{type(error).__name__}: "
        reason = kind + " ".join(str(error).split())[:200]
    return result, reason if processes.all_true(not reason) else reason or "another process cannot read it"


def _set_aside_unreadable_scores(checkpoints: Path) -> None:
    """Moves away the checkpoints whose scores cannot be read: Orbax reads all of them as it opens the folder."""
    if processes.is_main_process():
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
