"""Finding and preparing data sets on disk: at once, or with one line that says what to do.

TFDS writes into a folder of a random name and renames it when it is whole, so a killed process leaves nothing
that could be taken for data, and of two processes that prepare the same set the faster one wins.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import os
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from flowguide.data import idx
from flowguide.data.builders import OURS
from flowguide.data.errors import DataError

_PATIENCE = 4.0  # seconds; TFDS itself tries an unreachable host for minutes


def prepared_builder(name: str, data_dir: str | Path | None = None) -> Any:
    """The builder of a data set that can be read now. Our own sets are prepared where they are not yet.

    Args:
      name: a TFDS name, ``"mnist"`` or ``"emnist/letters"``; also that of a set which lies prepared in ``data_dir``.
      data_dir: where prepared sets are; without it ``TFDS_DATA_DIR``, or ``~/tensorflow_datasets``.

    Raises:
      DataError: where the set is unknown, not prepared, incomplete, or in a format without random access.
    """
    builder = find_builder(name, data_dir)
    if _is_ready(builder):
        return builder
    if builder.name in OURS:
        return prepare(name, data_dir)
    option = f" --data_dir={data_dir}" if data_dir else ""
    raise DataError(
        f"got {name}, which is not prepared in {builder.data_dir}: run `python -m flowguide.data prepare "
        f"{name}{option}` (with --manual_dir=DIR if you have its files), or give the data_dir where it is"
    )


def prepare(name: str, data_dir: str | Path | None = None, manual_dir: str | Path | None = None) -> Any:
    """Prepares a data set, in the array_record format, unless it is prepared already; returns its builder.

    Args:
      name: a TFDS name.
      data_dir: where to write it; without it TFDS's own default.
      manual_dir: a folder with the source's own files, for sets that cannot be, or need not be, downloaded.

    Raises:
      DataError: where that is impossible; found out within seconds.
    """
    builder = find_builder(name, data_dir)
    if _is_ready(builder):
        return builder
    if manual_dir is not None and not Path(manual_dir).expanduser().is_dir():
        raise DataError(f"got manual_dir={manual_dir}, expected a folder: check the path")
    _check_downloads(builder, manual_dir)
    if builder.name in idx.FAMILY:
        idx.read_from_idx(builder, manual_dir)
    elif type(builder).__module__.startswith("tensorflow_datasets.") and not importlib.util.find_spec("tensorflow"):
        raise DataError(f'preparing {name} needs TensorFlow (reading does not): pip install "flowguide[data]"')
    settings = tfds.download.DownloadConfig(
        manual_dir=Path(manual_dir).expanduser() if manual_dir else None, try_download_gcs=False
    )
    logging.info("preparing %s in %s", name, builder.data_dir)
    try:
        with _silence() if builder.name in OURS else contextlib.nullcontext():
            builder.download_and_prepare(file_format="array_record", download_config=settings)
    except DataError:
        raise
    except Exception as error:
        if not _is_ready(find_builder(name, data_dir)):  # otherwise another process was faster
            raise DataError(
                f"preparing {name} in {builder.data_dir} failed ({_line(error)}): expected a folder to write to and "
                "whole source files: check both, or choose another data_dir"
            ) from error
    return find_builder(name, data_dir)


def find_builder(name: str, data_dir: str | Path | None = None) -> Any:
    """The TFDS builder called ``name``, prepared or not; never asks the network.

    Raises:
      DataError: where there is none; the message has the names nearest to it.
    """
    try:
        with _quiet():
            return tfds.builder(name, data_dir=None if data_dir is None else Path(data_dir).expanduser())
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name.partition("/")[0], known)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `python -m flowguide.data list`"
        raise DataError(f"got the unknown data set {name!r}, expected a name that TFDS knows: {hint}") from error
    except Exception as error:  # TFDS raises nearly anything for a bad name, and for a damaged folder
        raise DataError(
            f"got the data set {name!r}, expected name, name/config or name:version ({_line(error)}): correct it or, "
            "where its folder is damaged, delete that and prepare it again"
        ) from error


@contextlib.contextmanager
def reading(builder: Any) -> Iterator[None]:
    """Raises ``DataError`` for whatever fails inside: TFDS and array_record raise nearly anything for damaged files."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"got damaged files in {builder.data_dir} ({_line(error)}): delete that folder, then prepare "
            f"{builder.name} again"
        ) from error


def _is_ready(builder: Any) -> bool:
    exists = builder.data_path.exists()  # asked first: in between, another process may put the whole folder there
    with _quiet():
        prepared = builder.is_prepared()
    if exists and not prepared:
        raise DataError(f"got the incomplete folder {builder.data_dir}: delete it, then prepare {builder.name} again")
    with reading(builder):
        formats = {format.value for format in builder.info.available_file_formats()} if prepared else set()
    if prepared and "array_record" not in formats:
        raise DataError(
            f"got {builder.name} in {builder.data_dir} as {' and '.join(sorted(formats))}, expected array_record: run "
            f"`python -m flowguide.data prepare {builder.name} --data_dir=ANOTHER`"
        )
    return prepared


def _check_downloads(builder: Any, manual_dir: str | Path | None) -> None:
    """Raises where a file must be fetched and its host does not answer, or the user alone can fetch it."""
    folder = Path(manual_dir).expanduser() if manual_dir else None
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and folder is None:
        hint = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        raise DataError(f"{builder.name} has to be downloaded by hand: pass --manual_dir=DIR ({hint})")
    needed = {url: info.filename for url, info in (builder.url_infos or {}).items()}
    if folder and (builder.name in idx.FAMILY or builder.MANUAL_DOWNLOAD_INSTRUCTIONS):
        needed = {}  # what is missing there is reported, not fetched
    elif folder:
        needed = {url: file for url, file in needed.items() if not (file and (folder / file).exists())}
    downloads = Path(builder.data_dir_root) / "downloads" / builder.name
    if not needed or any(downloads.rglob("*.INFO")):  # TFDS notes each file that it has fetched before
        return
    url = next(iter(needed))
    if reason := _why_unreachable(url):
        files = ", ".join(sorted(filter(None, needed.values())))
        raise DataError(
            f"{builder.name} cannot be downloaded, {urllib.parse.urlsplit(url).hostname} does not answer ({reason}): "
            f"pass --manual_dir=DIR with {files}, or copy a prepared {builder.data_dir} from another machine"
        )


def _why_unreachable(url: str) -> str | None:
    """None if ``url`` answers. In a thread, because looking up a name may outlast any timeout of the socket."""
    reasons: list[str | None] = ["timed out"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=_PATIENCE):
                reasons[0] = None
        except Exception as error:
            reasons[0] = str(error).strip("<>").removeprefix("urlopen error ")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return reasons[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS warns of every folder that is not there yet."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No progress bars for what takes seconds."""
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null), _quiet():
        yield


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
