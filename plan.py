"""What a training run would need, without the chips and without the data: memory of a device, operations, time.

python plan.py --config=configs/imagenet64.py --devices=256 --chip=v5e --config.layout.name=fsdp

The step is compiled, with nothing but shapes, for as many virtual devices as --devices says. Parameters and state are
exact, up to how a chip lays out arrays. What a step needs beside the state is what XLA's compiler for CPUs makes of it,
which lays out and fuses in its own way and computes bfloat16 in float32: an estimate from above, two to three times of
what the compiler for TPUs needs. Operations are those of matrix products and convolutions, forwards, backwards and
recomputed; the time assumes --mfu of the chip's peak, and nothing else.
"""

import math
import os
import time

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from flowguide import build
from flowguide.cli import run_script
from flowguide.data import DataInfo
from flowguide.errors import UserError
from flowguide.planning import CHIPS, Chip, Plan, bytes_text, plan, time_text

CONFIG = config_flags.DEFINE_config_file("config", None, "the experiment, a file of configs/")
DEVICES = flags.DEFINE_integer("devices", 8, "how many there are to be, of all processes", lower_bound=1)
CHIP = flags.DEFINE_enum("chip", "v5e", list(CHIPS), "whose peak rate and memory to take")
PEAK = flags.DEFINE_float("peak", None, "operations a second of another chip")
MEMORY = flags.DEFINE_float("memory", None, "memory in GiB of another chip")
MFU = flags.DEFINE_float("mfu", 0.4, "share of the peak that is assumed to be reached")
SHAPE = flags.DEFINE_list("shape", None, "of an example, where it is not that of the data: 32,32,4 for latents")

TOO_HIGH = 3  # an estimate of a step's memory is at most that many times what a TPU needs, of the DiTs that were tried


def main() -> None:
    if CONFIG.value is None:
        raise UserError("expected --config=configs/NAME.py; --help lists all flags")
    if not 0 < MFU.value <= 1:
        raise UserError(f"--mfu is a share of the peak, over 0 and up to 1; got {MFU.value:g}")
    for name, value in (("peak", PEAK.value), ("memory", MEMORY.value)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} is a positive number; got {value:g}")
    config, console = CONFIG.value, Console()
    chip = CHIPS[CHIP.value]
    memory = chip.memory if MEMORY.value is None else MEMORY.value * 2**30
    chip = Chip(chip.peak if PEAK.value is None else PEAK.value, memory)
    build.check_types(config)
    info = build.data_info(config)
    if SHAPE.value is not None:
        if not SHAPE.value or not all(side.isdecimal() and int(side) > 0 for side in SHAPE.value):
            raise UserError(f"--shape takes sizes such as 32,32,4; got {','.join(SHAPE.value)}")
        info = info._replace(shape=tuple(map(int, SHAPE.value)), kind="points")
    _virtual(DEVICES.value)
    started = time.perf_counter()
    with console.status(f"compiling a step for {DEVICES.value} virtual devices"):
        made = plan(config, info, jax.devices())
    console.print(_table(made, config, info, chip))
    console.print(
        f"Planned in {time.perf_counter() - started:.0f} s. State and batch are exact; the memory of a step is an "
        f"estimate, by XLA's compiler for CPUs; the time assumes {MFU.value:.0%} of {chip.peak / 1e12:,.0f} TFLOP/s."
    )
    if made.best_shards != made.shards:
        console.print(
            f"--config.layout.shards={made.best_shards} would leave least of the state on a device, "
            f"{bytes_text(made.best_each)}: a leaf is split only if the number divides one of its axes."
        )
    if config.network.get("dtype", "float32") != "bfloat16":
        console.print("The network computes in float32; the peak is that of bfloat16 (--config.network.dtype=bfloat16)")


def _virtual(devices: int) -> None:
    """As many virtual CPUs; to be called before JAX has looked for devices."""
    forced = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    os.environ["XLA_FLAGS"] = " ".join(forced)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def _table(made: Plan, config: build.Config, info: DataInfo, chip: Chip) -> Table:
    devices, size = DEVICES.value, config.batch_size
    needed = made.state_each + max(made.temporary + made.batch, made.preview)
    at_least = made.state_each + max(made.temporary // TOO_HIGH + made.batch, made.preview)
    seconds = made.operations / devices / (chip.peak * MFU.value)
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


if __name__ == "__main__":
    run_script(main, build.settings_help())
