"""The command ``evaluate``."""

from __future__ import annotations

import signal
import sys
from itertools import product
from pathlib import Path

from absl import flags

from flowguide import build, checkpoint, evaluation, guidance, page, processes, sampling, storage, times
from flowguide.cli import sample_command, sample_flags
from flowguide.cli.command import Command
from flowguide.cli.common import (
    define_process_flags,
    define_trust_flag,
    join_processes,
    keep_compiled_in_run,
    numbers,
)
from flowguide.cli.evaluate_table import print_tables
from flowguide.cli.sample_command import SampleCommand
from flowguide.config import Config, read_config
from flowguide.errors import UserError, one_line
from flowguide.evaluation.run import NUM_REAL
from flowguide.evaluation.sweep import GAMMAS, OTHER

DESCRIPTION = """
Measures what guidance buys: adherence and quality for variety, as γ grows.

  flowguide evaluate --workdir=runs/avatars --gamma=1,1.5,2,3,5 --guidance=cfg,apg --num=2000

It draws samples under the conditions of held-out examples, for all combinations of --step, --ema, --gamma,
--guidance, --interval, --solver and --steps, and prints a row for each: Fréchet distance, KID, Inception score,
precision, recall, density, coverage, adherence to the condition, authenticity, network evaluations and seconds. Every
row has the same noise and conditions. evaluation.json says with each number how it came about, and evaluation.png draws
them over γ.

Features, class probabilities and adherence are by default those of a judge: a small classifier that is trained on the
run's own training data first. Its first row, held-out real examples, shows how far it can be trusted. The command
resumes when it is run again, and computes again what belongs to another checkpoint or to other data.

With --html it also writes evaluation.html, one file to show: the curves, the table, and samples to explore by γ, steps,
condition and guidance, and along t.
"""

SWEPT = ("guidance", "solver", "steps", "interval")  # flags of sample that take several values here
PARTICLES = ("particles", "proposal", "clip", "until")  # flags of sample for its sampler fkc
NEWEST, BEST = "newest", "best"
PAGE = "evaluation.html"


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("workdir", None, "folder that train has written, or gs://BUCKET/NAME", flag_values=values)
    flags.DEFINE_list(
        "step",
        None,
        "checkpoints: training steps, newest, or best in validation; by default the one that sample takes",
        flag_values=values,
    )
    flags.DEFINE_list(
        "ema",
        None,
        "relative widths of averages of the parameters, as 0.05,0.1,0.15, see sample --help; by default the average of "
        "the checkpoint",
        flag_values=values,
    )
    flags.DEFINE_list(
        "gamma",
        None,
        f"guidance scales γ; by default {','.join(f'{g:g}' for g in GAMMAS)}, or 1 if nothing can guide the model",
        flag_values=values,
    )
    sample_flags.define_negative(values)
    values[
        "negative"
    ].help += f'; "{OTHER}" is the condition of another held-out example (a class of that name is "label={OTHER}")'
    sample_flags.define_guidance(values)
    sample_flags.define_sampler(values)
    _take_several(values)
    flags.DEFINE_integer("num", 2000, "samples of each row and seed", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "seeds", 1, "numbers become mean ± standard deviation over so many seeds", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "the first seed, of noise and conditions", flag_values=values)
    flags.DEFINE_string(
        "features",
        "judge",
        "feature network: judge, or inception:FILE with the weights pt_inception-2015-12-05 (docs/metrics.md); vectors "
        "are features themselves",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "resize",
        None,
        ["adm", "torch-fidelity", "pytorch-fid", "clean-fid"],
        "the package whose resizing to follow, for --features=inception; by default adm",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_real", NUM_REAL, "training examples to compare with, at most", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer("batch_size", 100, "samples at a time, over all devices", lower_bound=1, flag_values=values)
    flags.DEFINE_string(
        "data",
        None,
        "where the run's data are now, if they have moved: a path or, for data known by name, the folder of prepared "
        "data",
        flag_values=values,
    )
    flags.DEFINE_string("out", None, "folder for the results; by default WORKDIR/evaluation", flag_values=values)
    _define_page(values)
    define_trust_flag(values)
    define_process_flags(values)


def _define_page(values: flags.FlagValues) -> None:
    flags.DEFINE_bool(
        "html", False, "also write evaluation.html, one file with curves, table and samples", flag_values=values
    )
    flags.DEFINE_integer(
        "html_samples",
        None,
        f"samples of each setting in it; by default as many as fit, up to {page.IMAGES} images or {page.POINTS} points",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "html_cond",
        [],
        'conditions to choose in it, as "hat=red,glasses=none"; repeat the flag; by default '
        f"{page.CONDITIONS} of held-out examples",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "html_negative",
        [],
        'negative conditions to choose in it, beside none; "" for none alone; by default one if the only field is a '
        "class",
        flag_values=values,
    )
    flags.DEFINE_list(
        "html_steps",
        [],
        f"numbers of steps to choose in it; by default those of the evaluation and fewer: "
        f"{','.join(map(str, page.STEPS))}",
        flag_values=values,
    )


def _take_several(values: flags.FlagValues) -> None:
    """Makes flags of ``sample`` take several values, and leaves out what ``evaluate`` does not draw."""
    for name in SWEPT:
        flag = values[name]
        default = f" (default: {str(flag.default_as_str).strip(chr(39))})" if flag.default is not None else ""
        delattr(values, name)
        if name == "interval":
            flags.DEFINE_multi_string(name, None, f"{flag.help}, or none for all t", flag_values=values)
        else:
            flags.DEFINE_list(name, None, f"{flag.help}; several with commas{default}", flag_values=values)
    for name in (*PARTICLES, "sampler", "grid"):
        delattr(values, name)
    default = sampling.SamplerConfig()
    flags.DEFINE_enum(
        "sampler",
        default.sampler,
        ["flow", "pc"],
        "flow: the guided flow or SDE itself; pc: with --corrections Langevin steps after each step",
        flag_values=values,
    )
    flags.DEFINE_string(
        "grid",
        str(default.grid),
        f"how the steps are spaced: {', '.join(sorted(times.WARPS))}, with settings as shift:s=2; or nodes of your "
        "own, 0,0.3,0.7,1",
        flag_values=values,
    )


def main(values: flags.FlagValues) -> None:
    """Evaluates; everything that can be wrong is found before anything is computed."""
    join_processes(values)
    if values.workdir is None:
        raise UserError("expected --workdir=DIR, a folder that train has written; --help lists all flags")
    workdir = storage.path(values.workdir)
    out = storage.path(values.out) if values.out else workdir / "evaluation"
    commands = _commands(values)
    gammas = commands[0].gammas if values.gamma is None else numbers("gamma", values.gamma)
    _check_features(values)
    keep_compiled_in_run(workdir)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX has taken it if there are several processes; here it ends
    processes.check_same(
        "command", {name: values[name].value for name in values if name not in ("process_id", "coordinator")}
    )

    models = _models(values, workdir)
    config = read_config(workdir, trusted=None if values.trust_code else "")
    settings = _settings(models, gammas, commands, values.trust_code)
    network = None
    if values.features != "judge":
        network = evaluation.inception(values.features.partition(":")[2], values.resize or "adm")
    data = build.splits(_with_data(config, values.data))
    plan = page.plan(settings, data, _wanted(values)) if values.html else None
    if plan is not None and processes.is_main_process():
        print(f"{out / PAGE}: {plan}", file=sys.stderr)
        for note in plan.notes:
            print(note, file=sys.stderr)
    found = evaluation.evaluate(
        settings,
        data,
        out,
        num=values.num,
        seeds=range(values.seed, values.seed + values.seeds),
        features=network,
        num_real=values.num_real,
        batch_size=values.batch_size,
        progress=True,
    )
    if found is not None:
        _show(found._replace(about={"workdir": str(workdir), "ema": config.ema.to_dict(), **found.about}), out, plan)
    processes.wait("the evaluation is written")


def _commands(values: flags.FlagValues) -> list[SampleCommand]:
    """Returns what ``sample`` would make of each combination of flags, checked by it."""
    own = flags.FlagValues()
    sample_flags.define_negative(own)
    sample_flags.define_guidance(own)
    sample_flags.define_sampler(own)
    same = [values["workdir"].serialize()]
    for name in own:
        if name in values and name not in SWEPT and values[name].present:
            same += values[name].serialize().splitlines()  # one line for each use of a flag that may be repeated
    axes = [[(name, text) for text in _texts(name, values[name].value)] for name in SWEPT]
    found = []
    for point in product(*axes):
        one = flags.FlagValues()
        sample_flags.define(one)
        one(["sample", *same, *(f"--{name}={text}" for name, text in point if text is not None)])
        command = sample_command.parse(one)
        if ("interval", None) in point and values.interval is not None:  # none was asked for, whatever the recipe
            command = command._replace(config=command.config._replace(interval=None))
        found.append(command)
    if any(command.fit for command in found):
        raise UserError("--grid=fitted fits a grid to one γ and condition: give a grid by name or by its nodes")
    return found


def _texts(name: str, given: list[str] | None) -> list[str | None]:
    """Returns the values of a flag that takes several; None where it is not given."""
    if given is None:
        return [None]
    return list(dict.fromkeys(None if (name, text) == ("interval", "none") else text for text in given))


def _check_features(values: flags.FlagValues) -> None:
    kind, _, file = values.features.partition(":")
    if values.features != "judge" and not (kind == "inception" and file):
        raise UserError(f"--features is judge or inception:FILE; got {values.features!r:.100}")
    if values.resize and kind != "inception":
        raise UserError("--resize does nothing without --features=inception:FILE: add that, or leave --resize out")


def _models(values: flags.FlagValues, workdir: Path) -> dict[str, sampling.Model]:
    """Returns the models of all checkpoints by the names of their weights."""
    steps: dict[str, int | None] = {}
    for text in values.step or []:
        if text not in (NEWEST, BEST) and not text.isdecimal():
            raise UserError(f"--step takes training steps, newest and best; got {text!r:.100}")
        steps[text] = int(text) if text.isdecimal() else None
    config = read_config(workdir, trusted=None if values.trust_code else "")
    if BEST in steps and (best := checkpoint.best_step(workdir)) is None:
        raise UserError(f"no checkpoint in {workdir} has a validation loss: leave out --step=best")
    elif BEST in steps:
        steps[BEST] = best
    widths = [None] if values.ema is None else numbers("ema", values.ema)
    return {
        name if width is None else f"{name}, ema {width:g}": sampling.load(
            workdir, step, ema=width, trust_code=values.trust_code
        )
        for name, step in (steps or {config.use: None}).items()
        for width in widths
    }


def _settings(
    models: dict[str, sampling.Model], gammas: list[float] | None, commands: list[SampleCommand], trust_code: bool
) -> list[evaluation.Setting]:
    weak = commands[0].weak and sampling.load(*commands[0].weak, trust_code=trust_code, decode=False)
    away, weight = commands[0].negatives, commands[0].gamma_negative
    configs = [command.config for command in commands]
    return evaluation.settings(models, gammas, configs, weak, away, 1.0 if weight is None else weight)


def _with_data(config: Config, place: str | None) -> Config:
    """Returns the config with the place where its data are now."""
    if place is not None:
        config.data.update({"path" if config.data.path else "data_dir": place})
    return config


def _wanted(values: flags.FlagValues) -> page.Wanted:
    """Returns what is asked of the page."""
    steps = numbers("html_steps", values.html_steps) if values.html_steps else []
    if not all(n.is_integer() for n in steps):
        raise UserError(f"--html_steps takes whole numbers; got {','.join(values.html_steps)!r}")
    return page.Wanted(values.html_samples, values.html_cond, values.html_negative, [int(n) for n in steps])


def _show(found: evaluation.Evaluation, out: Path, plan: page.Plan | None) -> None:
    """Writes and prints the results; a figure or a page that fails loses none."""
    written = [evaluation.save(found, out)]
    print_tables(found)
    pictures = {"evaluation.png": lambda file: evaluation.save_figure(file, found)}
    if plan is not None:
        pictures[PAGE] = lambda file: page.write(file, found, plan, progress=True)
    for name, save in pictures.items():
        try:
            save(out / name)
            written.append(out / name)
        except Exception as error:  # whatever it is, the numbers are safe
            print(f"warning: no {name} ({type(error).__name__}: {one_line(error)})", file=sys.stderr)
    print(" and ".join(map(str, written)))


def _methods_help() -> str:
    return "guidance methods and the defaults of their settings:\n" + guidance.methods.summary()


COMMAND = Command(DESCRIPTION, define, main, epilogue=_methods_help)
