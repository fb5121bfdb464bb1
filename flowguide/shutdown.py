"""Ends a command: signals save first, errors are one line, and the processes of a run end together."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator
from pathlib import Path

import jax
from absl import flags
from jax.experimental import multihost_utils

from flowguide import processes
from flowguide.errors import UserError

LONGEST = 2000  # characters of a printed error, which may quote input of any length


@contextlib.contextmanager
def interrupted_by_signals() -> Generator[Callable[[int], bool]]:
    """Yields a function of the step that returns whether to stop after it, because of Ctrl-C or a termination signal.

    Further signals change nothing: schedulers and impatient people send several while the state is being saved.
    Ctrl-\\ (SIGQUIT) ends the process at once. A signal to one of several processes stops all of them after the same
    step; each process must call the function at every step.
    """
    came = []

    def note(number: int, frame: object) -> None:
        if not came:
            with contextlib.suppress(OSError):  # not print, which the signal may have interrupted
                os.write(2, b"\nstopping: this step is finished and saved; Ctrl-\\ ends at once, without saving\n")
        came.append(number)

    def pass_on(number: int, frame: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # JAX handles it and informs the other processes

    distributed = processes.is_distributed()
    handlers = {signal.SIGINT: pass_on} if distributed else {signal.SIGINT: note, signal.SIGTERM: note}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield multihost_utils.reached_preemption_sync_point if distributed else lambda step: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def failing_at_once() -> Generator[None]:
    """Ends the process if its block raises and there are others: a clean shutdown would wait for them."""
    try:
        yield
    except Exception as error:
        if _has_peers():
            end(error)
        raise


def end(error: Exception) -> None:
    """Ends the process over the exception being handled: one line and exit code 2 if the user can mend it.

    Raises:
      ``error`` itself, if it is a bug and there are no other processes.
    """
    mendable, joined, program = isinstance(error, UserError | flags.Error), _has_peers(), Path(sys.argv[0]).name
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:  # the file is a folder, the disk is full, ...
        file = error.filename2 or error.filename  # the destination, if a replacement failed
        mendable, text = True, f"{file} cannot be used ({error.strerror}): move it away, or choose another place"
    if mendable:
        line = " ".join(text.split())
        print(f"{program}: error: {line[:LONGEST]}{' ...' * (len(line) > LONGEST)}", file=sys.stderr)
    elif joined:
        traceback.print_exc()
        print(
            f"{program}: error: process {jax.process_index()} of {jax.process_count()} ends, and with it the others; "
            "if the error above is about a connection or a collective, another one ended first. Start all of them "
            "again: a run resumes from its last checkpoint",
            file=sys.stderr,
        )
    else:
        raise error
    leave(2 if mendable else 1)


def leave(code: int) -> None:
    """Ends the process; at once if there are others, because a clean shutdown would wait for them."""
    if not _has_peers():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    if processes.is_main_process():
        time.sleep(2)  # the others end with this process; gives them time to print their errors
    os._exit(code)


def _has_peers() -> bool:
    return jax.distributed.is_initialized() and processes.is_distributed()
