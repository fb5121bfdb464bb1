"""Draws samples from a training run, guided towards a condition and away from others.

python sample.py --workdir=runs/avatars --cond="hat=red,glasses=none" --negative="beard=yes" --gamma=3 --num=64

The guided velocity is u_∅ + γ(u_c − u_∅) − γ_n·Σ(u_d − u_∅), for the condition c and the negative conditions d; other
methods by --guidance. A field that --cond leaves out is ∅. Several --cond or several values of --gamma draw a figure
with γ down the rows and conditions across.

Sample i depends on --seed and i alone, up to rounding: with another --batch_size or number of devices the sums are
rounded in another order, and about one value of an image in 10,000 differs by 1 of 255.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

import flowguide
from flowguide import cli, guidance, processes, prompts, sampling, times
from flowguide.cli import folder, join_processes, prepare_workdir, run_script
from flowguide.data import info_to_json
from flowguide.errors import UserError
from flowguide.networks.perturbation import Perturbation
from flowguide.pictures import save_figure, save_gaps, save_png, save_sizes

# From here on the weights of trained networks of images are errors, not evidence: benchmarks/tilted_images.py.
UNTIL_IMAGES = 0.7

flags.adopt_module_key_flags(cli)
WORKDIR = flags.DEFINE_string("workdir", None, "folder that train.py has written")
STEP = flags.DEFINE_integer("step", None, "checkpoint of this training step; by default the newest")
COND = flags.DEFINE_multi_string(
    "cond",
    [""],
    'what to draw, "hat=red,glasses=none", or the value alone where there is '
    "one field; give it again for another column of the figure",
)
NEGATIVE = flags.DEFINE_multi_string("negative", [], "what to avoid, written like --cond; give it again to avoid more")
GAMMA = flags.DEFINE_list(
    "gamma", ["2"], 'guidance scale γ: 0 unconditional, 1 conditional, more is guided; "1,2,4" draws a row for each'
)
GAMMA_NEGATIVE = flags.DEFINE_float("gamma_negative", 1.0, "weight γ_n of each negative condition")
REPLACE_NULL = flags.DEFINE_bool(
    "replace_null",
    False,
    "let the one --negative take the place of ∅, (1 − γ)u_d + γu_c, instead of weighing it by γ_n = --gamma_negative",
)
GUIDANCE = flags.DEFINE_string(
    "guidance",
    "cfg",
    'the method, with its settings, as "apg:momentum=-0.5:largest=15"; below are all, with their defaults',
)
SCHEDULE = flags.DEFINE_enum(
    "schedule", "constant", sorted(guidance.SCHEDULES), "of γ over time, its mean being --gamma; 1 is conditional"
)
COMPOSE = flags.DEFINE_string(
    "compose",
    None,
    'several conditions at once, in the place of --cond: "3:1.0,7:-0.5" or "hat=red:1.0,beard=yes:-0.5" is '
    "u_∅ + γ[1.0(u_3 − u_∅) − 0.5(u_7 − u_∅)]",
)
WEAK = flags.DEFINE_string("weak", None, "folder of the worse run that --guidance=autoguidance moves away from")
WEAK_STEP = flags.DEFINE_integer("weak_step", None, "its checkpoint; an early one of --workdir itself does as well")
PERTURB = flags.DEFINE_string(
    "perturb",
    None,
    'what --guidance=perturbed takes from the network: "skip=1+2" blocks (SLG, STG), "attention=identity" (PAG), '
    '"attention=blurred,blur=2" (SEG); with "layers=0+3" only there',
)
REUSE = flags.DEFINE_integer(
    "reuse", 1, "guided steps for which u_c − u_∅ is kept before it is computed again", lower_bound=1
)
INTERVAL = flags.DEFINE_list("interval", None, "guide only for t between these two, as 0.2,0.8 (0 is noise, 1 is data)")
RESCALE = flags.DEFINE_float(
    "rescale", 0.0, "bring the standard deviation back to the conditional one: 0 none, 1 fully"
)
SAMPLER = flags.DEFINE_enum(
    "sampler",
    "flow",
    list(sampling.SAMPLERS),
    "flow: the guided flow, or SDE, itself; fkc: --particles weighted samples of each law p(x)^(1−γ)·p(x|c)^γ, which "
    "the guided flow is not, equally weighted at the end; pc: --corrections Langevin steps towards that law after each "
    "step",
)
PARTICLES = flags.DEFINE_integer("particles", 64, "of each law, for --sampler=fkc: more collapse less", lower_bound=2)
CORRECTIONS = flags.DEFINE_integer("corrections", 2, "after each step, for --sampler=pc", lower_bound=1)
PROPOSAL = flags.DEFINE_float(
    "proposal", None, "for --sampler=fkc: γ of the guided process that proposes, where it is not that of the law"
)
CLIP = flags.DEFINE_float(
    "clip", None, "for --sampler=fkc: keep what a step adds to the log-weights this close to its mean"
)
UNTIL = flags.DEFINE_float(
    "until",
    None,
    "for --sampler=fkc: gather weights for t up to this, and none after, where they divide the network's errors by "
    f"1 − t; by default {UNTIL_IMAGES:g} for images and 1 for points",
)
SOLVER_HELP = (
    f"how to integrate, one of {', '.join(sampling.SOLVER_NAMES)}. "
    f"{', '.join(sampling.ADAPTIVE)} choose their steps to meet --tolerance; "
    f"{', '.join(sorted(sampling.STOCHASTIC))} add noise on the way, see --eta; the others take --steps. By default "
    f"{', '.join(f'{own.solver} for {name}' for name, own in sampling.SAMPLERS.items())}"
)
SOLVER = flags.DEFINE_string("solver", None, SOLVER_HELP)
STEPS = flags.DEFINE_integer("steps", 25, "steps of the solver; not used by adaptive ones", lower_bound=1)
GRID = flags.DEFINE_string(
    "grid",
    "uniform",
    f"how the steps are spaced: {', '.join(sorted(times.WARPS))}; nodes of your own, 0,0.3,0.7,1; or fitted: a pilot "
    "solve places --steps steps where this network, γ and condition need them (samples.json keeps the nodes)",
)
TOLERANCE = flags.DEFINE_float("tolerance", 1e-4, "relative and absolute tolerance of adaptive solvers")
ETA = flags.DEFINE_float(
    "eta",
    None,
    "strength of the noise of stochastic solvers: 0 none, 1 memoryless; by default 1, and 2 for --sampler=fkc",
    lower_bound=0.0,
)
PASSES = flags.DEFINE_enum(
    "passes",
    "together",
    ["together", "apart"],
    "one network call for u_c and its references, or one for each, which needs less memory",
)
NUM = flags.DEFINE_integer("num", 64, "samples for each condition and γ", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "samples at a time, over all devices", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "of the noise")
OUT = flags.DEFINE_string("out", None, "folder for the results; by default WORKDIR/samples")
DIAGNOSE = flags.DEFINE_bool(
    "diagnose", False, "also draw gap.png: how u(x, c) and u(x, ∅) differ along the solve, for each γ"
)
EXPORT = flags.DEFINE_string(
    "export",
    None,
    "write the sampler, with network, guidance and solver, to this file and draw nothing: StableHLO that runs with jax "
    "alone, for any number of samples, conditions and γ (examples/serve.py); FILE.json says what it takes",
)
SAVE = flags.DEFINE_enum(
    "save", "png", ["png", "npz", "none"], "each sample as a PNG, all in one NPZ, or only the figure"
)

FITTED, PILOT, FIT_ITERATIONS = "fitted", 32, 20


def main() -> None:
    # Settings first: all that can be wrong is found before anything is computed.
    if WORKDIR.value is None:
        raise UserError("expected --workdir=DIR, a folder that train.py has written; --help lists all flags")
    out = folder(OUT.value) if OUT.value else folder(WORKDIR.value) / "samples"
    join_processes()
    _keep_compiled(folder(WORKDIR.value))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX has taken it where there are several processes; here it ends
    own = flags.FLAGS.get_flags_for_module(sys.argv[0])
    processes.check_same("command", {flag.name: flag.value for flag in own})
    gammas = _numbers("gamma", GAMMA.value)
    method = _method()
    composed = _composition(COMPOSE.value)
    conds = [composed[0][0]] if composed else COND.value
    _check_flags(method, composed)

    run = sampling.load(WORKDIR.value, STEP.value)
    if method.sampler == "fkc" and UNTIL.value is None and run.info.kind == "image":
        method = method._replace(until=UNTIL_IMAGES)
    weak = sampling.load(WEAK.value or WORKDIR.value, WEAK_STEP.value) if _weak() else None
    if DIAGNOSE.value:
        sampling.check_gap(method, run)
    if not run.info.fields and not flags.FLAGS["gamma"].present:
        gammas = [1.0]  # there is nothing to be guided towards
    for prompt in (*conds, *NEGATIVE.value, *(prompt for prompt, _ in composed)):
        prompts.parse(prompt, run.info.fields)
    if method.sampler == "fkc" and (min(gammas) < 0 or NEGATIVE.value or any(w < 0 for _, w in composed[1:])):
        print(
            "warning: with negative powers there may be no such law (flowguide.analytic.tail_precision tells for "
            "Gaussian mixtures): particles that drift off say so",
            file=sys.stderr,
        )
    if EXPORT.value is not None:
        if processes.is_main_process():
            _export(run, method, folder(EXPORT.value))
        processes.wait("the sampler is exported")
        return
    if processes.is_main_process():
        prepare_workdir(out / "png" if _as_png(run) else out)
        _check_is_no_folder(out / "samples.npz", out / "samples.json")

    if GRID.value == FITTED:
        fitted = _fitted(run, list(product(gammas, conds)), method)
        # Nodes are constants of the program, which must be the same everywhere, to the bit.
        method = method._replace(grid=tuple(processes.broadcast_from_main(fitted).tolist()))

    started = time.perf_counter()
    cells, drawn, sizes = _draw(run, weak, method, gammas, conds, composed)
    seconds = time.perf_counter() - started

    if processes.is_main_process():
        seen = _write(out, run, method, gammas, cells, drawn, sizes, seconds)
        _warn_of_null(run)
        print(f"{sum(len(x) for x in drawn)} samples in {seconds:.1f} s: {seen}")
    processes.wait("the samples are written")


def _draw(
    run: sampling.Run,
    weak: sampling.Run | None,
    method: sampling.SamplerConfig,
    gammas: list[float],
    conds: list[str],
    composed: list[tuple[str, float]],
) -> tuple[list[dict[str, Any]], list[np.ndarray], dict[str, np.ndarray]]:
    """One cell for each γ and condition, all by the same compiled program.

    Returns:
      What to know of each cell, its samples, and for --sampler=fkc the effective sample sizes by title.
    """
    cells, drawn, sizes = [], [], {}
    for gamma, cond in product(gammas, conds):
        title = f"{cond or 'unconditional'}, γ = {gamma:g}"
        if processes.is_main_process():
            print(title, flush=True)
        asked: dict[str, Any] = {
            "gamma": gamma * composed[0][1] if composed else gamma,
            "negative": NEGATIVE.value,
            "gamma_negative": GAMMA_NEGATIVE.value,
            "compose": composed[1:],
            "method": method,
            "seed": SEED.value,
            "batch_size": BATCH_SIZE.value,
            "progress": processes.is_main_process(),
        }
        cell = {"cond": cond, "gamma": gamma, "first": len(cells) * NUM.value, "num": NUM.value}
        if method.sampler == "fkc":
            laws = sampling.sample_particles(run, cond, num=-(-NUM.value // method.particles), **asked)
            drawn.append(sampling.resample_equal(laws, SEED.value)[: NUM.value])
            sizes[title] = laws.ess
            cell |= _about(laws, title)
        else:
            s = sampling.sample(run, cond, num=NUM.value, weak=weak, **asked)
            drawn.append(s.x)
            cell["network_evaluations"] = int(s.evaluations.max())
        cells.append(cell)
    return cells, drawn, sizes


def _keep_compiled(workdir: Path) -> None:
    """Keeps compiled programs in the run's folder, as train.py does, so that the next command need not compile them.

    What JAX's environment variables say comes first. Nothing is written beside a run that others own.
    """
    ours = (workdir / "config.json").exists() and os.access(workdir, os.W_OK)
    if ours and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:  # many of ours are small
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _write(
    out: Path,
    run: sampling.Run,
    method: sampling.SamplerConfig,
    gammas: list[float],
    cells: list[dict[str, Any]],
    drawn: list[np.ndarray],
    sizes: dict[str, np.ndarray],
    seconds: float,
) -> Path:
    """Writes the samples and how they came about, then the figures; returns where the samples can be seen.

    A figure that cannot be drawn is no reason to lose samples.
    """
    try:
        _save(out, run, cells, drawn)
        _write_record(out, run, cells, method, seconds)
    except OSError as error:
        raise UserError(f"cannot write the samples to {out} ({error.strerror}): make room, or give --out") from error
    conds = [cell["cond"] for cell in cells[: len(cells) // len(gammas)]]
    columns = [COMPOSE.value] if COMPOSE.value else [cond or "∅" for cond in conds]

    def grid() -> None:
        figure = np.stack(drawn).reshape(len(gammas), len(conds), *drawn[0].shape)
        save_figure(out / "grid.png", figure, [f"γ = {g:g}" for g in gammas], columns)

    def gap() -> None:
        away = {"negative": NEGATIVE.value, "gamma_negative": GAMMA_NEGATIVE.value, "method": method}
        gaps = {f"γ = {g:g}": sampling.gap(run, conds[0], gamma=g, seed=SEED.value, **away) for g in gammas}
        save_gaps(out / "gap.png", gaps, f"{conds[0] or 'unconditional'}, {method.solver}, guidance {method.guidance}")
        print(f"the gap along the solve: {out / 'gap.png'}")

    def ess() -> None:
        save_sizes(out / "ess.png", sizes, np.asarray(sampling.nodes(method))[1:], method.particles)
        print(f"effective sample sizes: {out / 'ess.png'}")

    shown = _attempt("grid.png", grid)
    if sizes:
        _attempt("ess.png", ess)
    if DIAGNOSE.value:
        _attempt("gap.png", gap)
    return out / "grid.png" if shown else out


def _attempt(name: str, draw: Callable[[], None]) -> bool:
    """Draws a figure and tells whether that went well; if not, says why."""
    try:
        draw()
    except Exception as error:  # whatever it is, the samples are safe
        print(f"warning: no {name} ({type(error).__name__}: {error}); the samples are saved", file=sys.stderr)
        return False
    return True


def _check_is_no_folder(*files: Path) -> None:
    """Raises ``UserError`` where a file to be written is a folder: found out before anything is computed."""
    for file in files:
        if file.is_dir():
            raise UserError(f"expected a file to write, and {file} is a folder: give another name, or move it away")


def _export(run: sampling.Run, method: sampling.SamplerConfig, file: Path) -> None:
    prepare_workdir(file.parent)
    content = sampling.export(run, negative=NEGATIVE.value, gamma_negative=GAMMA_NEGATIVE.value, method=method)
    file.write_bytes(content)
    about = {"data": info_to_json(run.info), "train_step": run.step, "negative": NEGATIVE.value, **method._asdict()}
    file.with_name(file.name + ".json").write_text(_json(about))
    print(f"{file}: {len(content):,} bytes; try: python examples/serve.py {file}")


def _about(laws: sampling.ParticleSamples, title: str) -> dict[str, Any]:
    """What to know of the particles of some laws; says so where they have collapsed."""
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


def _warn_of_null(run: sampling.Run) -> None:
    """Guidance by a null token that was never trained is guidance by noise: it does not fail, so it is looked for."""
    if not sampling.guided_by_null(run):
        return
    null = sampling.kept_null(str(WORKDIR.value), run)
    if null.untouched:
        print(f"warning: the null token of {', '.join(null.untouched)} was never trained", file=sys.stderr)
    if not null.gap >= 1e-3:
        print(
            f"warning: u(x, c) and u(x, ∅) differ by {null.gap:.1e} of their size: guidance does nothing, train on",
            file=sys.stderr,
        )


def _method() -> sampling.SamplerConfig:
    """How to sample, as the flags say; a grid that is to be fitted is uniform first."""
    interval = None
    if INTERVAL.value is not None:
        start, stop = _numbers("interval", INTERVAL.value, 2)
        interval = (start, stop)
    name, settings = _settings(GUIDANCE.value)
    grid = "uniform" if GRID.value == FITTED else GRID.value
    return sampling.resolve_defaults(
        sampling.SamplerConfig(
            sampler=SAMPLER.value,
            particles=PARTICLES.value,
            corrections=CORRECTIONS.value,
            proposal=PROPOSAL.value,
            clip=CLIP.value,
            until=1.0 if UNTIL.value is None else UNTIL.value,
            guidance=name,
            settings=settings,
            schedule=SCHEDULE.value,
            perturbation=_perturbation(PERTURB.value),
            reuse=REUSE.value,
            solver=SOLVER.value,
            steps=STEPS.value,
            grid=tuple(_numbers("grid", grid.split(","))) if "," in grid else grid,
            interval=interval,
            replace_null=REPLACE_NULL.value,
            rescale=RESCALE.value,
            tolerance=TOLERANCE.value,
            eta=ETA.value,
            passes=PASSES.value,  # pyright: ignore[reportArgumentType]
        )
    )


def _weak() -> bool:
    return WEAK.value is not None or WEAK_STEP.value is not None


def _check_flags(method: sampling.SamplerConfig, composed: list[tuple[str, float]]) -> None:
    """Raises ``UserError`` for flags that do nothing, or cannot be had together, whatever the run."""
    adaptive = method.solver in sampling.ADAPTIVE
    fkc, away = ("--sampler=fkc", method.sampler == "fkc"), bool(NEGATIVE.value)
    acts_with = {
        "perturb": ("--guidance=perturbed", method.guidance == "perturbed"),
        "weak": ("--guidance=autoguidance", method.guidance == "autoguidance"),
        "weak_step": ("--guidance=autoguidance", method.guidance == "autoguidance"),
        "particles": fkc,
        "proposal": fkc,
        "clip": fkc,
        "until": fkc,
        "corrections": ("--sampler=pc", method.sampler == "pc"),
        "eta": (f"a --solver that adds noise ({', '.join(sampling.STOCHASTIC)})", method.solver in sampling.STOCHASTIC),
        "tolerance": (f"a --solver that chooses its steps ({', '.join(sampling.ADAPTIVE)})", adaptive),
        "grid": ("a --solver of fixed steps", not adaptive),
        "steps": ("a --solver of fixed steps, on a --grid by name", not adaptive and isinstance(method.grid, str)),
        "replace_null": ("--negative", away),
        "gamma_negative": ("a --negative that does not replace ∅", away and not method.replace_null),
    }
    given = [name for name in flags.FLAGS if flags.FLAGS[name].present and flags.FLAGS[name].value is not False]
    for name in given:
        need, acts = acts_with.get(name, ("", True))
        if not acts:
            raise UserError(f"--{name} does nothing without {need}: add that, or leave --{name} out")
    if composed and "cond" in given:
        raise UserError("--compose says all conditions itself: leave out --cond, or --compose")
    sampling.check_together(method, len(NEGATIVE.value), len(composed[1:]), _weak())
    one_network = {"grid=fitted": GRID.value == FITTED, "diagnose": DIAGNOSE.value, "export": EXPORT.value is not None}
    for name in (name for name, on in one_network.items() if on and (composed or _weak())):
        raise UserError(f"--{name} serves one network and plain conditions: leave out --compose and --weak")
    if GRID.value == FITTED:
        sampling.check_fit(method)
    if DIAGNOSE.value:
        sampling.check_gap(method)
    if EXPORT.value is not None:
        file = folder(EXPORT.value)
        _check_is_no_folder(file, Path(f"{file}.json"))
        if GRID.value == FITTED:
            raise UserError("--export takes a grid by name or by its nodes: samples.json has those of a fitted one")
        if method.sampler == "fkc":
            raise UserError("--export writes a sampler of single samples: leave out --sampler=fkc")
        for name in (
            n for n in given if n in ("cond", "gamma", "num", "batch_size", "seed", "out", "save", "diagnose")
        ):
            raise UserError(
                f"--{name} does nothing with --export: the file takes conditions, γ and seeds when it is run"
            )


def _settings(text: str) -> tuple[str, tuple[tuple[str, float], ...]]:
    """name:setting=number:setting=number"""
    name, *pairs = text.split(":")
    settings = []
    for pair in pairs:
        setting, _, value = pair.partition("=")
        settings.append((setting, _numbers(f"guidance={name}:{setting}", [value], 1, infinite=True)[0]))
    return name, tuple(settings)


def _composition(text: str | None) -> list[tuple[str, float]]:
    """prompt:weight,prompt:weight. The first weight scales γ itself, the others are given in units of it."""
    parts = []
    for part in text.split(",") if text else []:
        prompt, colon, weight = part.rpartition(":")
        if not colon:
            raise UserError(f'--compose takes condition:weight, separated by commas; got {part!r} in "{text}"')
        parts.append((prompt, _numbers("compose", [weight], 1)[0]))
    if parts and parts[0][1] == 0:
        raise UserError("the first condition of --compose needs a weight other than 0: put another one first")
    return [parts[0], *((prompt, weight / parts[0][1]) for prompt, weight in parts[1:])] if parts else []


def _perturbation(text: str | None) -> Perturbation:
    settings: dict[str, str] = {}
    for part in text.split(",") if text else []:
        name, _, value = part.partition("=")
        settings[name] = value
    for name in settings:
        if name not in Perturbation._fields:
            raise UserError(f"--perturb takes {', '.join(Perturbation._fields)}; got {name!r}")

    def blocks(name: str) -> tuple[int, ...]:
        texts = settings[name].split("+")
        if not all(text.isdecimal() and len(text) < 10 for text in texts):
            raise UserError(f"--perturb={name} takes numbers of blocks, 1+2; got {settings[name]!r:.100}")
        return tuple(int(text) for text in texts)

    p = Perturbation()
    return Perturbation(
        blocks("skip") if "skip" in settings else p.skip,
        settings.get("attention", p.attention),  # pyright: ignore[reportArgumentType]
        _numbers("perturb=blur", [settings["blur"]], 1)[0] if "blur" in settings else p.blur,
        blocks("layers") if "layers" in settings else p.layers,
    )


def _fitted(run: sampling.Run, cells: list[tuple[float, str]], method: sampling.SamplerConfig) -> tuple[float, ...]:
    pilot = [cells[i % len(cells)] for i in range(max(PILOT, len(cells)))]
    silent = not processes.is_main_process()
    with tqdm(total=FIT_ITERATIONS, desc="fitting the grid", dynamic_ncols=True, disable=silent) as bar:

        def progress(iteration: int, distance: float) -> None:
            bar.update(iteration - bar.n)
            bar.set_postfix(rms_error=f"{distance:.5f}")

        return sampling.fit_grid(
            run,
            [cond for _, cond in pilot],
            gamma=np.array([gamma for gamma, _ in pilot]),
            negative=NEGATIVE.value,
            gamma_negative=GAMMA_NEGATIVE.value,
            method=method,
            seed=SEED.value,
            iterations=FIT_ITERATIONS,
            progress=progress,
        )


def _save(out: Path, run: sampling.Run, cells: list[dict[str, Any]], drawn: list[np.ndarray]) -> None:
    """Every sample, as --save says; an NPZ also has what each was asked to be."""
    x = np.concatenate(drawn)
    if SAVE.value != "none" and not _as_png(run):
        asked: dict[str, np.ndarray] = {
            "gamma": np.repeat(np.array([cell["gamma"] for cell in cells], np.float32), NUM.value),
            "cond": np.repeat([COMPOSE.value or cell["cond"] for cell in cells], NUM.value),
        }
        if not COMPOSE.value:
            c = prompts.condition([cell["cond"] for cell in cells for _ in range(cell["num"])], run.info.fields)
            asked |= {f"value.{name}": a for name, a in c.value.items()}
            asked |= {f"present.{name}": a for name, a in c.present.items()}
        np.savez_compressed(out / "samples.npz", **{"x": x, **asked})  # pyright: ignore[reportArgumentType]
    elif _as_png(run):
        for i, image in enumerate(x):
            save_png(out / "png" / f"{i:06d}.png", image)


def _as_png(run: sampling.Run) -> bool:
    return SAVE.value == "png" and run.info.kind == "image"


def _write_record(out: Path, run: sampling.Run, cells: list, method: sampling.SamplerConfig, seconds: float) -> None:
    record = {
        "workdir": str(WORKDIR.value),
        "data": run.info.name,
        "train_step": run.step,
        "seed": SEED.value,
        "batch_size": BATCH_SIZE.value,
        "negative": NEGATIVE.value,
        "compose": COMPOSE.value,
        "weak": [WEAK.value, WEAK_STEP.value],
        "gamma_negative": None if REPLACE_NULL.value or not NEGATIVE.value else GAMMA_NEGATIVE.value,
        **method._asdict(),
        "cells": cells,
        "network_evaluations": sum(cell["num"] * cell["network_evaluations"] for cell in cells),
        "seconds": round(seconds, 3),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {"flowguide": flowguide.__version__, "jax": jax.__version__},
    }
    (out / "samples.json").write_text(_json(record))


def _json(value: Any) -> str:
    """JSON, in which what is not finite becomes a string, "inf" or "nan": there are no such numbers in it."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(v) for name, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _numbers(name: str, texts: list[str], count: int | None = None, infinite: bool = False) -> list[float]:
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        numbers = []
    if not numbers or count not in (None, len(numbers)):
        expected = f"{count} numbers" if count else "numbers"
        raise UserError(f"--{name} takes {expected} separated by commas; got {','.join(texts)!r}")
    if any(math.isnan(n) or (math.isinf(n) and not infinite) for n in numbers):
        raise UserError(f"--{name} takes finite numbers; got {','.join(texts)!r}")
    return numbers


if __name__ == "__main__":
    run_script(main, "\n\nguidance methods and the defaults of their settings:\n" + guidance.methods.summary() + "\n")
