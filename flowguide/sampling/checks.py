"""Resolves the defaults of a sampler and checks settings and requests, before anything is computed."""

from __future__ import annotations

from typing import get_args

import jax
import numpy as np

from flowguide import guidance, paths, solvers, times
from flowguide.condition import Condition
from flowguide.errors import UserError, hint, listed, shown
from flowguide.kinds import check_values, tuples, types_of
from flowguide.model import GammaConditioned, Guided, Model, NoNull
from flowguide.networks.perturbation import Perturbation
from flowguide.sampling.config import ADAPTIVE, SamplerConfig, nodes
from flowguide.sampling.corrector import PREDICTOR_CORRECTOR
from flowguide.sampling.flow import FLOW
from flowguide.sampling.guided import guided_velocity
from flowguide.sampling.particles import PARTICLES
from flowguide.sampling.request import SampleRequest
from flowguide.sampling.sampler import Sampler
from flowguide.typing import Array

SAMPLERS: dict[str, Sampler] = {"flow": FLOW, "pc": PREDICTOR_CORRECTOR, "fkc": PARTICLES}


# Without noise, the guidance by what was measured has no limit at t = 1, where this solver does not evaluate it.
MEASURED_SOLVER = "ab2"


def resolve_defaults(config: SamplerConfig, model: Model | None = None, measured: bool = False) -> SamplerConfig:
    """Returns the config with the defaults of its sampler filled in, and checks its settings.

    Without a model, settings whose default depends on it stay None. ``measured`` says whether samples are to fit what
    was measured.

    Raises:
      UserError: for settings that cannot be, whatever the model.
    """
    if not isinstance(config, SamplerConfig):
        raise UserError(f"config takes a SamplerConfig, such as SamplerConfig(steps=50); got {shown(config)}")
    check_values(config._asdict(), types_of(SamplerConfig))
    config = config._replace(**{name: tuples(v) for name, v in config._asdict().items() if isinstance(v, list)})
    if config.sampler not in SAMPLERS:
        raise UserError(
            f"unknown sampler {config.sampler!r}{hint(str(config.sampler), SAMPLERS)}: there are {', '.join(SAMPLERS)}"
        )
    sampler = SAMPLERS[config.sampler]
    defaults = sampler.defaults(config, model)
    if measured and config.sampler == "flow":
        defaults = {**defaults, "solver": MEASURED_SOLVER}
    config = config._replace(**{name: v for name, v in defaults.items() if getattr(config, name) is None})
    _check_integration(config, sampler)
    _check_guidance(config)
    sampler.check(config)
    return config


def check_counts(seed: int = 0, **counts: int) -> None:
    """Raises ``UserError`` for a count below 1, or a seed that is none."""
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name} must be at least 1; got {count}")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be from 0 to 2^32 - 1; got {seed}")


def _check_integration(config: SamplerConfig, sampler: Sampler) -> None:
    if config.solver not in sampler.solvers:
        raise UserError(
            f"sampler {config.sampler!r} has no solver {config.solver!r}{hint(str(config.solver), sampler.solvers)}: "
            f"there are {', '.join(sampler.solvers)}"
        )
    if config.steps < 1 or config.reuse < 1 or config.corrections < 1:
        raise UserError(
            "steps, reuse and corrections must be at least 1; got "
            f"{config.steps}, {config.reuse} and {config.corrections}"
        )
    _check_last_step(config)
    if isinstance(config.grid, str):
        _check_warp(config)
    else:
        ts = np.asarray(config.grid, np.float32)
        if len(ts) < 2 or ts[0] != 0 or ts[-1] != 1 or not (np.diff(ts) > 0).all():
            raise UserError(f"the nodes of a grid increase from 0 to 1; got {', '.join(f'{t:g}' for t in ts)}")
    if config.eta is None or not 0 <= config.eta < np.inf:
        raise UserError(f"eta, the strength of the noise, must be 0 or more; got {config.eta}")
    if not 0 < config.tolerance < np.inf:
        raise UserError(f"the tolerance must be positive; got {config.tolerance}")
    if config.absolute_tolerance is not None and not 0 < config.absolute_tolerance < np.inf:
        raise UserError(f"the absolute tolerance must be positive; got {config.absolute_tolerance}")
    if not 0 <= config.jacobian_from <= 1:
        raise UserError(f"jacobian_from is a time between 0 and 1; got {config.jacobian_from}")


def _check_warp(config: SamplerConfig) -> None:
    """Raises ``UserError`` if the grid is no warp with its settings."""
    name = str(config.grid).partition(":")[0]
    if name not in times.WARPS:
        near = hint(name, times.WARPS)
        raise UserError(f"unknown grid {name!r}{near}: there are {', '.join(sorted(times.WARPS))}, or give its nodes")
    try:
        ts = np.asarray(nodes(config))
    except (ValueError, ArithmeticError) as error:
        raise UserError(f"grid {config.grid!r}: {error}") from error
    if ":" in str(config.grid) and not (np.diff(ts) > 0).all():
        raise UserError(
            f"the nodes of a grid increase from 0 to 1; those of {config.grid!r} do not: change its settings"
        )


def _check_last_step(config: SamplerConfig) -> None:
    maruyama = config.solver == "euler_maruyama"
    if config.diffusion is not None and (not maruyama or config.diffusion not in solvers.DIFFUSIONS):
        raise UserError(
            f"diffusion is one of {', '.join(solvers.DIFFUSIONS)}, of the solver euler_maruyama; got "
            f"{config.diffusion!r} with {config.solver}"
        )
    kinds = get_args(solvers.Last)
    if config.last_kind not in kinds or (config.last_kind != "data" and not maruyama):
        raise UserError(
            f"last_kind is one of {', '.join(kinds)}, of the solver euler_maruyama; got {config.last_kind!r} with "
            f"{config.solver}"
        )
    if config.last_step is None:
        return
    if not 0 < config.last_step < 1:
        raise UserError(f"last_step is a size between 0 and 1; got {config.last_step}")
    if not isinstance(config.grid, str) or config.steps < 2:
        raise UserError("last_step is that of a grid by name, of 2 steps or more: leave it out, or name a grid")


def _check_guidance(config: SamplerConfig) -> None:
    for what, name, known in (
        ("guidance", config.guidance, guidance.methods.METHODS),
        ("schedule", config.schedule, guidance.SCHEDULES),
    ):
        if name not in known:
            raise UserError(f"unknown {what} {name!r}{hint(str(name), known)}: there are {listed(sorted(known), 50)}")
    if bad := [name for name, value in config.settings if np.isnan(value)]:
        raise UserError(f"guidance {config.guidance!r} takes numbers; got {bad[0]} = nan")
    if not 0 <= config.rescale <= 1:
        raise UserError(f"rescale mixes between 0 and 1; got {config.rescale}")
    if config.channels is not None and config.channels < 1:
        raise UserError(f"channels are the first that guidance acts on, at least 1; got {config.channels}")
    if config.interval is not None and not 0 <= config.interval[0] < config.interval[1] <= 1:
        raise UserError(f"interval needs 0 <= start < stop <= 1; got {config.interval}")
    if config.guidance == "cfg_pp" and config.schedule != "constant":
        raise UserError(
            f"guidance cfg_pp has no γ to schedule, gamma is its strength λ: use schedule 'constant', not "
            f"{config.schedule!r}"
        )
    if config.guidance == "perturbed" and config.perturbation == Perturbation():
        raise UserError(
            "guidance 'perturbed' needs to know what to take from the network: give --perturb=skip=1, say, or "
            "perturbation=Perturbation(skip=(1,)) in Python"
        )


def check_together(
    config: SamplerConfig, negatives: int = 0, composed: int = 0, weak: bool = False, measured: bool = False
) -> None:
    """Raises ``UserError`` if a config does not work with so many negative and further conditions.

    Args:
      config: resolved.
      negatives: number of negative conditions.
      composed: number of conditions composed with the first.
      weak: whether there is a weaker model.
      measured: whether samples are to fit what was measured.
    """
    if config.replace_null and negatives != 1:
        raise UserError(f"replace_null puts one negative condition in the place of ∅; got {negatives} of them")
    if config.guidance == "autoguidance" and not weak:
        raise UserError(
            "guidance 'autoguidance' needs a weaker model to move away from: give --weak=DIR or --weak_step=N, or "
            "weak=model in Python"
        )
    if weak and config.guidance != "autoguidance":
        raise UserError(
            f"a weaker model is for guidance 'autoguidance'; got {config.guidance!r}: leave one of them out"
        )
    if config.guidance == "cfg_pp" and config.solver != "ddim":
        raise UserError(f"guidance cfg_pp is a first-order step with a noise of its own: use ddim, not {config.solver}")

    def velocity(t: Array, x: Array, c: Condition) -> Array:
        return x

    empty, one = Condition({}, {}), np.float32(1.0)
    request = SampleRequest(empty, (empty,) * negatives, (empty,) * composed, one, one, np.ones(composed, np.float32))
    try:
        whole, _ = guided_velocity(velocity, paths.linear(), config._replace(schedule="constant"), request, velocity)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    if measured and config.sampler == "fkc":
        raise UserError(
            "sampler 'fkc' draws from products of powers, and what was measured is no power: use the sampler 'flow'"
        )
    if measured and isinstance(whole, solvers.StatefulVelocity):
        raise UserError(
            f"what was measured guides a vector field, and guidance {config.guidance} remembers its steps or reuses "
            "references: use a method without memory, and reuse 1"
        )
    if config.solver in ADAPTIVE and isinstance(whole, solvers.StatefulVelocity):
        raise UserError(
            f"{config.solver} chooses its steps, and guidance {config.guidance} remembers them or reuses references: "
            "use a solver that takes --steps"
        )


def check(model: Model, request: SampleRequest, config: SamplerConfig, weak: Model | None = None) -> None:
    """Raises ``UserError`` for a request that a model cannot serve; ``config`` is resolved."""
    if model.params is None:
        raise UserError("the model has no parameters: train it, or load one from the folder of a run")
    for what, numbers in (
        ("gamma", request.gamma),
        ("gamma_negative", request.gamma_negative),
        ("weights of compose", request.weights),
    ):
        if (bad := np.asarray(numbers)[~np.isfinite(numbers)]).size:
            raise UserError(f"guidance scales must be finite; got {what} {bad[0]}")
    measured = request.measured is not None
    check_together(config, len(request.negatives), len(request.composed), weak is not None, measured)
    SAMPLERS[config.sampler].check_model(model, request, config)
    if weak is not None and (weak.info.model_shape, weak.info.fields, weak.path) != (
        model.info.model_shape,
        model.info.fields,
        model.path,
    ):
        raise UserError("the weaker model needs the same path as the model, and data of the same shape and fields")
    most = model.info.model_shape[-1] if model.info.model_shape else 0
    if config.channels is not None and config.channels > most:
        raise UserError(f"channels are the first of {most} that guidance acts on; got {config.channels}")
    if isinstance(model.guidance, GammaConditioned):
        _check_gamma_conditioned(model.guidance, request, config, weak)
        return
    if isinstance(model.guidance, Guided) and (request.gamma > 1).any():
        raise UserError(
            f"this network is guided already, by γ = {model.guidance.gamma:g}: use gamma 1; got {request.gamma.max():g}"
        )
    by_null = config.guidance not in guidance.methods.WITHOUT_NULL and (request.gamma != 1).any()
    if isinstance(model.guidance, NoNull) and (by_null or request.negatives or not _full(request.c)):
        raise UserError(
            "this network was trained without null dropout (drop_rate = 0), so it knows no ∅: give every field, "
            "gamma 1 or guidance 'icg', and no negative, or train with drop_rate > 0"
        )
    _check_guided(model, request, config, weak)


def _check_gamma_conditioned(
    guidance: GammaConditioned, request: SampleRequest, config: SamplerConfig, weak: Model | None
) -> None:
    if (outside := request.gamma[(request.gamma < guidance.low) | (request.gamma > guidance.high)]).size:
        raise UserError(
            f"this network is γ-conditioned, trained for γ in [{guidance.low:g}, {guidance.high:g}]; got {outside[0]:g}"
        )
    combines = bool(request.negatives or request.composed or weak is not None)
    asked = (config.guidance, config.rescale, config.interval, config.schedule, config.channels)
    if combines or asked != ("cfg", 0.0, None, "constant", None):
        raise UserError(
            "a γ-conditioned network combines no references: for negatives, intervals and other rules use a plain one"
        )


def _check_guided(model: Model, request: SampleRequest, config: SamplerConfig, weak: Model | None) -> None:
    """Builds the guidance once, which finds what this very network cannot combine."""

    def velocity(t: Array, x: Array, c: Condition) -> Array:
        return x

    try:
        perturbed = weak is None and config.perturbation != Perturbation()
        if perturbed:
            model.network.perturbed(config.perturbation)
        guided_velocity(velocity, model.path, config, request, velocity if perturbed or weak is not None else None)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def _full(c: Condition) -> bool:
    return all(np.all(p) for p in jax.tree.leaves(c.present))
