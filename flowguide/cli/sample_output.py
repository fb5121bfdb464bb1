"""What ``sample`` writes: samples first, then how they came about, then figures, which may fail."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import flowguide
from flowguide import sampling, storage
from flowguide.cli.sample_command import SampleCommand
from flowguide.cli.sample_table import save_table
from flowguide.errors import UserError
from flowguide.kinds import as_json
from flowguide.schema import Records, prompts


class Drawn(NamedTuple):
    """What was drawn, one cell for each γ and condition.

    Attributes:
      gammas: the rows.
      cells: what to know of each cell: its condition, γ, number of samples and cost.
      x: the samples of each cell.
      ess: effective sample sizes by title, for particles.
      seconds: that it took.
    """

    gammas: list[float]
    cells: list[dict[str, Any]]
    x: list[np.ndarray]
    ess: dict[str, np.ndarray]
    seconds: float


def write(command: SampleCommand, model: sampling.Model, config: sampling.SamplerConfig, drawn: Drawn) -> Path:
    """Writes everything; returns where the samples can be seen. A figure that fails loses no samples.

    Raises:
      UserError: if the samples cannot be written.
    """
    out = command.out
    try:
        _save(command, model, drawn)
        storage.write_text(out / "samples.json", as_json(_record(command, model, config, drawn)))
    except OSError as error:
        raise UserError(f"cannot write the samples to {out} ({error.strerror}): make room, or give --out") from error
    columns = [command.compose] if command.compose else [cond or "∅" for cond in command.conds]

    def grid() -> None:
        from flowguide.pictures import save_figure

        shape = (len(drawn.gammas), len(command.conds), *drawn.x[0].shape)
        save_figure(out / "grid.png", np.stack(drawn.x).reshape(shape), [f"γ = {g:g}" for g in drawn.gammas], columns)

    def ess() -> None:
        from flowguide.pictures import save_sizes

        save_sizes(out / "ess.png", drawn.ess, np.asarray(sampling.nodes(config))[1:], config.particles)
        print(f"effective sample sizes: {out / 'ess.png'}")

    def gap() -> None:
        from flowguide.pictures import save_gaps

        cond, common = command.conds[0], {**command.negative(), "config": config, "seed": command.seed}
        gaps = {f"γ = {g:g}": sampling.gap(model, cond, gamma=g, **common) for g in drawn.gammas}
        save_gaps(out / "gap.png", gaps, f"{cond or 'unconditional'}, {config.solver}, guidance {config.guidance}")
        print(f"the gap along the solve: {out / 'gap.png'}")

    shown = _attempt("grid.png", grid)
    if drawn.ess:
        _attempt("ess.png", ess)
    if command.diagnose:
        _attempt("gap.png", gap)
    return out / "grid.png" if shown else out


def as_pngs(command: SampleCommand, model: sampling.Model) -> bool:
    """Returns whether each sample is written as a PNG."""
    return command.save == "png" and model.info.examples.as_pictures


def _save(command: SampleCommand, model: sampling.Model, drawn: Drawn) -> None:
    """Saves every sample, as --save says; an NPZ or CSV also has what each was asked to be.

    In an NPZ of rows of a table a class is its number in ``x``, and ``classes.<column>`` has the names.
    """
    if command.save == "csv":
        conds = ["" if command.compose else cell["cond"] for cell in drawn.cells]
        save_table(command.out / "samples.csv", drawn.x, conds, model.info)
        return
    x = np.concatenate(drawn.x)
    if as_pngs(command, model):
        from flowguide.pictures import save_png

        for i, image in enumerate(x):
            save_png(command.out / "png" / f"{i:06d}.png", image)
    elif command.save != "none":
        asked: dict[str, np.ndarray] = {
            "gamma": np.repeat(np.array([cell["gamma"] for cell in drawn.cells], np.float32), command.num),
            "cond": np.repeat([command.compose or cell["cond"] for cell in drawn.cells], command.num),
        }
        if not command.compose:
            texts = [cell["cond"] for cell in drawn.cells for _ in range(cell["num"])]
            c = prompts.condition(texts, model.info.fields)
            asked |= {f"value.{name}": a for name, a in c.value.items()}
            asked |= {f"present.{name}": a for name, a in c.present.items()}
        if isinstance(model.info.examples, Records):
            names, classes = model.info.examples.names, model.info.examples.classes
            asked |= {"names": np.array(names)}
            asked |= {f"classes.{name}": np.array(each) for name, each in zip(names, classes, strict=True) if each}
        with storage.writing(command.out / "samples.npz") as file:
            np.savez_compressed(file, **{"x": x, **asked})  # pyright: ignore[reportArgumentType]


def _record(
    command: SampleCommand, model: sampling.Model, config: sampling.SamplerConfig, drawn: Drawn
) -> dict[str, Any]:
    weighted = command.negatives and not config.replace_null
    weak = command.weak or (None, None)
    return {
        "workdir": str(command.workdir),
        "data": model.info.name,
        "train_step": model.step,
        "ema": model.ema,
        "seed": command.seed,
        "batch_size": command.batch_size,
        "negative": command.negatives,
        "compose": command.compose,
        "weak": [weak[0] and str(weak[0]), weak[1]],
        "gamma_negative": (1.0 if command.gamma_negative is None else command.gamma_negative) if weighted else None,
        "measured": _about_measured(command, model),
        **config._asdict(),
        "cells": drawn.cells,
        "network_evaluations": sum(cell["num"] * cell["network_evaluations"] for cell in drawn.cells),
        "seconds": round(drawn.seconds, 3),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {"flowguide": flowguide.__version__, "jax": jax.__version__},
    }


def _about_measured(command: SampleCommand, model: sampling.Model) -> dict[str, Any] | None:
    """Returns what was measured, with its defaults filled in; files by name."""
    if command.measured is None:
        return None
    measured = sampling.read_measured(command.measured, model.info)
    return {
        type(measured).__name__.lower(): command.measured_from,
        "sigma": getattr(command.measured, "sigma", None),
        "noise": measured.noise[0].tolist(),
        "variance": measured.variance[0].item(),
    }


def _attempt(name: str, draw: Callable[[], None]) -> bool:
    """Draws a figure and returns whether that worked; if not, says why."""
    try:
        draw()
    except Exception as error:  # whatever it is, the samples are safe
        print(f"warning: no {name} ({type(error).__name__}: {error}); the samples are saved", file=sys.stderr)
        return False
    return True
