"""The command line: ``flowguide train|sample|evaluate|plan|convert|data|lab``.

Importing it is fast and defines no flags.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "train a velocity network, or a classifier, from a config",
    "sample": "draw samples from a run, guided towards a condition and away from others",
    "evaluate": "measure samples of a run as guidance grows: Fréchet distance, precision, recall, adherence",
    "explore": "open a page on this machine that draws what you ask for",
    "plan": "estimate what a run needs, for devices that need not be there",
    "convert": "make a run of released weights (SiT, DiT, REPA, LightningDiT, JiT), and such weights of a run",
    "data": "prepare, list and describe data sets",
    "lab": "what every guidance method samples, measured on exact laws",
}


def main(arguments: Sequence[str] | None = None, program: str = "") -> int:
    """Runs one command and returns its exit code.

    Args:
      arguments: the command and its flags; None for those of the process.
      program: what messages call the command; by default "flowguide COMMAND".
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from flowguide import __version__

        print(__version__)
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        from flowguide.errors import hint

        print(f"flowguide: error: unknown command {name!r:.100}{hint(name, COMMANDS)}\n\n{_usage()}", file=sys.stderr)
        return 2
    program = program or f"flowguide {name}"
    _exit_on_ctrl_c(program)
    try:
        from flowguide.cli.command import run

        command = importlib.import_module(f"flowguide.cli.{name}").COMMAND
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "flowguide":
            raise
        print(f'{program}: error: {error}: pip install "flowguide[train]"', file=sys.stderr)
        return 2
    return run(command, program, rest)


def _usage() -> str:
    lines = [f"  flowguide {name:10}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(["usage: flowguide COMMAND [--flag=value ...]", "", *lines, "", "flowguide COMMAND --help: flags"])


def _exit_on_ctrl_c(program: str) -> None:
    """The imports that follow take seconds, and a traceback from inside them helps nobody."""

    def interrupted(*_: object) -> None:
        print(f"{program}: interrupted", file=sys.stderr)
        os._exit(130)

    signal.signal(signal.SIGINT, interrupted)
