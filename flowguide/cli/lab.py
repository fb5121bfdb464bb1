"""The command ``lab``."""

from __future__ import annotations

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from flowguide import analytic
from flowguide.cli.command import Command
from flowguide.cli.common import numbers
from flowguide.errors import UserError
from flowguide.lab import (
    AXIS,
    CONTENDERS,
    Law,
    closed_forms,
    distances,
    draw,
    gaussian,
    inverse,
    plot,
    powered,
    two_modes,
)

DESCRIPTION = """
What does guidance sample? Every method on laws that are known exactly, measured.

  flowguide lab --gamma=2,3,5 --num=20000 --out=lab.png

Two laws on the line: a Gaussian, x ~ N(0, 2) and x|c ~ N(1.5, 1), and a mixture of two modes. For each method and γ:
mean and variance of its samples, and their distance, Wasserstein-1 and total variation, to the conditional law p(x|c)
and to the law that guidance is often said to sample, p(x)^(1−γ)·p(x|c)^γ. Exact draws of that law show how much of
either distance is due to the number of samples. On the line projections have nothing to turn: APG and CFG-Zero* are
conditional sampling, TCFG is CFG, and β-CFG's normalised difference is a sign. Two minutes on 2 CPU cores.
"""


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_list("gamma", ["2", "3", "5"], "guidance scales", flag_values=values)
    flags.DEFINE_integer("num", 20_000, "samples of each method", lower_bound=100, flag_values=values)
    flags.DEFINE_integer("steps", 100, "steps of every solve", lower_bound=2, flag_values=values)
    flags.DEFINE_string("out", "lab.png", "file of the figure", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Draws, measures, prints and plots."""
    gammas, console = numbers("gamma", values.gamma), Console()
    if not console.is_terminal:
        console = Console(width=110)  # a file has no width of its own
    low, _ = analytic.existence(2.0, 1.0)
    if min(gammas) <= low:
        raise UserError(f"the powered law of the Gaussian exists for γ > {low:g}; got --gamma={min(gammas):g}")
    laws, cells = [gaussian(), two_modes()], {}
    for law in laws:
        for gamma in gammas:
            with console.status(f"{law.name}, γ = {gamma:g}"):
                rows = {"exact draws of the tilted law": inverse(powered(law, gamma), values.num)}
                for contender in CONTENDERS:
                    if contender.negative and law.labels < 2:
                        continue
                    rows[contender.name] = draw(law, contender, gamma, values.num, values.steps)
            cells[law.name, gamma] = rows
            console.print(table(law, gamma, rows, closed_forms(law, gamma)))
    plot(cells, laws, gammas).savefig(values.out, dpi=110)
    console.print(f"figure: {values.out}")


def table(law: Law, gamma: float, rows: dict[str, np.ndarray], exact: dict[str, tuple[float, float]]) -> Table:
    """One γ of one law."""
    shown = Table(title=f"{law.name}, γ = {gamma:g}", title_justify="left")
    shown.add_column("method", no_wrap=True)
    for column in ("mean", "variance", "W1 to p(x|c)", "TV", "W1 to the tilted law", "TV"):
        shown.add_column(column, justify="right")
    targets = law.conditional(AXIS), powered(law, gamma)
    for name, (mean, variance) in exact.items():
        shown.add_row(f"[bold]{name}[/]", f"{mean:.3f}", f"{variance:.3f}", *[""] * 4)
    for name, samples in rows.items():
        cells = [f"{d:.3f}" for target in targets for d in distances(samples, target)]
        shown.add_row(name, f"{samples.mean():.3f}", f"{samples.var():.3f}", *cells)
    return shown


COMMAND = Command(DESCRIPTION, define, main)
