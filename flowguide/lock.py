"""Locks a run's folder for one trainer: two at once would mix their logs and delete each other's checkpoints.

The kernel holds the lock (flock) and releases it however the process ends: after kill −9 the same command finds the
folder free. Some network file systems keep flock local to a host. So the lock file also names its owner, who touches
it every few seconds: an owner on another host that stops doing so is dead.

A bucket has neither locks nor a clock to compare with. There the owner rewrites the file every few seconds with a new
count, and a process that finds the file waits to see whether its content changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO

from flowguide import storage
from flowguide.errors import UserError

NAME = ".trainer"
# Seconds between touches; and without one until an owner is dead. Network file systems may lag by a minute.
BEAT, SILENCE = 10.0, 90.0
# Seconds until two owners that wrote to a bucket at the same time both see whose write was last.
SETTLE = 2.0


@contextlib.contextmanager
def only_trainer(workdir: Path) -> Generator[Callable[[], None]]:
    """Locks the folder of a run, which must exist, for this process.

    Yields a function that raises ``OSError`` if the folder at this path is no longer the locked one.

    Raises:
      UserError: if another process holds the lock (the message names it and its host), or the folder is not writable.
    """
    file, me = workdir / NAME, f"process {os.getpid()} on {socket.gethostname()}"
    if storage.is_remote(workdir):
        with _only_trainer_in_bucket(file, me) as check:
            yield check
        return
    with contextlib.ExitStack() as closing:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            held = closing.enter_context(os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace"))
            _acquire(held, file)
            _write(held, me)
        except OSError as error:
            raise UserError(f"cannot write to {file} ({error.strerror}): choose another folder") from error
        released = threading.Event()
        beat = threading.Thread(target=_touch, args=(held, released), daemon=True)
        beat.start()

        def check() -> None:
            if not file.exists() or file.read_text() != me:
                raise OSError(f"the folder was deleted or replaced while {me} trained in it")

        try:
            yield check
        finally:
            released.set()
            beat.join()
            with contextlib.suppress(OSError):  # if the folder is gone, there is nothing left to unlock
                _write(held, "")


def _acquire(held: IO[str], file: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        host = socket.gethostname()  # a living owner on this host would still hold the lock
    except BlockingIOError:
        raise _locked_error(file, held.read()) from None
    except OSError:  # the file system has no locks
        host = ""
    owner = held.read()
    if owner and owner.rpartition(" on ")[2] != host and _is_alive(file, owner):
        raise _locked_error(file, owner)


def _locked_error(file: Path, owner: str) -> UserError:
    return UserError(
        f"{owner or 'another process'} trains in {file.parent}: wait until it ends, or give another --workdir"
    )


def _is_alive(file: Path, owner: str) -> bool:
    """Waits up to ``SILENCE`` after the last touch, by the file system's clock; returns whether there is a new one."""
    last, warned = file.stat().st_mtime, False
    while (left := last + SILENCE - _now(file.parent)) > 0:
        if not warned:
            print(
                f"{owner} has trained in {file.parent}: waiting up to {left:.0f} s to see if it lives", file=sys.stderr
            )
            warned = True
        time.sleep(min(left, 1.0))
        if file.stat().st_mtime != last:
            return True
    return False


def _now(folder: Path) -> float:
    with tempfile.TemporaryFile(dir=folder) as new:
        return os.fstat(new.fileno()).st_mtime


def _touch(held: IO[str], released: threading.Event) -> None:
    while not released.wait(BEAT):
        with contextlib.suppress(OSError):  # a short outage of the file system must not end the run
            os.utime(held.fileno())


def _write(held: IO[str], text: str) -> None:
    held.seek(0)
    held.truncate()
    held.write(text)
    held.flush()
    os.fsync(held.fileno())


@contextlib.contextmanager
def _only_trainer_in_bucket(file: Path, me: str) -> Generator[Callable[[], None]]:
    """Implements ``only_trainer`` in a bucket, with the owner in line 1 of the object, a unique id and a count in 2."""
    mine = f"{me}\n{uuid.uuid4().hex}"  # containers may share process ids and host names

    def is_mine() -> bool:
        return _content(file).startswith(mine)

    try:
        if (found := _content(file)) and (living := _changed(file, found)):
            raise _locked_error(file, living.partition("\n")[0])
        storage.write_text(file, f"{mine} 0")
        time.sleep(SETTLE)
        if not is_mine():
            raise _locked_error(file, _content(file).partition("\n")[0])
    except OSError as error:
        raise UserError(f"cannot write to {file} ({error.strerror}): choose another folder") from error
    released = threading.Event()

    def beat() -> None:
        for count in itertools.count(1):
            if released.wait(BEAT):
                return
            with contextlib.suppress(OSError):  # a short outage of the bucket must not end the run
                if not is_mine():
                    return
                storage.write_text(file, f"{mine} {count}")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()

    def check() -> None:
        if not is_mine():
            raise OSError(f"the folder was deleted or replaced while {me} trained in it")

    try:
        yield check
    finally:
        released.set()
        thread.join()
        with contextlib.suppress(OSError):
            if is_mine():
                storage.write_text(file, "")


def _content(file: Path) -> str:
    """Returns the content of an object; empty if there is none."""
    try:
        return storage.read_text(file)
    except FileNotFoundError:
        return ""


def _changed(file: Path, content: str) -> str:
    """Waits up to ``SILENCE`` for an object to change; returns its new content, or an empty string if it does not."""
    owner, ends = content.partition("\n")[0], time.monotonic() + SILENCE
    print(f"{owner} has trained in {file.parent}: waiting up to {SILENCE:.0f} s to see if it lives", file=sys.stderr)
    while (left := ends - time.monotonic()) > 0:
        time.sleep(min(left, 1.0))
        if (now := _content(file)) != content:
            return now
    return ""
