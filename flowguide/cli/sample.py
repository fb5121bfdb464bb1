"""The command ``sample``."""

from __future__ import annotations

import signal
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from flowguide import guidance, paths, processes, sampling, solvers, storage
from flowguide.autoencoder import FILE
from flowguide.cli import sample_command, sample_flags
from flowguide.cli.command import Command
from flowguide.cli.common import join_processes, keep_compiled_in_run
from flowguide.cli.sample_command import SampleCommand, check_is_no_folder
from flowguide.cli.sample_output import Drawn, as_pngs, write
from flowguide.cli.sample_table import check_table
from flowguide.errors import UserError
from flowguide.kinds import as_json
from flowguide.schema import Latents, info_to_json, prompts
from flowguide.workdir import prepare_folder

DESCRIPTION = """
Draws samples from a training run, guided towards a condition and away from others.

  flowguide sample --workdir=runs/avatars --cond="hat=red,glasses=none" --negative="beard=yes" --gamma=3 --num=64

The guided velocity is u_∅ + γ(u_c − u_∅) − γ_n·Σ(u_d − u_∅), for the condition c and the negative conditions d; other
methods by --guidance. A field that --cond leaves out is ∅. Several --cond or several values of --gamma draw a figure
with γ down the rows and conditions across. γ is what Diffusers calls guidance_scale; several papers use w = γ − 1.

A model also completes, enlarges and sharpens what you measured, without training for it: --inpaint=photo.png,
--upsample=small.png, or --deblur=blurred.png --blur_sigma=1.5.

Sample i depends only on --seed and i, up to rounding: another --batch_size or number of devices adds in another order,
and about one value of an image in 10,000 differs by 1 of 255.
"""

PILOT, FIT_ITERATIONS = 32, 20


def main(values: flags.FlagValues) -> None:
    """Samples; everything that can be wrong is found before anything is computed."""
    join_processes(values)  # before anything is computed, as some checks of the flags do
    command = sample_command.parse(values)
    keep_compiled_in_run(command.workdir)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX has taken it if there are several processes; here it ends
    ours = {name: values[name].value for name in values if name not in ("process_id", "coordinator")}
    processes.check_same("command", ours)

    model = sampling.load(
        command.workdir,
        command.step,
        ema=command.ema,
        trust_code=command.trust_code,
        decode=command.decode,
        tile=command.tile,
    )
    weak = None
    if command.weak is not None:
        weak = sampling.load(*command.weak, trust_code=command.trust_code, decode=False)
    if command.measured is not None:  # a file is read once
        y = sampling.read_measured(command.measured, model.info).y
        command = command._replace(measured=command.measured._replace(y=y))
    config = sampling.resolve_defaults(command.config, model)
    gammas = [sampling.default_gamma(model)] if command.gammas is None else command.gammas
    _check_with_model(command, model, config, gammas)
    if command.export is not None:
        if processes.is_main_process():
            _export(command, model, config, command.export)
        processes.wait("the sampler is exported")
        return
    if processes.is_main_process():
        prepare_folder(command.out / "png" if as_pngs(command, model) else command.out)
        check_is_no_folder(*(command.out / f"samples.{kind}" for kind in ("npz", "csv", "json")))

    if command.fit:
        fitted = _fitted(command, model, config, gammas)
        # Nodes are constants of the program, which must be the same everywhere, to the bit.
        config = config._replace(grid=tuple(processes.broadcast_from_main(fitted).tolist()))
    drawn = _draw(command, model, weak, config, gammas)
    if processes.is_main_process():
        seen = write(command, model, config, drawn)
        if config.guidance not in guidance.methods.WITHOUT_NULL:
            _warn_of_null(command.workdir, model)
        print(f"{sum(len(x) for x in drawn.x)} samples in {drawn.seconds:.1f} s: {seen}")
    processes.wait("the samples are written")


def _check_with_model(
    command: SampleCommand, model: sampling.Model, config: sampling.SamplerConfig, gammas: list[float]
) -> None:
    if not isinstance(model.info.examples, Latents) and (command.tile or not command.decode):
        flag = "--tile" if command.tile else "--nodecode"
        raise UserError(f"{flag} is for a model of latents, and {command.workdir} draws none: leave it out")
    if command.diagnose:
        sampling.check_gap(config, model)
    for prompt in (*command.conds, *command.negatives, *(prompt for prompt, _ in command.composed)):
        prompts.parse(prompt, model.info.fields)
    if command.measured is not None:
        measured = sampling.read_measured(command.measured, model.info)
        sampling.request(model, "", command.num, measured=measured)
        if _ends_at_data(config) and (measured.noise == 0).any():
            print(
                f"warning: {config.solver} evaluates the velocity at t = 1, where it does not know what was measured "
                "without noise: ab2 fits it better",
                file=sys.stderr,
            )
    if command.save == "csv":
        check_table([""] if command.compose else command.conds, model.info)
    negative_powers = min(gammas) < 0 or command.negatives or any(w < 0 for _, w in command.composed)
    if config.sampler == "fkc" and negative_powers:
        print(
            "warning: with negative powers there may be no such law (flowguide.analytic.tail_precision tells for "
            "Gaussian mixtures); particles that drift off are reported",
            file=sys.stderr,
        )


def _ends_at_data(config: sampling.SamplerConfig) -> bool:
    """Returns whether a solver of fixed steps evaluates the velocity at the end of the last one."""
    solver = solvers.SOLVERS.get(str(config.solver))
    return solver is not None and 1.0 in solver(paths.linear()).nodes


def _draw(
    command: SampleCommand,
    model: sampling.Model,
    weak: sampling.Model | None,
    config: sampling.SamplerConfig,
    gammas: list[float],
) -> Drawn:
    """Draws one cell for each γ and condition, all by the same compiled program."""
    started = time.perf_counter()
    cells, drawn, ess = [], [], {}
    for gamma, cond in product(gammas, command.conds):
        title = f"{cond or 'unconditional'}, γ = {gamma:g}"
        if processes.is_main_process():
            print(title, flush=True)
        asked: dict[str, Any] = {
            "gamma": gamma * command.first_weight,
            "compose": command.composed,
            "config": config,
            "seed": command.seed,
            "batch_size": command.batch_size,
            "progress": processes.is_main_process(),
            **command.negative(),
        }
        cell = {"cond": cond, "gamma": gamma, "first": len(cells) * command.num, "num": command.num}
        if config.sampler == "fkc":
            laws = sampling.sample_particles(model, cond, num=-(-command.num // config.particles), **asked)
            drawn.append(sampling.resample_equal(laws, command.seed)[: command.num])
            ess[title] = laws.ess
            cell |= _about_particles(laws, title)
        else:
            s = sampling.sample(model, cond, num=command.num, weak=weak, measured=command.measured, **asked)
            drawn.append(s.x)
            cell["network_evaluations"] = int(s.evaluations.max())
        cells.append(cell)
    return Drawn(gammas, cells, drawn, ess, time.perf_counter() - started)


def _about_particles(laws: sampling.ParticleSamples, title: str) -> dict[str, Any]:
    """Returns what to know of the particles of some laws; warns if they have collapsed."""
    count = laws.x.shape[1]
    starts = [len(np.unique(a)) for a in laws.ancestors]
    if laws.ess[:, -1].min() < 0.1 * count or min(starts) < 0.1 * count:
        print(
            f"warning: {title}: of {count} particles the weights leave {laws.ess[:, -1].min():.1f} at the end, which "
            f"come from {min(starts)} at the start: the samples are alike. More --particles, a lower --gamma, "
            "--clip=0.1 or --until=0.5 help",
            file=sys.stderr,
        )
    return {
        "network_evaluations": laws.evaluations,
        "log_z": [round(float(z), 4) for z in laws.log_z],
        "ess_at_the_end": [round(float(e), 2) for e in laws.ess[:, -1]],
        "ancestors": starts,
    }


def _fitted(
    command: SampleCommand, model: sampling.Model, config: sampling.SamplerConfig, gammas: list[float]
) -> tuple[float, ...]:
    cells = list(product(gammas, command.conds))
    pilot = [cells[i % len(cells)] for i in range(max(PILOT, len(cells)))]
    silent = not processes.is_main_process()
    with tqdm(total=FIT_ITERATIONS, desc="fitting the grid", dynamic_ncols=True, disable=silent) as bar:

        def progress(iteration: int, distance: float) -> None:
            bar.update(iteration - bar.n)
            bar.set_postfix(rms_error=f"{distance:.5f}")

        return sampling.fit_grid(
            model,
            [cond for _, cond in pilot],
            gamma=np.array([gamma for gamma, _ in pilot]),
            config=config,
            seed=command.seed,
            iterations=FIT_ITERATIONS,
            progress=progress,
            **command.negative(),
        )


def _export(command: SampleCommand, model: sampling.Model, config: sampling.SamplerConfig, file: Path) -> None:
    prepare_folder(file.parent)
    content = sampling.export(model, config=config, **command.negative())
    storage.write_bytes(file, content)
    about = {
        "data": info_to_json(model.info),
        "train_step": model.step,
        "ema": model.ema,
        "negative": command.negatives,
    }
    storage.write_text(file.with_name(file.name + ".json"), as_json({**about, **config._asdict()}))
    print(f"{file}: {len(content):,} bytes; try: python examples/serve.py {file}")
    if isinstance(model.info.examples, Latents):
        print(f"it returns latents: flowguide.autoencoder.load_vae('{command.workdir / FILE}') decodes them")


def _warn_of_null(workdir: Path, model: sampling.Model) -> None:
    """Warns if the null token was never trained: guidance by it does not fail, it is guidance by noise."""
    if not sampling.guided_by_null(model):
        return
    null = sampling.kept_null(workdir, model)
    if null.untouched:
        print(f"warning: the null token of {', '.join(null.untouched)} was never trained", file=sys.stderr)
    if not null.gap >= 1e-3:
        print(
            f"warning: u(x, c) and u(x, ∅) differ by {null.gap:.1e} of their size: guidance does nothing, train on",
            file=sys.stderr,
        )


def _methods_help() -> str:
    return "guidance methods and the defaults of their settings:\n" + guidance.methods.summary()


COMMAND = Command(DESCRIPTION, sample_flags.define, main, epilogue=_methods_help)
