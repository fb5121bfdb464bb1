"""Reads checkpoints: the newest that is whole, checked against its hashes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import orbax.checkpoint as ocp

from flowguide import processes, storage
from flowguide.errors import UserError, one_line
from flowguide.hashes import json_hash, leaf_hashes
from flowguide.training.step import TrainState
from flowguide.typing import PyTree

if TYPE_CHECKING:  # sampling needs no Grain
    import grain

BEST_BY = "val_loss"  # the score that ranks checkpoints


def folder(workdir: Path) -> Path:
    """Returns the folder of a run's checkpoints."""
    return workdir / "checkpoints"


def check_place(workdir: Path) -> None:
    """Raises ``UserError`` for a bucket that Orbax cannot write to: its arrays go to folders and ``gs://`` alone."""
    if storage.is_remote(workdir) and not str(workdir).startswith("gs://"):
        raise UserError(
            f"Orbax keeps checkpoints in folders and gs:// buckets, not in {workdir}: give a folder as --workdir"
        )


def restore(
    to: ocp.CheckpointManager, like: TrainState, data: grain.DatasetIterator[Any], info: dict[str, Any] | None = None
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state and ``meta`` of the newest checkpoint that is whole, and moves ``data`` to its position.

    Whole means that it can be read, and that its step and all its parts match their hashes. Warns of newer ones that
    are not, and moves them to the folder ``broken`` beside ``checkpoints``.

    Args:
      to: an open manager that has a checkpoint.
      like: a state of the same network and optimiser, concrete or abstract: structure, shapes, dtypes and the sharding
        to restore to, whatever it was when saved.
      data: an iterator of the same pipeline; it moves to the saved position.
      info: as for ``save``, of today's data; None to skip the comparison.

    Raises:
      UserError: if there is no checkpoint, none can be read, or they belong to another network.
    """
    arrays = parts_of(like)

    def check(step: int, parts: Any) -> None:
        got = {name: leaf_hashes(parts[name]) for name in arrays}
        compare(parts["hashes"], got | {name: json_hash(parts[name]) for name in ("data", "meta")})
        if int(parts["train"]["step"]) != step:
            raise _Damaged(f"it is of step {int(parts['train']['step'])}")

    checkpoints = storage.path(to.directory)
    _, parts, broken = _newest_whole(
        checkpoints, partial(read_parts, checkpoints, info, arrays, ("data", "meta")), check
    )
    if broken and processes.is_main_process():
        for step in broken:
            move_away(checkpoints / str(step), checkpoints.parent / "broken" / str(step))
    if broken:
        processes.wait("broken checkpoints")
        to.reload()
        processes.check_same("list of checkpoints", sorted(to.all_steps()))
    data.set_state(parts["data"])
    train = parts["train"]
    tracked = tuple(train.get("tracked", ()))
    return TrainState(train["step"], parts["params"], parts["ema"], train["opt_state"], tracked), parts["meta"]


def parts_of(state: TrainState) -> dict[str, PyTree]:
    """Returns a state as the parts of a checkpoint that hold arrays."""
    train = {"step": state.step, "opt_state": state.opt_state}
    if state.tracked:  # a checkpoint of a run that tracks none has no such entry
        train["tracked"] = state.tracked
    return {"params": state.params, "ema": state.ema, "train": train}


def restore_ema(
    workdir: Path,
    like: PyTree,
    step: int | None = None,
    info: dict[str, Any] | None = None,
    *,
    best: int | None = None,
) -> tuple[PyTree, int]:
    """Returns only the averaged parameters, of the given step or the newest whole checkpoint, and that step.

    If a trainer deletes the checkpoint meanwhile, because it has a newer one, the folder is listed again.

    Args:
      workdir: of the run.
      like: a tree of arrays or ``jax.ShapeDtypeStruct``: structure, shapes and dtypes.
      step: of the checkpoint; None for the newest.
      info: the JSON of ``info.json``; None to skip its comparison.
      best: the step of the best checkpoint, which is tried before the newest. If it is damaged, a warning says which is
        used.

    Raises:
      UserError: if there is no such checkpoint, it cannot be read, or it belongs to another network.
    """
    check_place(workdir)
    checkpoints = folder(workdir)
    if not checkpoints.is_dir():
        raise UserError(f"no checkpoints in {workdir}: expected a --workdir that train.py has written to")

    def check(step: int, parts: Any) -> None:
        compare(parts["hashes"], {"ema": leaf_hashes(parts["ema"])})

    read = partial(read_parts, checkpoints, info, {"ema": like}, ())
    used, parts, _ = _newest_whole(checkpoints, read, check, step, best)
    return parts["ema"], used


def best_step(workdir: Path) -> int | None:
    """Returns the step of the whole checkpoint with the lowest validation loss; None if none has one."""
    scores: dict[int, float] = {}
    for step in steps_in(folder(workdir)) if folder(workdir).is_dir() else []:
        try:
            text = storage.read_text(folder(workdir) / str(step) / "metrics" / "metrics")
            scores[step] = float(json.loads(text)[BEST_BY])
        except (OSError, ValueError, TypeError, KeyError):  # without a score, or damaged
            continue
    return min(scores, key=lambda step: (scores[step], -step)) if scores else None


def steps_in(checkpoints: Path) -> list[int]:
    """Returns the steps of the finished checkpoints. Unlike a manager this opens none, so none can make it fail."""
    found = ocp.path.step.standard_name_format().find_all(storage.absolute(checkpoints))
    return sorted(metadata.step for metadata in found)


def read_parts(
    checkpoints: Path, info: dict[str, Any] | None, arrays: Mapping[str, PyTree], jsons: tuple[str, ...], step: int
) -> dict[str, Any]:
    """Returns the named parts of a checkpoint and its ``hashes``; ``arrays`` are structures for ``_abstract``.

    It waits for no other process: those that can read must not wait for one that cannot.

    Raises:
      _Damaged: if it belongs to another step or other data, whose arrays may have other shapes.
    """
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone()))
    with ocp.Checkpointer(handler, multiprocessing_options=alone()) as reader:

        def restored(**items: Any) -> dict[str, Any]:
            place = storage.absolute(checkpoints / str(step))
            return dict(reader.restore(place, args=ocp.args.Composite(**items)).items())

        as_json = ocp.args.JsonRestore()
        stored = restored(hashes=as_json)
        if stored["hashes"].get("step", step) != step:
            raise _Damaged(f"it was saved as that of step {stored['hashes']['step']}")
        if info is not None and stored["hashes"].get("info", json_hash(info)) != json_hash(info):
            raise _Damaged("it was saved with another info.json")
        trees = {name: ocp.args.StandardRestore(_abstract(tree)) for name, tree in arrays.items()}
        return stored | restored(**trees, **dict.fromkeys(jsons, as_json))


def alone() -> ocp.options.MultiprocessingOptions:
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(me, {me}, barrier_sync_key_prefix=f"process{me}")


class _Damaged(Exception):
    """A part of a checkpoint is not what was saved."""


def _newest_whole(
    checkpoints: Path,
    read: Callable[[int], Any],
    check: Callable[[int, Any], None],
    only: int | None = None,
    best: int | None = None,
) -> tuple[int, Any, list[int]]:
    """Finds the newest step, or ``only``, that all processes can ``read`` and ``check``; tries ``best`` first.

    It lists the folder again after every failure: a trainer deletes a checkpoint once it has a newer one.

    Returns:
      the step, what it holds, and the steps that are broken and would have come before it.
    """
    reasons: dict[int, str] = {}

    def untried() -> int:
        """Returns the next step as the main process sees it: others may see a change of the folder a little later."""
        steps = [step for step in steps_in(checkpoints) if step not in reasons and only in (None, step)]
        first = max(steps, default=-1) if best not in steps else best
        return int(processes.broadcast_from_main(first))

    while (step := untried()) >= 0:
        whole, reason = attempt(partial(read, step))
        if not reason:  # the hashes are computed by all processes together, so all of them must have come to here
            _, reason = attempt(partial(check, step, whole))
        if reason:
            reasons[step] = reason
            continue
        broken = [
            bad
            for bad in reasons
            if (bad > step or bad == best) and processes.broadcast_from_main((checkpoints / str(bad)).exists())
        ]
        for bad in broken:
            print(
                f"warning: the {'best ' * (bad == best)}checkpoint {checkpoints / str(bad)} is damaged "
                f"({reasons[bad]}); that of step {step} is used in its place",
                file=sys.stderr,
            )
        return step, whole, broken

    there = steps_in(checkpoints)
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


def attempt(action: Callable[[], Any]) -> tuple[Any, str]:
    """Returns the result of an action, and why it failed, here or in another process; empty if it did not.

    Collective: every process must call it.
    """
    result, reason = None, ""
    try:
        result = action()
    except Exception as error:  # Orbax and TensorStore raise a dozen kinds for files that are cut short
        kind = "" if isinstance(error, _Damaged) else f"{type(error).__name__}: "
        reason = kind + one_line(error, 200)
    return result, reason if processes.all_true(not reason) else reason or "another process cannot read it"


def compare(stored: dict[str, Any], got: dict[str, Any]) -> None:
    """Compares hashes of the parts that were ``got`` with those that are stored.

    Raises:
      _Damaged: if they differ.
    """
    for part, value in got.items():
        expected = stored.get(part)
        if value == expected:
            continue
        leaves = [k for k in value if value[k] != expected.get(k)] if isinstance(expected, dict) else []
        raise _Damaged(f"{part}{''.join(leaves[:1])} is not what was saved: its hash differs")


def move_away(source: Path, place: Path) -> None:
    """Moves a folder; takes another name if the first is taken."""
    count = 0
    while place.exists():
        count += 1
        place = place.with_name(f"{source.name}-{count}")
    storage.make_folder(place.parent)
    storage.move(source, place)


def _abstract(tree: PyTree) -> PyTree:
    """Returns shapes, dtypes and shardings to restore to; by default one device, from which the caller spreads them."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def like(a: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=getattr(a, "sharding", None) or here)

    return jax.tree.map(like, tree)
