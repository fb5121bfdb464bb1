"""The command ``train``."""

from __future__ import annotations

from absl import flags

from flowguide import storage
from flowguide.build import Splits
from flowguide.cli.command import Command
from flowguide.cli.common import define_process_flags, join_processes, keep_compiled
from flowguide.cli.config_flag import define_data_flags
from flowguide.config import FORCEABLE, settings_help
from flowguide.errors import UserError
from flowguide.training.loop import train

DESCRIPTION = """
Trains a conditional velocity network by flow matching, or a classifier of noisy data to guide one.

  flowguide train --config=avatars --workdir=runs/avatars --config.lr=3e-4
  flowguide train --data=photos/ --workdir=runs/photos --minutes=30

Re-running the command resumes bit-exactly from the last checkpoint, including data order. Every setting of the config
can be changed on the command line.
"""


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "workdir", None, "folder of the run, or gs://BUCKET/NAME: checkpoints, logs and pictures", flag_values=values
    )
    flags.DEFINE_bool(
        "force", False, f"resume a run although settings have changed: {', '.join(FORCEABLE)}", flag_values=values
    )
    flags.DEFINE_list(
        "profile_steps",
        None,
        "trace from this step to that, as 100,110, into WORKDIR/profile for TensorBoard or XProf",
        flag_values=values,
    )
    flags.DEFINE_string(
        "cache_dir",
        None,
        "keep compiled programs here for the next start; by default in WORKDIR/compiled. They run unchecked",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "stop_after", None, "save and stop after this step, as if interrupted", lower_bound=1, flag_values=values
    )
    define_data_flags(values)
    flags.DEFINE_float("minutes", None, "train for so long, instead of a number of steps", flag_values=values)
    define_process_flags(values)


def main(values: flags.FlagValues, data: Splits | None = None) -> None:
    """Trains; ``data`` are those of the config, if they are open already."""
    if values.workdir is None:
        raise UserError("expected --workdir=DIR, and --config=NAME or --data=PATH; --help lists all flags")
    workdir = storage.path(values.workdir)
    join_processes(values)
    profile = None
    if values.profile_steps is not None:
        try:
            start, stop = (int(n) for n in values.profile_steps)
        except ValueError:
            raise UserError(f"--profile_steps takes two steps, as 100,110; got {values.profile_steps}") from None
        profile = start, stop
    keep_compiled(storage.path(values.cache_dir) if values.cache_dir else workdir / "compiled")
    options = {"force": values.force, "profile": profile, "minutes": values.minutes}
    train(values.config, workdir, values.stop_after, data=data, **options)


COMMAND = Command(DESCRIPTION, define, main, takes_config=True, epilogue=settings_help)
