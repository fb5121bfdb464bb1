"""The command ``plan``."""

from __future__ import annotations

import math
import os
import time

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from flowguide import build
from flowguide.build import Splits
from flowguide.cli.command import Command
from flowguide.cli.config_flag import define_data_flags
from flowguide.config import Config, check_types, settings_help
from flowguide.errors import UserError
from flowguide.planning import CHIPS, Chip, Plan, bytes_text, plan, time_text
from flowguide.schema import DataInfo, Vectors

DESCRIPTION = """
Estimates what a training run needs, on devices that need not be there: parameters, memory of a device, operations and
time of a step. The data of a config need not be there either.

  flowguide plan --config=imagenet64 --devices=256 --chip=v5e --config.layout.name=fsdp
  flowguide plan --data=photos/ --devices=1 --chip=h100

The step is compiled for as many virtual CPU devices; nothing is computed. The bytes of state and batch are exact: they
are the shapes of the arrays. What a step needs besides is what XLA's compiler for CPUs makes of it, which lays out and
fuses in its own way and computes bfloat16 in float32: an upper estimate, two to three times what the compiler for TPUs
needs. Operations are those of matrix products and convolutions, forwards, backwards and recomputed; the time assumes
--mfu of the chip's peak, and nothing else.
"""

TOO_HIGH = 3  # the estimate of a step's memory was at most this many times what a TPU needs, for the DiTs tried


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_integer(
        "devices", 8, "number of devices, of all processes together", lower_bound=1, flag_values=values
    )
    flags.DEFINE_enum("chip", "v5e", list(CHIPS), "chip whose peak and memory to take", flag_values=values)
    flags.DEFINE_float("peak", None, "operations a second of another chip", flag_values=values)
    flags.DEFINE_float("memory", None, "memory in GiB of another chip", flag_values=values)
    flags.DEFINE_float("mfu", 0.4, "share of the peak that is assumed to be reached", flag_values=values)
    flags.DEFINE_list(
        "shape", None, "shape of an example, if not that of the data: 32,32,4 for latents", flag_values=values
    )
    define_data_flags(values)


def main(values: flags.FlagValues, data: Splits | None = None) -> None:
    """Plans and prints a table; ``data`` are those of the config, if they are open already."""
    config, console = values.config, Console()
    chip, info = _chip(values), _info(values, data)
    if values.shape is not None:
        config.flip = False  # latents cannot be mirrored, and mirroring changes nothing that is planned
    _virtual(values.devices)
    started = time.perf_counter()
    with console.status(f"compiling a step for {values.devices} virtual devices"):
        made = plan(config, info, jax.devices())
    console.print(_table(made, config, info, chip, values.devices, values.mfu))
    console.print(
        f"Planned in {time.perf_counter() - started:.0f} s. State and batch are exact; the memory of a step is an "
        f"estimate, by XLA's compiler for CPUs; the time assumes {values.mfu:.0%} of {chip.peak / 1e12:,.0f} TFLOP/s."
    )
    if made.best_shards != made.shards:
        console.print(
            f"--config.layout.shards={made.best_shards} would leave least of the state on a device, "
            f"{bytes_text(made.best_each)}: a leaf is split only if the number divides one of its axes."
        )
    if config.network.get("dtype", "float32") != "bfloat16":
        console.print("The network computes in float32; the peak is that of bfloat16 (--config.network.dtype=bfloat16)")


def _chip(values: flags.FlagValues) -> Chip:
    if not 0 < values.mfu <= 1:
        raise UserError(f"--mfu is a share of the peak, over 0 and up to 1; got {values.mfu:g}")
    for name, value in (("peak", values.peak), ("memory", values.memory)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} is a positive number; got {value:g}")
    chip = CHIPS[values.chip]
    memory = chip.memory if values.memory is None else values.memory * 2**30
    return Chip(chip.peak if values.peak is None else values.peak, memory)


def _info(values: flags.FlagValues, data: Splits | None) -> DataInfo:
    check_types(values.config)
    info = build.data_info(values.config) if data is None else data.train.info
    if values.shape is None:
        return info
    if not values.shape or not all(side.isdecimal() and int(side) > 0 for side in values.shape):
        raise UserError(f"--shape takes sizes such as 32,32,4; got {','.join(values.shape)}")
    return info._replace(examples=Vectors(tuple(map(int, values.shape))))


def _virtual(devices: int) -> None:
    """Provides as many virtual CPUs; must be called before JAX has looked for devices."""
    forced = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    os.environ["XLA_FLAGS"] = " ".join(forced)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def _table(made: Plan, config: Config, info: DataInfo, chip: Chip, devices: int, mfu: float) -> Table:
    size = config.batch_size
    needed = made.state_each + max(made.temporary + made.batch, made.preview)
    at_least = made.state_each + max(made.temporary // TOO_HIGH + made.batch, made.preview)
    seconds = made.operations / devices / (chip.peak * mfu)
    layout = config.layout.name + f", {made.shards} shards" * (made.shards > 1)
    fits = "fits" if needed <= chip.memory else "may fit" if at_least <= chip.memory else "does not fit"
    table = Table(
        title=f"{config.network.name} on {info.name} {info.shape}, {devices} devices, {layout}", show_header=False
    )
    for name, text in (
        ("parameters", f"{made.parameters:,}"),
        ("state: parameters, average, optimiser", bytes_text(made.state)),
        ("on one device", bytes_text(made.state_each)),
        ("beside it, while a step runs", f"{bytes_text(made.temporary)} (estimate)"),
        ("beside it, while a preview is drawn", f"{bytes_text(made.preview)} (--config.preview.every=0: none)"),
        ("its share of the batch", f"{bytes_text(made.batch)}, {size // devices:,} of {size:,} examples"),
        ("memory of a device", f"{bytes_text(needed)} of {bytes_text(int(chip.memory))}: {fits}"),
        ("operations of a step", f"{made.operations:.4g} FLOP, {made.operations / size:.4g} an example"),
        ("time of a step", f"{time_text(seconds)}, {size / seconds:,.0f} examples/s"),
        (f"time of {config.steps:,} steps", time_text(seconds * config.steps)),
    ):
        if made.preview or "preview" not in name:
            table.add_row(name, text)
    return table


COMMAND = Command(DESCRIPTION, define, main, takes_config=True, epilogue=settings_help)
