"""What the two scripts share: one line for what the user can mend, a traceback for what we must."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags, logging

from flowguide.errors import UserError


def run_script(main: Callable[[], None], epilogue: str = "") -> None:
    """Parses the flags and runs ``main``; a ``UserError`` or a bad flag becomes one line and exit code 2.

    ``--help`` prints the docstring of the script, its flags and ``epilogue``.
    """
    script = Path(sys.argv[0]).name
    logging.set_verbosity(logging.ERROR)  # the libraries warn of what is meant to be
    try:
        _parse_flags(sys.argv, epilogue)
        main()
    except (UserError, flags.Error) as error:
        print(f"{script}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _parse_flags(argv: list[str], epilogue: str) -> None:
    if {"--help", "-h", "-help"} & set(argv[1:]):
        flags.FLAGS(argv[:1])
        print(sys.modules["__main__"].__doc__)
        print(flags.FLAGS.main_module_help() + epilogue)
        sys.exit(0)
    try:
        unused = flags.FLAGS(argv)[1:]
    except (AttributeError, KeyError) as error:  # a config without the setting that --config.NAME is to change
        # The message is the repr of a repr: quotes within quotes, and an escaped line break before the hint.
        name, *hint = str(error.args[0]).replace("\\n", "\n").replace("\\'", "'").splitlines()
        quotes = "'\""
        known = hint[0].strip("'") if hint else "--help lists the settings"
        raise UserError(f"the config has no setting '{name.strip(quotes)}': {known}") from error
    except OSError as error:  # ml_collections wraps whatever kept the file from being read; the cause is its last line
        raise UserError(f"the config file cannot be loaded: {str(error).strip().splitlines()[-1]}") from error
    if unused:
        raise UserError(f"got {unused[0]!r}, expected flags of the form --name=value; --help lists them")


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C or a termination signal has come; a second one ends at once."""
    came = []

    def note(number: int, frame: object) -> None:
        came.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def prepare_workdir(workdir: Path) -> None:
    """Makes a folder and sees that it can be written to.

    Raises:
      UserError: if not.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {workdir} ({error.strerror}): choose another folder") from error
