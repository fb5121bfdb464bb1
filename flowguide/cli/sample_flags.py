"""The flags of ``sample``: names and help. Defaults are the library's."""

from __future__ import annotations

from typing import get_args

from absl import flags

from flowguide import guidance, sampling, solvers, times
from flowguide.cli.common import define_process_flags, define_trust_flag
from flowguide.sampling.checks import MEASURED_SOLVER
from flowguide.sampling.config import DDPM
from flowguide.sampling.request import GAMMA
from flowguide.schema import Images, Vectors

FITTED = "fitted"
_DEFAULT = sampling.SamplerConfig()


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    _define_request(values)
    define_negative(values)
    _define_measured(values)
    define_guidance(values)
    define_sampler(values)
    _define_output(values)
    define_process_flags(values)


def _define_request(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder that train has written, or gs://BUCKET/NAME", flag_values=values)
    flags.DEFINE_integer("step", None, "checkpoint of this training step; by default the newest", flag_values=values)
    flags.DEFINE_float(
        "ema",
        None,
        "relative width of another average of the parameters, as 0.1, which is made of the snapshots of a run with "
        "posthoc.every; by default the average of the checkpoint",
        flag_values=values,
    )
    flags.DEFINE_bool("decode", True, "of a model of latents: return images, else latents", flag_values=values)
    flags.DEFINE_integer(
        "tile",
        0,
        "of a model of latents: side in latents of the tiles in which they are decoded, where memory is short; 0: none",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "cond",
        [""],
        'what to draw, "hat=red,glasses=none", or the value alone if there is one field; repeat the flag for another '
        "column of the figure",
        flag_values=values,
    )
    flags.DEFINE_list(
        "gamma",
        None,
        'guidance scale γ: 0 unconditional, 1 conditional, more is guided; "1,2,4" draws a row for each; by default '
        f"{GAMMA:g}, or 1 if nothing can guide the model",
        flag_values=values,
    )
    flags.DEFINE_string(
        "compose",
        None,
        'several conditions at once, instead of --cond: "3:1.0,7:-0.5" or "hat=red:1.0,beard=yes:-0.5" is '
        "u_∅ + γ[1.0(u_3 − u_∅) − 0.5(u_7 − u_∅)]",
        flag_values=values,
    )
    define_trust_flag(values)


def define_negative(values: flags.FlagValues) -> None:
    """Defines what to move away from."""
    flags.DEFINE_multi_string(
        "negative", [], 'what to move away from, a prompt like "hat=red"; repeat the flag for more', flag_values=values
    )
    flags.DEFINE_float("gamma_negative", None, "weight γ_n of each --negative; by default 1", flag_values=values)
    flags.DEFINE_bool(
        "replace_null",
        False,
        "let the one --negative take the place of ∅, (1 − γ)u_d + γu_c, instead of weighting it by γ_n",
        flag_values=values,
    )


def _define_measured(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "inpaint",
        None,
        "complete what is known in part: an image file, transparent where unknown; an .npy file with NaN there; or the "
        'known columns of a table, "alcohol:13.2; ash:2.4". Known numbers come back exactly. No training for it is '
        "needed; --gamma=1 draws from p(x|c, known)",
        flag_values=values,
    )
    flags.DEFINE_string(
        "upsample",
        None,
        "enlarge: an image file, or .npy; each number is the mean of a block of the samples, as large as the sizes say",
        flag_values=values,
    )
    flags.DEFINE_string(
        "deblur", None, "sharpen: an image file, or .npy, blurred by a Gaussian of --blur_sigma", flag_values=values
    )
    flags.DEFINE_float("blur_sigma", None, "standard deviation of the blur, in pixels", flag_values=values)
    flags.DEFINE_list(
        "measurement_noise",
        None,
        "standard deviation of the noise in --inpaint, --upsample or --deblur, in its units (pixels 0 to 255, or those "
        "of the table): a number, or one for each channel or column, as 0.1,20. By default 0 for --inpaint and for "
        "floats, and that of rounding, 0.29, for pixels",
        flag_values=values,
    )
    flags.DEFINE_float(
        "data_variance",
        None,
        "variance of the data's numbers around their mean, as the network sees them, which --inpaint, --upsample and "
        f"--deblur assume; by default {Images.variance:g} for images in [-1, 1], and {Vectors.variance:g} for floats, "
        "which are standardised",
        flag_values=values,
    )
    flags.DEFINE_float(
        "jacobian_from",
        _DEFAULT.jacobian_from,
        "for --inpaint, --upsample and --deblur: differentiate the network for t from here on; 1 never does, which "
        "is faster, and less exact",
        flag_values=values,
    )


def define_guidance(values: flags.FlagValues) -> None:
    """Defines how to guide."""
    flags.DEFINE_string(
        "guidance",
        _DEFAULT.guidance,
        'guidance method with its settings, as "apg:momentum=-0.5:largest=15"; all are listed below',
        flag_values=values,
    )
    flags.DEFINE_enum(
        "schedule",
        _DEFAULT.schedule,
        sorted(guidance.SCHEDULES),
        "guidance schedule γ(t), with mean --gamma",
        flag_values=values,
    )
    flags.DEFINE_string(
        "weak", None, "folder of the weaker model that --guidance=autoguidance moves away from", flag_values=values
    )
    flags.DEFINE_integer(
        "weak_step", None, "its checkpoint; an early one of --workdir itself works as well", flag_values=values
    )
    flags.DEFINE_string(
        "perturb",
        None,
        'what --guidance=perturbed takes from the network: "skip=1+2" blocks (SLG, STG), "attention=identity" (PAG), '
        '"attention=blurred,blur=2" (SEG); with "layers=0+3" only there',
        flag_values=values,
    )
    flags.DEFINE_integer(
        "reuse",
        _DEFAULT.reuse,
        "guided steps for which u_c − u_∅ is kept before it is computed again",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_list(
        "interval", None, "guide only for t between these two, as 0.2,0.8 (0 is noise, 1 is data)", flag_values=values
    )
    flags.DEFINE_float(
        "rescale",
        _DEFAULT.rescale,
        "restore the standard deviation of the conditional velocity: 0 not at all, 1 fully",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "channels",
        _DEFAULT.channels,
        "guide the first so many channels only, as SiT and DiT guide 3 of 4; by default all",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "passes",
        _DEFAULT.passes,
        ["together", "apart"],
        "together: one network call for u_c and its references; apart: one for each, which needs less memory",
        flag_values=values,
    )


def define_sampler(values: flags.FlagValues) -> None:
    """Defines how to integrate."""
    defaults = {
        name: s.defaults(_DEFAULT._replace(sampler=name), None)["solver"] for name, s in sampling.SAMPLERS.items()
    }
    flags.DEFINE_enum(
        "recipe",
        None,
        list(sampling.RECIPES),
        "the sampler that was published with released weights: its γ, guidance, solver and grid, as far as no other "
        "flag says otherwise",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "sampler",
        _DEFAULT.sampler,
        list(sampling.SAMPLERS),
        "flow: the guided flow or SDE itself; fkc: --particles weighted samples of each law p(x)^(1−γ)·p(x|c)^γ, which "
        "the guided flow does not sample, equally weighted at the end; pc: --corrections Langevin steps towards that "
        "law after each step",
        flag_values=values,
    )
    flags.DEFINE_string(
        "solver",
        None,
        f"one of {', '.join(sampling.SOLVER_NAMES)}. {', '.join(sampling.ADAPTIVE)} choose their steps to meet "
        f"--tolerance; {', '.join(sampling.STOCHASTIC)} add noise, see --eta; {DDPM} is for networks that predict "
        "variances; the others take --steps. By default "
        f"{', '.join(f'{solver} for {name}' for name, solver in defaults.items())}; {MEASURED_SOLVER} for flow with "
        "--inpaint, --upsample or --deblur",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "steps", _DEFAULT.steps, "steps of the solver; unused by adaptive ones", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string(
        "grid",
        str(_DEFAULT.grid),
        f"how the steps are spaced: {', '.join(sorted(times.WARPS))}, with settings as shift:s=2; nodes of your own, "
        "0,0.3,0.7,1; or fitted: a pilot solve places --steps steps where this network, γ and condition need them "
        "(samples.json keeps the nodes)",
        flag_values=values,
    )
    flags.DEFINE_float(
        "tolerance", _DEFAULT.tolerance, "relative and absolute tolerance of adaptive solvers", flag_values=values
    )
    flags.DEFINE_float(
        "absolute_tolerance", None, "absolute tolerance, if it is another than --tolerance", flag_values=values
    )
    flags.DEFINE_float(
        "last_step",
        None,
        "size of the last step, as 0.04; the others then cover the rest, spaced as --grid says",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "diffusion",
        None,
        sorted(solvers.DIFFUSIONS),
        "for --solver=euler_maruyama: the amount of noise by t, which --eta scales; by default memoryless",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "last_kind",
        _DEFAULT.last_kind,
        list(get_args(solvers.Last)),
        "for --solver=euler_maruyama: its last step gives the data prediction, or the mean of the step, without noise",
        flag_values=values,
    )
    flags.DEFINE_float(
        "eta",
        None,
        "strength of the noise of stochastic solvers: 0 none, 1 memoryless; by default 1, and 2 for --sampler=fkc",
        lower_bound=0.0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "particles",
        _DEFAULT.particles,
        "particles of each law, for --sampler=fkc: more collapse less",
        lower_bound=2,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "corrections",
        _DEFAULT.corrections,
        "Langevin steps after each step, for --sampler=pc",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_float(
        "proposal", None, "for --sampler=fkc: γ of the proposing process, if not that of the law", flag_values=values
    )
    flags.DEFINE_float(
        "clip",
        None,
        "for --sampler=fkc: keep what a step adds to the log-weights this close to its mean",
        flag_values=values,
    )
    flags.DEFINE_float(
        "until",
        None,
        "for --sampler=fkc: gather weights only for t up to this; later they divide the network's errors by 1 − t. By "
        "default 0.7 for examples of 64 numbers or more, and 1 for smaller ones",
        flag_values=values,
    )


def _define_output(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("num", 64, "samples for each condition and γ", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("batch_size", 64, "samples at a time, over all devices", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the noise", flag_values=values)
    flags.DEFINE_string("out", None, "folder for the results; by default WORKDIR/samples", flag_values=values)
    flags.DEFINE_enum(
        "save",
        "png",
        ["png", "npz", "csv", "none"],
        "each sample as a PNG, all in one NPZ, vectors or rows of a table and their conditions in one CSV file, which "
        "train --data reads, or only the figure",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "diagnose",
        False,
        "also draw gap.png: how u(x, c) and u(x, ∅) differ along the solve, for each γ",
        flag_values=values,
    )
    flags.DEFINE_string(
        "export",
        None,
        "write the sampler, with network, guidance and solver, to this file and draw nothing: StableHLO that runs with "
        "jax alone, for any number of samples, conditions and γ (examples/serve.py); FILE.json says what it takes",
        flag_values=values,
    )
