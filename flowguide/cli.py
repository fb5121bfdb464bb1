"""What the two scripts share: one line for what the user can mend, a traceback for what we must."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType

import jax
from absl import flags, logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from flowguide import processes
from flowguide.errors import UserError

COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0, where several processes run this command as one; not needed on TPU pods, with SLURM, "
    'Kubernetes or Open MPI, which are detected; "none" to run alone there',
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "how many there are, for --coordinator", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "which one this is, from 0, for --coordinator", lower_bound=0)


MOST = 2000  # characters of an error: it may quote what was got, of any length


def join_processes() -> None:
    """Makes this process one of several, if it is. A script that does so adopts the key flags of this module."""
    processes.start(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)


def run_script(main: Callable[[], None], epilogue: str = "") -> None:
    """Parses the flags and runs ``main``; a ``UserError``, a bad flag or a file that fails is one line and exit code 2.

    ``--help`` prints the docstring of the script, its flags and ``epilogue``. Where several processes run the script,
    one that fails ends at once, and with it the others. Ctrl-C becomes one line and exit code 130.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the script may have had one of its own for its imports
    logging.set_verbosity(logging.ERROR)  # the libraries warn of what is meant to be
    sys.unraisablehook = _show_unraisable
    try:
        _parse_flags(sys.argv, epilogue)
        main()
    except Exception as error:
        _end(error)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # impatience shall not make a traceback of it
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        _exit(130)


def _show_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Shows an exception that cannot be raised, but for those of TensorStore's threads.

    Where one part of a checkpoint cannot be read, Orbax says so and closes its event loop, which the threads that read
    the other parts then miss, each in a traceback.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
    """Of several processes, one that fails within ends there: what it would close, others would have to close too."""
    try:
        yield
    except Exception as error:
        if _several():
            _end(error)
        raise


def _several() -> bool:
    return jax.distributed.is_initialized() and processes.is_distributed()


def _end(error: Exception) -> None:
    """Says what the exception that is being handled means, and ends the process; one of several, without the others."""
    ours, several, script = isinstance(error, UserError | flags.Error), _several(), Path(sys.argv[0]).name
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:  # a file is a folder, the disk is full, ...
        file = error.filename2 or error.filename  # of a replacement that fails, the file that was to be replaced
        ours, text = True, f"{file} cannot be used ({error.strerror}): move it away, or choose another place"
    if ours:
        line = " ".join(text.split())
        print(f"{script}: error: {line[:MOST]}{' ...' * (len(line) > MOST)}", file=sys.stderr)
    elif several:
        traceback.print_exc()
        print(
            f"{script}: error: process {jax.process_index()} of {jax.process_count()} ends, and with it the others; if "
            "what is above tells of a lost connection, another one ended first. Start all of them again: a run goes on "
            "from its last checkpoint",
            file=sys.stderr,
        )
    else:
        raise error
    _exit(2 if ours else 1)


def _exit(code: int) -> None:
    """Ends the process; one of several at once, as what it would close, others would have to close too."""
    if not _several():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    if processes.is_main_process():
        time.sleep(2)  # the others end as soon as this one does, and may have something to say
    os._exit(code)


def _parse_flags(argv: list[str], epilogue: str) -> None:
    if {"--help", "-h", "-help"} & set(argv[1:]):
        flags.FLAGS(argv[:1])
        print(sys.modules["__main__"].__doc__)
        print(flags.FLAGS.main_module_help() + epilogue)
        sys.exit(0)
    try:
        unused = flags.FLAGS(argv)[1:]
        config = flags.FLAGS.flag_values_dict().get("config")
        # Loads the file here: ml_collections waits until an attribute is read, and whoever reads it would fail.
        getattr(config, "keys", None)
    except (AttributeError, KeyError) as error:  # a config without the setting that --config.NAME is to change
        if "get_config" in str(error):
            raise UserError(f"the config file cannot be loaded: {error}") from error
        # The message is the repr of a repr: quotes within quotes, and an escaped line break before the hint.
        name, *hint = str(error.args[0]).replace("\\n", "\n").replace("\\'", "'").splitlines()
        quotes = "'\""
        known = hint[0].strip("'") if hint else "--help lists the settings"
        raise UserError(f"the config has no setting '{name.strip(quotes)}': {known}") from error
    except OSError as error:  # ml_collections wraps whatever kept the file from being read; the cause is its last line
        raise UserError(f"the config file cannot be loaded: {str(error).strip().splitlines()[-1]}") from error
    except (SyntaxError, ImportError) as error:
        raise UserError(f"the config file cannot be loaded: {error}") from error
    except ValueError as error:  # of a name that ml_collections cannot parse, as in --config.=3
        raise UserError(f"the flags cannot be read: {error}") from error
    if not isinstance(config, ConfigDict | NoneType):
        raise UserError(
            f"get_config() of the config file returns a {type(config).__name__}, expected the ConfigDict of "
            "flowguide.build.default(), changed"
        )
    if unused:
        raise UserError(f"got {unused[0]!r}, expected flags of the form --name=value; --help lists them")


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[Callable[[int], bool]]:
    """Gives a function of the step that says whether to stop after it: Ctrl-C or a termination signal has come.

    More of them change nothing: schedulers and impatient people send several, and the state is still to be saved.
    Ctrl-\\ (SIGQUIT) ends at once. A signal to one of several processes stops all of them after the same step; each
    process must ask at every step.
    """
    came = []

    def note(number: int, frame: object) -> None:
        if not came:
            with contextlib.suppress(OSError):  # not by print, which the signal may have interrupted
                os.write(2, b"\nstopping: this step is finished and saved; Ctrl-\\ ends at once, without that\n")
        came.append(number)

    def pass_on(number: int, frame: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # which JAX listens to, and tells the others of

    several = processes.is_distributed()
    handlers = {signal.SIGINT: pass_on} if several else {signal.SIGINT: note, signal.SIGTERM: note}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield multihost_utils.reached_preemption_sync_point if several else lambda step: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def folder(text: str) -> Path:
    """A folder that a flag names.

    Raises:
      UserError: for an address, such as of a bucket, of which a path would make a folder of an odd name.
    """
    if "://" in text:
        raise UserError(
            f"expected a folder, got the address {text}: mount it (gcsfuse, mountpoint-s3) and give its path"
        )
    return Path(text)


def prepare_workdir(workdir: Path) -> None:
    """Makes a folder and sees that it can be written to.

    Raises:
      UserError: if not.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot write to {workdir} ({reason}): choose another folder") from error
