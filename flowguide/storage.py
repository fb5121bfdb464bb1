"""Files in folders and in buckets (``gs://…``, ``s3://…``). Only this module and ``mirrors`` know the difference.

A bucket holds objects. It has no folders that are made, no append, no rename and no lock, and a write replaces an
object whole. Paths in buckets are etils' ``epath``, which Orbax, TFDS and JAX's compilation cache take as well; they
have the interface of ``pathlib.Path``. etils is imported for the first address, so that local runs do without it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any

from flowguide.errors import UserError, one_line

LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}  # scheme -> fsspec's file system for it

_COLLAPSED = re.compile(rf"({'|'.join(LIBRARIES)}):/(?=[^/])")


def path(text: str | os.PathLike[str]) -> Path:
    """Returns the path of a folder or file, or of an address: ``gs://bucket/name`` or ``s3://bucket/name``.

    Args:
      text: also a ``pathlib.Path`` made from an address, of which pathlib drops one slash. A leading ~ is the home
        folder.

    Raises:
      UserError: for an empty text, an address of another kind, or if the library that reaches it is not installed.
    """
    text = _COLLAPSED.sub(r"\1://", os.fspath(text), count=1) if _COLLAPSED.match(os.fspath(text)) else os.fspath(text)
    scheme, is_address, place = text.partition("://")
    if not text.strip():  # of a variable that is not set; it would be the current folder
        raise UserError(f"expected a file or folder, and got the name {text!r}: give one, . is the current folder")
    if not is_address:
        return Path(os.path.expanduser(text))
    if scheme not in LIBRARIES or not place.strip("/"):
        kinds = " or ".join(f"{kind}://BUCKET/NAME" for kind in LIBRARIES)
        raise UserError(f"expected a folder, {kinds}; got the address {text}")
    _make_reachable(scheme, text)
    from etils import epath

    found: Any = epath.Path(text)
    return found


def is_remote(path: os.PathLike[str]) -> bool:
    """Returns whether a path lies in a bucket."""
    return "://" in os.fspath(path)


def absolute(path: Path) -> Path:
    """Returns the absolute path; an address is one."""
    return path if is_remote(path) else path.absolute()


def make_folder(folder: Path, *, parents: bool = False) -> None:
    """Makes a folder unless it is there. A bucket needs none; s3fs would even make a bucket of a mistyped name."""
    if not is_remote(folder):
        folder.mkdir(parents=parents, exist_ok=True)


def check_writable(folder: Path) -> None:
    """Writes a nameless file, or an object that is deleted again.

    Raises:
      OSError: if that fails.
    """
    if not is_remote(folder):
        with tempfile.TemporaryFile(dir=folder):
            return
    probe = folder / f".probe-{uuid.uuid4().hex}"
    with as_os_errors(probe):
        probe.write_text("")
        probe.unlink()


def may_write(folder: Path) -> bool:
    """Returns whether this process may write to a folder."""
    if not is_remote(folder):
        return os.access(folder, os.W_OK)
    try:
        check_writable(folder)
    except OSError:
        return False
    return True


def exists(path: Path) -> bool:
    """Returns whether a file or folder is there.

    Raises:
      OSError: if a bucket cannot be asked.
    """
    with as_os_errors(path):
        return path.exists()


def read_text(file: Path) -> str:
    """Returns the text of a file.

    Raises:
      OSError: if it cannot be read.
    """
    with as_os_errors(file):
        return file.read_text()


def write_text(file: Path, text: str) -> None:
    """Writes a file.

    Raises:
      OSError: if that fails.
    """
    with as_os_errors(file):
        file.write_text(text)


def write_bytes(file: Path, content: bytes) -> None:
    """Writes a file; if that fails, a new one is not left behind in part.

    Raises:
      OSError: if it fails.
    """
    if is_remote(file):
        with as_os_errors(file):
            file.write_bytes(content)
        return
    is_new = not file.exists()
    try:
        file.write_bytes(content)
    except OSError:
        if is_new:
            with contextlib.suppress(OSError):
                file.unlink()
        raise


def replace_text(file: Path, text: str) -> None:
    """Writes a file such that, whatever happens, it holds either the old text or the new."""
    replace_bytes(file, text.encode())


def replace_bytes(file: Path, content: bytes) -> None:
    """Writes a file such that, whatever happens, it holds either the old content or the new.

    Raises:
      OSError: if it fails.
    """
    if is_remote(file):
        write_bytes(file, content)
        return
    beside = file.with_name(f".{file.name}.new")
    try:
        beside.write_bytes(content)
        beside.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


@contextlib.contextmanager
def writing(file: Path) -> Generator[IO[bytes]]:
    """Yields a stream into a file. An object is written when the block has ended, and not if it fails.

    Raises:
      OSError: if it cannot be written.
    """
    if not is_remote(file):
        with file.open("wb") as stream:
            yield stream
        return
    with tempfile.TemporaryFile() as stream:
        yield stream
        stream.seek(0)
        with as_os_errors(file), file.open("wb") as target:
            shutil.copyfileobj(stream, target)


def files_in(folder: Path) -> Iterator[Path]:
    """Yields all files below a folder."""
    for found in folder.iterdir():
        if found.is_dir():
            if found != folder:  # some tools mark a folder of a bucket by an empty object of its name
                yield from files_in(found)
        else:
            yield found


def copy_folder(source: Path, target: Path, last: tuple[str, ...] = ()) -> None:
    """Copies all files of a folder; either side may be in a bucket.

    Args:
      source: a folder.
      target: a folder, which need not be there.
      last: names of files that are copied after the others, in this order: they tell readers that all is there.

    Raises:
      OSError: if that fails.
    """
    with as_os_errors(target if is_remote(target) else source):
        for file in sorted(files_in(source), key=lambda file: last.index(file.name) if file.name in last else -1):
            copy = target / file.relative_to(source)
            make_folder(copy.parent, parents=True)
            with file.open("rb") as content, copy.open("wb") as stream:
                shutil.copyfileobj(content, stream, 2**20)


def move(source: Path, target: Path) -> None:
    """Moves a folder to a name that is free. In a bucket it is copied, then deleted.

    Raises:
      OSError: if that fails.
    """
    if not is_remote(source):
        shutil.move(source, target)
        return
    copy_folder(source, target)
    remove(source)


def remove(folder: Path) -> None:
    """Deletes a folder and all in it.

    Raises:
      OSError: if that fails.
    """
    if not is_remote(folder):
        shutil.rmtree(folder)
        return
    of_bucket: Any = folder
    with as_os_errors(folder):
        of_bucket.rmtree()


@contextlib.contextmanager
def as_os_errors(path: Path) -> Generator[None]:
    """Raises ``OSError`` for whatever fails in a bucket: each library has errors of its own."""
    try:
        yield
    except Exception as error:
        if not is_remote(path):
            raise
        number = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO
        text = f"{type(error).__name__}: {one_line(error)}"
        raise OSError(number, text, os.fspath(path)) from error  # with ENOENT, Python makes it a FileNotFoundError


def _make_reachable(scheme: str, address: str) -> None:
    """Checks that etils can reach an address.

    Raises:
      UserError: if a library is missing.
    """
    library = LIBRARIES[scheme]
    through_tensorflow = importlib.util.find_spec("tensorflow") is not None
    if through_tensorflow and os.environ.get("EPATH_USE_TF", "").lower() not in ("false", "no", "f", "0"):
        if scheme == "s3":
            raise UserError(
                f"{address} cannot be reached through TensorFlow, which etils prefers where it is installed: "
                f"pip install {library}, and set EPATH_USE_TF=0"
            )
        return
    try:
        import fsspec
        from etils import epath  # noqa: F401
        from fsspec.config import conf

        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        or_else = ", or tensorflow" if scheme == "gs" else ""
        raise UserError(f"{address} cannot be reached ({error}): pip install {library}{or_else}") from error
    # Other processes write to the bucket as well: what was listed a moment ago may be out of date.
    conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
