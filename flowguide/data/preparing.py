"""Finds and prepares data sets on disk, or raises a one-line error that says what to do.

TFDS writes into a folder with a random name and renames it when it is complete. So a killed process leaves nothing that
could be mistaken for data, and if two processes prepare the same set, the faster one wins.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import os
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from flowguide import mirrors, storage
from flowguide.data import idx
from flowguide.data.builders import OURS
from flowguide.errors import DataError

INFO = "dataset_info.json"
_PATIENCE = 4.0  # seconds; TFDS itself retries an unreachable host for minutes


def prepared_builder(name: str, data_dir: str | Path | None = None) -> Any:
    """Returns the builder of a prepared data set; prepares our own sets if necessary.

    Args:
      name: a TFDS name such as ``"mnist"`` or ``"emnist/letters"``, or that of any set prepared in ``data_dir``.
      data_dir: folder of prepared sets; by default ``TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.

    Raises:
      DataError: if the set is unknown, not prepared, incomplete, or in a format without random access.
    """
    builder = find_builder(name, data_dir)
    if _is_ready(builder):
        return _on_this_machine(builder)
    if builder.name in OURS:
        return _on_this_machine(prepare(name, data_dir))
    option = f" --data_dir={data_dir}" if data_dir else ""
    raise DataError(
        f"got {name}, which is not prepared in {builder.data_dir}: run `python -m flowguide data prepare "
        f"{name}{option}` (with --manual_dir=DIR if you have its files), or give the data_dir that has it"
    )


def prepare(name: str, data_dir: str | Path | None = None, manual_dir: str | Path | None = None) -> Any:
    """Prepares a data set as array_record, unless it is prepared already, and returns its builder.

    Args:
      name: a TFDS name.
      data_dir: folder to write to; by default that of TFDS.
      manual_dir: folder with the original source files, for sets that cannot or need not be downloaded.

    Raises:
      DataError: within seconds, if the set cannot be prepared.
    """
    builder = find_builder(name, data_dir)
    if _is_ready(builder):
        return builder
    if manual_dir is not None and not Path(manual_dir).expanduser().is_dir():
        raise DataError(f"got manual_dir={manual_dir}, expected a folder: check the path")
    if storage.is_remote(builder.data_path):  # a bucket cannot rename the folder when it is complete
        with tempfile.TemporaryDirectory(prefix="flowguide-") as place:
            whole = prepare(name, place, manual_dir).data_path
            storage.copy_folder(whole, builder.data_path, last=("features.json", INFO))
        return find_builder(name, data_dir)
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
        with _no_output() if builder.name in OURS else contextlib.nullcontext():
            builder.download_and_prepare(file_format="array_record", download_config=settings)
    except DataError:
        raise
    except Exception as error:
        if not _is_ready(find_builder(name, data_dir)):  # otherwise another process was faster
            raise DataError(
                f"preparing {name} in {builder.data_dir} failed ({_line(error)}), expected a writable folder and "
                "complete source files: check both, or choose another data_dir"
            ) from error
    return find_builder(name, data_dir)


def find_builder(name: str, data_dir: str | Path | None = None) -> Any:
    """Returns the TFDS builder called ``name``, prepared or not; never accesses the network.

    Raises:
      DataError: if there is none; the message suggests similar names.
    """
    folder = None if data_dir is None else storage.path(data_dir).expanduser()
    try:
        with _no_warnings():
            return tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name.partition("/")[0], known)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `python -m flowguide data list`;"
        raise DataError(
            f"got the unknown data set {name!r}, expected a name that TFDS knows: {hint} for files of your own give "
            "--data=PATH, or `flowguide data import PATH NAME`"
        ) from error
    except Exception as error:  # TFDS raises nearly anything for a bad name or a damaged folder
        raise DataError(
            f"got the data set {name!r}, expected name, name/config or name:version ({_line(error)}): correct it or, "
            "if its folder is damaged, delete the folder and prepare the set again"
        ) from error


@contextlib.contextmanager
def reading(builder: Any) -> Generator[None]:
    """Converts any exception of its block to ``DataError``: TFDS and array_record raise nearly anything on damage."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"got damaged files in {builder.data_dir} ({_line(error)}): delete that folder, then prepare "
            f"{builder.name} again"
        ) from error


def _on_this_machine(builder: Any) -> Any:
    """Returns a builder of local files: each read of an example from a bucket would take tens of milliseconds."""
    if not storage.is_remote(builder.data_path):
        return builder
    return tfds.builder_from_directory(mirrors.local_copy(storage.path(builder.data_path), INFO))


def _is_ready(builder: Any) -> bool:
    exists = builder.data_path.exists()  # before is_prepared: in between, another process may complete the folder
    with _no_warnings():
        prepared = builder.is_prepared()
    if exists and not prepared and not storage.is_remote(builder.data_path):  # to a bucket, its files come one by one
        raise DataError(f"got the incomplete folder {builder.data_dir}: delete it, then prepare {builder.name} again")
    with reading(builder):
        formats = {format.value for format in builder.info.available_file_formats()} if prepared else set()
    if prepared and "array_record" not in formats:
        raise DataError(
            f"got {builder.name} in {builder.data_dir} as {' and '.join(sorted(formats))}, expected array_record: run "
            f"`python -m flowguide data prepare {builder.name} --data_dir=ANOTHER`"
        )
    return prepared


def _check_downloads(builder: Any, manual_dir: str | Path | None) -> None:
    """Raises ``DataError`` if a download is needed and its host does not answer, or only the user can download it."""
    folder = Path(manual_dir).expanduser() if manual_dir else None
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and folder is None:
        hint = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        raise DataError(f"{builder.name} has to be downloaded by hand: pass --manual_dir=DIR ({hint})")
    needed = {url: info.filename for url, info in (builder.url_infos or {}).items()}
    if folder and (builder.name in idx.FAMILY or builder.MANUAL_DOWNLOAD_INSTRUCTIONS):
        needed = {}  # files missing there are reported, not downloaded
    elif folder:
        needed = {url: file for url, file in needed.items() if not (file and (folder / file).exists())}
    downloads = Path(builder.data_dir_root) / "downloads" / builder.name
    if not needed or any(downloads.rglob("*.INFO")):  # TFDS writes one for each file it has downloaded
        return
    url = next(iter(needed))
    if reason := _why_unreachable(url):
        files = ", ".join(sorted(filter(None, needed.values())))
        raise DataError(
            f"{builder.name} cannot be downloaded, {urllib.parse.urlsplit(url).hostname} does not answer ({reason}): "
            f"pass --manual_dir=DIR with {files}, or copy a prepared {builder.data_dir} from another machine"
        )


def _why_unreachable(url: str) -> str | None:
    """Returns the reason, or None if ``url`` answers. In a thread: a DNS lookup may outlast any socket timeout."""
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
def _no_warnings() -> Generator[None]:
    """Hides warnings: TFDS logs one for every folder that does not exist yet."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextlib.contextmanager
def _no_output() -> Generator[None]:
    """Hides all output: our own sets take seconds and need no progress bars."""
    with (
        open(os.devnull, "w") as null,
        contextlib.redirect_stdout(null),
        contextlib.redirect_stderr(null),
        _no_warnings(),
    ):
        yield


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
