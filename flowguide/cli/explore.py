"""The command ``explore``."""

from __future__ import annotations

from absl import flags

from flowguide import sampling, storage
from flowguide.cli.command import Command
from flowguide.cli.common import define_trust_flag, keep_compiled_in_run
from flowguide.errors import UserError

DESCRIPTION = """
Opens a page on this machine that draws what you ask for.

  flowguide explore --workdir=runs/avatars

The page has a control for each field of the condition, for what to move away from, γ, guidance method, steps and seed.
It is served to this machine only. On another machine, forward the port: ssh -L 8000:localhost:8000 MACHINE.
"""


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("workdir", None, "folder that train has written, or gs://BUCKET/NAME", flag_values=values)
    flags.DEFINE_integer("step", None, "checkpoint of this training step; by default the newest", flag_values=values)
    flags.DEFINE_integer("port", 8000, "of the page", lower_bound=1, upper_bound=65535, flag_values=values)
    define_trust_flag(values)


def main(values: flags.FlagValues) -> None:
    """Serves until it is interrupted."""
    if values.workdir is None:
        raise UserError("expected --workdir=DIR, a folder that train has written; --help lists all flags")
    try:
        from werkzeug.serving import WSGIRequestHandler, make_server

        from flowguide.explore import make_app
    except ModuleNotFoundError as error:
        raise UserError(f'{error}: pip install "flowguide[explore]"') from error

    class Quiet(WSGIRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Every move of a slider would be a line."""

    workdir = storage.path(values.workdir)
    app = make_app(sampling.load(workdir, values.step, trust_code=values.trust_code))
    keep_compiled_in_run(workdir)
    try:
        server = make_server("127.0.0.1", values.port, app, threaded=True, request_handler=Quiet)
    except (OSError, SystemExit) as error:
        raise UserError(f"port {values.port} cannot be used: give another, --port={values.port % 65535 + 1}") from error
    print(f"http://localhost:{values.port} draws from {workdir}; Ctrl-C ends it", flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


COMMAND = Command(DESCRIPTION, define, main)
