"""Local folders that mirror a bucket, for libraries that cannot read or write one themselves."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Generator
from pathlib import Path

from flowguide import storage

EVERY = 60.0  # seconds between copies of growing files to a bucket


@contextlib.contextmanager
def staged(folder: Path, last: tuple[str, ...] = ()) -> Generator[Path]:
    """Yields a local folder for libraries that write to no bucket: ``folder`` itself, or one that is copied there.

    It is copied when the block has ended, and not if it fails; ``last`` as for ``copy_folder``.
    """
    if not storage.is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="flowguide-") as place:
        yield Path(place)
        storage.copy_folder(Path(place), folder, last)


@contextlib.contextmanager
def growing(folder: Path, resumed: str) -> Generator[Path]:
    """Yields a local folder for files that are appended to: ``folder`` itself, or one that a thread copies there.

    It is copied every minute and when the block ends, also by a failure. Of a process that is killed, the last minute
    is lost. A bucket that cannot be written to is warned of, and tried again a minute later.

    Args:
      folder: of the files.
      resumed: name of a file that is fetched first, if it is there: an object can be replaced but not appended to.

    Raises:
      OSError: if that file cannot be fetched.
    """
    if not storage.is_remote(folder):
        yield folder
        return
    place = Path(tempfile.mkdtemp(prefix="flowguide-"))
    with storage.as_os_errors(folder), contextlib.suppress(FileNotFoundError):
        (place / resumed).write_bytes((folder / resumed).read_bytes())
    sizes: dict[Path, int] = {}
    ended = threading.Event()

    def copy_grown() -> bool:
        """Copies the files that have grown; returns whether all are in the bucket now."""
        try:
            for file in storage.files_in(place):
                content = file.read_bytes()
                if sizes.get(file) != len(content):
                    storage.write_bytes(folder / file.relative_to(place), content)
                    sizes[file] = len(content)
        except OSError as error:
            print(f"warning: {folder} cannot be written to ({error.strerror}): logs are in {place}", file=sys.stderr)
            return False
        return True

    def copy_for_ever() -> None:
        while not ended.wait(EVERY):
            copy_grown()

    thread = threading.Thread(target=copy_for_ever, daemon=True)
    thread.start()
    try:
        yield place
    finally:
        ended.set()
        thread.join()
        if copy_grown():
            shutil.rmtree(place, ignore_errors=True)


@functools.cache
def local_copy(folder: Path, stamp: str) -> Path:
    """Returns a folder itself or, of one in a bucket, a copy on this machine, which later runs find again.

    Copies are in ``$XDG_CACHE_HOME/flowguide``, by default ``~/.cache/flowguide``, or in a temporary folder if that
    cannot be written to.

    Args:
      folder: of a bucket; its files never change once they are all there.
      stamp: name of a file in it. A copy with another content of it is not used.

    Raises:
      OSError: if it cannot be copied.
    """
    if not storage.is_remote(folder):
        return folder
    with storage.as_os_errors(folder):
        known = (folder / stamp).read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowguide"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        storage.check_writable(cache)
    except OSError:
        cache = Path(tempfile.mkdtemp(prefix="flowguide-"))
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
    scheme, _, place = os.fspath(folder).partition("://")
    copy = cache / scheme / hashlib.sha256(known).hexdigest()[:16] / place
    if not copy.is_dir():
        copy.parent.mkdir(parents=True, exist_ok=True)
        print(f"copying {folder} to {copy}", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=copy.parent) as new:
            whole = Path(new) / "whole"
            storage.copy_folder(folder, whole)
            try:
                whole.replace(copy)
            except OSError:
                if not copy.is_dir():  # otherwise another process was faster
                    raise
    return copy
