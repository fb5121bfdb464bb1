"""The folder of a run: one trainer opens it, and all its processes must find it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from flowguide import checkpoint, processes, storage
from flowguide.config import Config, check_same_run, config_for, read_config, why
from flowguide.errors import UserError
from flowguide.lock import only_trainer
from flowguide.schema import DataInfo, info_from_json


def open_workdir(
    workdir: Path, config: Config, files: Mapping[str, str], force: bool, held: contextlib.ExitStack
) -> Callable[[], None]:
    """Opens the folder of a run: the main process creates it, or checks that the run in it is this one.

    A run that never reached a checkpoint does not claim its folder: another starts there afresh.

    Args:
      workdir: of the run.
      config: of the run to be trained.
      files: texts by name that lie beside the checkpoints.
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
        for name, text in files.items():
            storage.replace_text(workdir / name, text)
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


def config_to_use(workdir: Path | None, info: DataInfo, size: int, minutes: float | None) -> tuple[Config, str | None]:
    """Returns the config of the run in a folder, which resumes as it began, or one chosen for the data.

    Args:
      workdir: of the run; None for one that is new.
      info: of the data.
      size: number of examples to train on.
      minutes: the limit of time, or None; it sets ``steps`` for a run that resumes too.

    Returns:
      the config, and a line on its network if that was chosen because time is short.

    Raises:
      UserError: as ``config_there``.
    """
    config = config_for(info, size, minutes=minutes)
    begun = None if workdir is None else config_there(workdir)
    if begun is None:
        return config, why(config, info)
    begun.steps = config.steps
    return begun, None


def _check_same_data(workdir: Path, info: str) -> None:
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
