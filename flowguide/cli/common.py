"""Flags and checks that commands share."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from flowguide import processes, storage
from flowguide.errors import UserError


def define_column_flags(values: flags.FlagValues) -> None:
    """Defines which columns of a file or folder are what."""
    flags.DEFINE_string(
        "example",
        None,
        "columns of the data that are the examples, as a,b,c; texts and booleans among them are classes",
        flag_values=values,
    )
    flags.DEFINE_string(
        "fields", None, "columns of the data that are the condition, as a,b,c; or none", flag_values=values
    )
    flags.DEFINE_integer(
        "image_size", None, "crop and resize the images of the data to this side", lower_bound=1, flag_values=values
    )


def names_in(text: str | None) -> tuple[str, ...]:
    """Returns the names in a text such as "a,b,c"."""
    return tuple(filter(None, map(str.strip, (text or "").split(","))))


def columns_in(flag: str, text: str | None) -> tuple[str, ...]:
    """Returns the columns that a flag names; none if it is not given.

    Raises:
      UserError: for an empty text, of a variable that is not set: it would stand for all columns.
    """
    if text is not None and not names_in(text):
        raise UserError(f"--{flag} takes columns, as a,b; got {text!r}: name some, or leave --{flag} out")
    return names_in(text)


def define_trust_flag(values: flags.FlagValues) -> None:
    """Defines whether a run may import code."""
    flags.DEFINE_bool(
        "trust_code",
        False,
        "allow a run to import a network or text encoder from outside flowguide",
        flag_values=values,
    )


def define_process_flags(values: flags.FlagValues) -> None:
    """Defines how a process finds the others, if there are several."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, if several processes run this command as one; not needed on TPU pods, with SLURM, "
        'Kubernetes or Open MPI, which are detected; "none" to run alone there',
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes", None, "number of processes, for --coordinator", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "process_id", None, "number of this process, from 0, for --coordinator", lower_bound=0, flag_values=values
    )


def join_processes(values: flags.FlagValues) -> None:
    """Makes this process one of several, if it is."""
    processes.start(values.coordinator, values.num_processes, values.process_id)


def keep_compiled(place: Path | None, small_ones: bool = False) -> None:
    """Keeps compiled programs in a folder for the next command, unless JAX's environment variables say where.

    Args:
      place: the folder; None to keep none.
      small_ones: keep also programs that compile in less than a second.
    """
    if place is not None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(place))
    if small_ones and "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def keep_compiled_in_run(workdir: Path) -> None:
    """Keeps compiled programs, small ones too, in the folder of a run, unless it belongs to others."""
    ours = storage.exists(workdir / "config.json") and storage.may_write(workdir)
    keep_compiled(workdir / "compiled" if ours else None, small_ones=True)


def numbers(name: str, texts: Sequence[str], count: int | None = None, infinite: bool = False) -> list[float]:
    """Parses the numbers of a flag.

    Raises:
      UserError: for anything else, or another count than ``count``.
    """
    try:
        found = [float(text) for text in texts]
    except ValueError:
        found = []
    if not found or count not in (None, len(found)):
        expected = f"{count} numbers" if count else "numbers"
        raise UserError(f"--{name} takes {expected} separated by commas; got {','.join(texts)!r}")
    if any(math.isnan(n) or (math.isinf(n) and not infinite) for n in found):
        raise UserError(f"--{name} takes finite numbers; got {','.join(texts)!r}")
    return found
