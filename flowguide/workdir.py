"""The folder of a run: one trainer opens it, and all its processes must find it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowguide import checkpoint, processes, storage
from flowguide.config import Config, check_same_run, config_for, is_table, read_config, why
from flowguide.errors import UserError
from flowguide.foreign import is_foreign
from flowguide.lock import only_trainer
from flowguide.schema import DataInfo, Known, info_from_json
from flowguide.training import smoothing

if TYPE_CHECKING:  # which needs Grain and TFDS
    from flowguide.data import Dataset

# Noise for a network, over that of a kernel density: it smooths a little by itself (benchmarks/completion.py).
OF_KERNEL = 0.85


def open_workdir(
    workdir: Path, config: Config, files: Mapping[str, str | bytes], force: bool, held: contextlib.ExitStack
) -> Callable[[], None]:
    """Opens the folder of a run: the main process creates it, or checks that the run in it is this one.

    A run that never reached a checkpoint does not claim its folder: another starts there afresh.

    Args:
      workdir: of the run.
      config: of the run to be trained.
      files: contents by name that lie beside the checkpoints.
      force: whether settings may have changed where the state still fits.
      held: keeps the folder for this process until it is closed.

    Returns:
      A function that raises ``OSError`` if the folder is no longer the one that was opened.

    Raises:
      UserError: if another process trains there, it holds another run, or not all processes find it.
    """

    def check_folder() -> None:
        """Checks nothing: only the main process holds the folder."""

    mark = workdir / f".start-{processes.broadcast_from_main(time.time_ns() % 2**31)}"
    if processes.is_main_process():
        prepare_folder(workdir)
        check_folder = held.enter_context(only_trainer(workdir))
        if (stored := config_there(workdir, config.network.name)) is not None:
            check_same_run(stored, config, force)
            _check_same_data(workdir, files["info.json"])
        mark.touch()
    processes.wait("workdir")
    found = processes.all_true(mark.exists())
    if processes.is_main_process():
        mark.unlink()
    if not found:
        raise UserError(f"not all processes find the run in {workdir}: give a folder that their machines share")
    if processes.is_main_process():
        prepare_folder(checkpoint.folder(workdir))
        for name, content in files.items():
            storage.replace_bytes(workdir / name, content.encode() if isinstance(content, str) else content)
    return check_folder


def config_there(workdir: Path, trusted: str = "") -> Config | None:
    """Returns the config of the run in a folder; None if none there ever reached a checkpoint.

    Args:
      workdir: the folder, which need not exist.
      trusted: as ``read_config``.

    Raises:
      UserError: for a folder or a config that cannot be read.
    """
    try:
        there = storage.exists(workdir / "config.json") and checkpoint.any_in(workdir)
    except OSError as error:
        raise UserError(f"cannot read {workdir} ({error.strerror or error}): choose another folder") from error
    return read_config(workdir, trusted=trusted) if there else None


def config_to_use(workdir: Path | None, train: Dataset, minutes: float | None) -> tuple[Config, str | None]:
    """Returns the config of the run in a folder, which resumes as it began, or one chosen for the data.

    Args:
      workdir: of the run; None for one that is new.
      train: the data to train on.
      minutes: the limit of time, or None; it sets ``steps`` for a run that resumes too.

    Returns:
      the config, and a line on what was chosen because time or data are short.

    Raises:
      UserError: as ``config_there``.
    """
    begun = None if workdir is None else config_there(workdir)
    jitter = 0.0 if begun is not None else _smoothing(train)
    config = config_for(train.info, train.size, minutes=minutes, jitter=jitter)
    if begun is None:
        return config, why(config, train.info)
    if foreign := [name for name in begun.evaluators if is_foreign(name)]:
        raise UserError(
            f"the run in {workdir} names the evaluator {foreign[0]!r:.100}, code outside of flowguide: look at that "
            "code, then resume the run with its config, --config=FILE or fit(..., config=...)"
        )
    begun.steps = config.steps
    return begun, None


def _smoothing(train: Dataset) -> float:
    """Returns the noise for small tables from which any part is to be completed from any other."""
    completes = any(isinstance(field, Known) for field in train.info.fields.values())
    if not completes or not is_table(train.info) or train.size > smoothing.LARGEST:
        return 0.0
    seen = np.asarray(train.info.examples.to_model(train.read(np.arange(train.size)).x))
    return OF_KERNEL * smoothing.bandwidth(seen)


def _check_same_data(workdir: Path, info: str | bytes) -> None:
    """Raises ``UserError`` if the run learned from data of another kind, whose description must not be overwritten."""
    try:
        stored = info_from_json(json.loads(storage.read_text(workdir / "info.json")))
    except (OSError, ValueError, RecursionError):  # lost or damaged, and written again
        return
    now = info_from_json(json.loads(info))
    if stored != now:
        what = next(name for name in DataInfo._fields if getattr(stored, name) != getattr(now, name))
        raise UserError(
            f"{workdir} holds a run on other data, whose {what} differ: train on the same data to resume it, or in "
            "another folder"
        )


def prepare_folder(folder: Path) -> None:
    """Creates a folder and checks that it can be written to.

    Raises:
      UserError: if not.
    """
    try:
        storage.make_folder(folder, parents=True)
        storage.check_writable(folder)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot write to {folder} ({reason}): choose another folder") from error
