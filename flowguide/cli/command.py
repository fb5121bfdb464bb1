"""What a command is, how its flags are parsed, and how it ends."""

from __future__ import annotations

import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from logging import LogRecord, getLogger
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags, logging

from flowguide.errors import UserError, hint
from flowguide.shutdown import end, leave


class Command(NamedTuple):
    """One command.

    Attributes:
      description: what ``--help`` says first.
      define: defines its flags on the given values.
      main: runs it with the parsed flags.
      takes_config: whether it takes --config=NAME, --config.SETTING=VALUE and --data. ``main`` gets the data if they
        are open already.
      takes_words: whether it takes words besides flags, which are passed to ``main``.
      epilogue: what ``--help`` says last.
    """

    description: str
    define: Callable[[flags.FlagValues], None]
    main: Callable[..., None]
    takes_config: bool = False
    takes_words: bool = False
    epilogue: Callable[[], str] = str


def run(command: Command, program: str, arguments: Sequence[str]) -> int:
    """Parses the flags and runs a command; returns its exit code.

    Errors that the user can mend, bad flags and files that fail are one line and exit code 2. Of several processes, one
    that fails ends at once, and with it the others. Ctrl-C is one line and exit code 130.
    """
    sys.argv = [program, *arguments]  # what JAX and its libraries read

    def main() -> None:
        if {"--help", "-h", "-help"} & set(arguments):
            print(help_text(command, program))
        else:
            values, others = parse(command, program, arguments)
            command.main(values, *others)

    return guarded(main)


def run_script(main: Callable[[], None]) -> None:
    """Parses the global flags of a script and runs it, ending as commands do."""

    def parsed() -> None:
        if unused := flags.FLAGS(sys.argv)[1:]:
            raise UserError(f"got {unused[0]!r}, expected flags of the form --name=value; --help lists them")
        main()

    sys.exit(guarded(parsed))


def guarded(main: Callable[[], None]) -> int:
    """Runs a function; returns 0, or ends the process as ``run`` says."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # there may be one for the imports alone
    logging.set_verbosity(logging.ERROR)  # the libraries warn of things that are meant to be
    sys.unraisablehook = _show_unraisable
    getLogger("asyncio").addFilter(_show_record)
    try:
        main()
    except Exception as error:
        end(error)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # more of them shall not make a traceback of it
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        leave(130)
    return 0


def parse(command: Command, program: str, arguments: Sequence[str]) -> tuple[flags.FlagValues, list[Any]]:
    """Parses the flags of a command.

    Returns:
      their values, and what else ``main`` takes: the words that are no flags, or the data that were opened on the way.

    Raises:
      UserError, flags.Error: for unknown flags and bad values, and configs that cannot be loaded.
    """
    values = flags.FlagValues()
    command.define(values)
    rest, opened = list(arguments), None
    if command.takes_config:
        from flowguide.cli.config_flag import config_and_rest  # networks and optimisers, which other commands need not

        rest, opened = config_and_rest(values, rest)
    flags.FLAGS([program])  # libraries may read flags of their own
    try:
        words = values([program, *rest])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"unknown flag --{error.flagname}{hint(error.flagname, values)}: --help lists all") from error
    if words and not command.takes_words:
        raise UserError(f"got {words[0]!r:.100}, expected flags of the form --name=value; --help lists them")
    return values, words if opened is None else [opened]


def help_text(command: Command, program: str) -> str:
    """Returns what ``--help`` prints: the description, every flag with its default and meaning, and the epilogue."""
    values = flags.FlagValues()
    command.define(values)
    lines = [f"{program} --flag=value ...", "", command.description.strip(), "", "flags:"]
    if command.takes_config:
        from flowguide.cli.config_flag import CONFIG

        lines += _flag_help("config", "", CONFIG) + _flag_help("config.SETTING", "", "changes a setting; see below")
    for name in values:
        flag = values[name]
        default = str(flag.default_as_str).strip("'") if flag.default not in (None, [], [""]) else ""
        lines += _flag_help(name, default, flag.help or "")
    epilogue = command.epilogue()
    return "\n".join([*lines, "", epilogue] if epilogue else lines)


def _flag_help(name: str, default: str, meaning: str) -> list[str]:
    text = " ".join(meaning.split()) + (f" (default: {default})" if default else "")
    return [f"  --{name}", *textwrap.wrap(text, 100, initial_indent="      ", subsequent_indent="      ")]


# If one part of a checkpoint cannot be read, Orbax says so and closes its event loop. TensorStore's threads, which read
# the other parts, then have nobody to tell: some find the loop closed, and of others nobody asks what went wrong.
def _show_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _show_record(record: LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()
