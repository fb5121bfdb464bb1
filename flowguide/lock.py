"""One trainer a folder: two at once would mix their logs and delete each other's checkpoints.

The kernel keeps the lock (flock), so that it ends with its process, however that ends: after kill −9 the same command
finds the folder free. Some network file systems keep such locks within a host. So the file also names its owner, who
renews its time every few seconds: an owner on another host that does not is dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from flowguide.errors import UserError

NAME = ".trainer"
BEAT, SILENCE = 10.0, 90.0  # seconds; network file systems may show what they knew a minute ago


@contextlib.contextmanager
def only_trainer(workdir: Path) -> Iterator[Callable[[], None]]:
    """Holds the folder of a run, which must exist, for this process alone.

    It gives a function that raises ``OSError`` if the folder that is now at this path is not the one that is held.

    Raises:
      UserError: if another process holds it, which is named with its host; or if the folder cannot be written to.
    """
    file, me = workdir / NAME, f"process {os.getpid()} on {socket.gethostname()}"
    with contextlib.ExitStack() as closing:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            held = closing.enter_context(os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace"))
            _claim(held, file)
            _write(held, me)
        except OSError as error:
            raise UserError(f"cannot write to {file} ({error.strerror}): choose another folder") from error
        released = threading.Event()
        beat = threading.Thread(target=_beat, args=(held, released), daemon=True)
        beat.start()

        def check() -> None:
            if not file.exists() or file.read_text() != me:
                raise OSError(f"the folder was deleted or replaced while {me} trained in it")

        try:
            yield check
        finally:
            released.set()
            beat.join()
            with contextlib.suppress(OSError):  # the folder may be gone; then nobody is kept out of it
                _write(held, "")


def _claim(held: IO[str], file: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        host = socket.gethostname()  # the last owner, if it was of this host, would still have the lock
    except BlockingIOError:
        raise _taken(file, held.read()) from None
    except OSError:  # a file system without locks
        host = ""
    owner = held.read()
    if owner and owner.rpartition(" on ")[2] != host and _shows_life(file, owner):
        raise _taken(file, owner)


def _taken(file: Path, owner: str) -> UserError:
    return UserError(
        f"{owner or 'another process'} trains in {file.parent}: wait until it ends, or give another --workdir"
    )


def _shows_life(file: Path, owner: str) -> bool:
    """Whether the owner renews the file; it has until ``SILENCE`` after the last time, by the file system's clock."""
    last, told = file.stat().st_mtime, False
    while (left := last + SILENCE - _now(file.parent)) > 0:
        if not told:
            print(f"{owner} has trained in {file.parent}: up to {left:.0f} s to see whether it lives", file=sys.stderr)
            told = True
        time.sleep(min(left, 1.0))
        if file.stat().st_mtime != last:
            return True
    return False


def _now(folder: Path) -> float:
    with tempfile.TemporaryFile(dir=folder) as new:
        return os.fstat(new.fileno()).st_mtime


def _beat(held: IO[str], released: threading.Event) -> None:
    while not released.wait(BEAT):
        with contextlib.suppress(OSError):  # a moment without the file system is no reason to end a run
            os.utime(held.fileno())


def _write(held: IO[str], text: str) -> None:
    held.seek(0)
    held.truncate()
    held.write(text)
    held.flush()
    os.fsync(held.fileno())
