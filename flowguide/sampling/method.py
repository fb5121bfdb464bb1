"""How to sample, what each sample is asked to be, and whether the two can be had together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowguide import guidance, paths, prompts, solvers, times
from flowguide.condition import Condition, bind
from flowguide.errors import UserError
from flowguide.networks import Network
from flowguide.networks.perturbation import Perturbation
from flowguide.sampling.run import Run
from flowguide.targets import with_gamma
from flowguide.typing import Array, PyTree, Schedule, Velocity

ADAPTIVE = tuple(sorted(solvers.PAIRS))
STOCHASTIC = tuple(sorted(solvers.STOCHASTIC))
SOLVER_NAMES = (*sorted(solvers.SOLVERS), *STOCHASTIC, *ADAPTIVE)


class Sampler(NamedTuple):
    """The solvers that a sampler takes, and what it takes unless told."""

    solvers: tuple[str, ...]
    solver: str
    eta: float


SAMPLERS = {
    "flow": Sampler(SOLVER_NAMES, "heun", 1.0),
    "pc": Sampler(("ddim", "euler", "heun", "midpoint", "ralston", "rk4"), "ddim", 1.0),
    "fkc": Sampler(STOCHASTIC, "renoise_2m", 2.0),
}


class Method(NamedTuple):
    """How the guided flow is integrated; hashable, one compiled program each.

    Attributes:
      solver: one of ``SOLVER_NAMES``; those of ``ADAPTIVE`` choose their own steps. None takes the sampler's own.
      steps: of a grid given by name; not read by adaptive solvers.
      grid: of deterministic and stochastic solvers: the name of a warp (``times.WARPS``), or the nodes themselves,
        increasing from 0 to 1, whose number then says the steps. ``fit_grid`` finds good ones.
      guidance: one of ``guidance.methods.METHODS``.
      settings: of that method, pairs of name and number.
      schedule: of γ over time, one of ``guidance.SCHEDULES``.
      interval: the times between which guidance is applied, or None for all.
      replace_null: the negative condition takes the place of ∅.
      rescale: strength φ of the rescaling of Lin et al. 2024.
      perturbation: of the network that guidance "perturbed" goes away from.
      reuse: steps for which the references' differences are kept, see ``guidance.guide``.
      tolerance: relative and absolute, of adaptive solvers.
      eta: strength η of the noise of stochastic solvers: 0 none, 1 memoryless. None takes the sampler's own, 1, or 2
        for "fkc".
      passes: "together" or "apart", see ``guidance.guide``.
      sampler: "flow", the guided flow or SDE itself; "pc", with Langevin steps between
        (``tilted.predictor_corrector``); or "fkc", weighted particles of the γ-powered law
        (``tilted.feynman_kac``), for ``sample_laws``.
      corrections: of the sampler "pc", a step.
      particles: K of the sampler "fkc".
      proposal: γ of the guided process that proposes; None for that of the law.
      threshold: share of K below which it resamples.
      clip: see ``tilted.feynman_kac``.
      until: see ``tilted.feynman_kac``.
    """

    solver: str | None = None
    steps: int = 25
    grid: str | tuple[float, ...] = "uniform"
    guidance: str = "cfg"
    settings: tuple[tuple[str, float], ...] = ()
    schedule: str = "constant"
    interval: tuple[float, float] | None = None
    replace_null: bool = False
    rescale: float = 0.0
    perturbation: Perturbation = Perturbation()
    reuse: int = 1
    tolerance: float = 1e-4
    eta: float | None = None
    passes: guidance.Passes = "together"
    sampler: str = "flow"
    corrections: int = 1
    particles: int = 64
    proposal: float | None = None
    threshold: float = 0.5
    clip: float | None = None
    until: float = 1.0


DEFAULT = Method()


class Wanted(NamedTuple):
    """What each sample is asked to be; one entry a sample in every leaf."""

    c: Condition
    away: tuple[Condition, ...]
    others: tuple[Condition, ...]
    gamma: np.ndarray


def settled(method: Method) -> Method:
    """The method with its solver and η said.

    Raises:
      UserError: for a sampler that there is not.
    """
    if method.sampler not in SAMPLERS:
        raise UserError(f"unknown sampler {method.sampler!r}: there are {', '.join(SAMPLERS)}")
    own = SAMPLERS[method.sampler]
    eta = own.eta if method.proposal is None else 1.0  # another proposal is weighed by its own, memoryless noise
    return method._replace(
        solver=own.solver if method.solver is None else method.solver, eta=eta if method.eta is None else method.eta
    )


def ask(
    run: Run,
    cond: str | Sequence[str] | Condition,
    num: int,
    gamma: float | np.ndarray,
    negative: Sequence[str | Condition],
    gamma_negative: float,
    compose: Sequence[tuple[str | Condition, float]] = (),
) -> tuple[Wanted, np.ndarray]:
    """What each of ``num`` samples is asked to be, and the weights of negative and of further conditions."""
    fields = run.info.fields
    wanted = Wanted(
        conditions(cond, fields, num),
        tuple(conditions(d, fields, num) for d in negative),
        tuple(conditions(d, fields, num) for d, _ in compose),
        np.broadcast_to(np.asarray(gamma, np.float32), (num,)),
    )
    return wanted, np.array([gamma_negative, *(w for _, w in compose)], np.float32)


def guided(
    network: Network,
    weak: Network | None,
    told: bool,
    path: str,
    method: Method,
    params: PyTree,
    wanted: Wanted,
    weights: Array | np.ndarray,
) -> tuple[Velocity | solvers.StatefulVelocity, guidance.Guidance]:
    """The guided velocity and its guidance; ``weights`` are γ_n and those of the other conditions."""
    own, weak_params = params
    velocity, gamma = partial(network.velocity, own), guidance.SCHEDULES[method.schedule](wanted.gamma)
    if told:  # one pass, and nothing to combine
        alone = guidance.Guidance((), guidance.composed([]), lambda t: jnp.int32(guidance.Terms.CONDITIONAL))
        return bind(velocity, with_gamma(wanted.c, jnp.asarray(wanted.gamma))), alone
    worse = None if weak is None else partial(weak.velocity, weak_params)
    if worse is None and method.perturbation != Perturbation():
        worse = partial(network.perturbed(method.perturbation), own)

    asked = guidance.methods.Asked(
        velocity,
        wanted.c,
        gamma,
        paths.PATHS[path](),
        wanted.away,
        None if method.replace_null else guidance.constant(weights[0]),
        tuple((d, _times(gamma, w)) for d, w in zip(wanted.others, weights[1:], strict=True)),
        None if method.solver in ADAPTIVE else nodes(method),
        worse,
        method.interval,
    )
    guiding = guidance.methods.build(method.guidance, asked, method.rescale, **dict(method.settings))
    return guidance.guide(velocity, wanted.c, guiding, method.passes, method.reuse), guiding


def _times(schedule: Schedule, weight: Array | float) -> Schedule:
    return lambda t: weight * schedule(t)


def nodes(method: Method) -> Array:
    """The grid of a method that takes one."""
    if isinstance(method.grid, str):
        return times.grid(method.steps, times.WARPS[method.grid]())
    return jnp.asarray(method.grid, jnp.float32)


def conditions(cond: str | Sequence[str] | Condition, fields: dict, num: int) -> Condition:
    """One condition a sample, from a prompt for all, a prompt each, or conditions ready made."""
    if not isinstance(cond, Condition):
        cond = prompts.condition([cond] * num if isinstance(cond, str) else cond, fields)
    if batch(cond) != num and fields:
        raise UserError(f"got {batch(cond)} conditions for {num} samples: give one for all, or one for each")
    return cond


def number(cond: str | Sequence[str] | Condition, num: int | None, default: int) -> int:
    """``num`` or, where none is said, one a condition; for one prompt ``default``."""
    if num is not None:
        return num
    return default if isinstance(cond, str) else batch(cond) if isinstance(cond, Condition) else len(cond)


def batch(c: Condition) -> int:
    """Of how many samples; 0 where there are no fields."""
    return len(jax.tree.leaves(c.present)[0]) if jax.tree.leaves(c.present) else 0


def check(run: Run, wanted: Wanted, weights: np.ndarray, method: Method, weak: Run | None = None) -> None:
    """Raises ``UserError`` for what cannot be, before anything is computed."""
    gamma, away = wanted.gamma, wanted.away
    if method.solver not in SAMPLERS[method.sampler].solvers:
        raise UserError(
            f"sampler {method.sampler!r} has no solver {method.solver!r}: there are "
            f"{', '.join(SAMPLERS[method.sampler].solvers)}"
        )
    if isinstance(method.grid, str) and method.grid not in times.WARPS:
        raise UserError(f"unknown grid {method.grid!r}: there are {', '.join(sorted(times.WARPS))}, or give its nodes")
    if not isinstance(method.grid, str):
        ts = np.asarray(method.grid, np.float32)
        if len(ts) < 2 or ts[0] != 0 or ts[-1] != 1 or not (np.diff(ts) > 0).all():
            raise UserError(f"the nodes of a grid increase from 0 to 1; got {', '.join(f'{t:g}' for t in ts)}")
    if method.steps < 1 or method.reuse < 1 or method.corrections < 1:
        raise UserError(
            "steps, reuse and corrections must be at least 1; got "
            f"{method.steps}, {method.reuse} and {method.corrections}"
        )
    if not (np.isfinite(gamma).all() and np.isfinite(weights).all()):
        raise UserError(f"guidance scales must be finite; got gamma {gamma}, gamma_negative and weights {weights}")
    if method.schedule not in guidance.SCHEDULES:
        raise UserError(f"unknown schedule {method.schedule!r}: there are {', '.join(sorted(guidance.SCHEDULES))}")
    if not 0 <= method.rescale <= 1:
        raise UserError(f"rescale mixes between 0 and 1; got {method.rescale}")
    if method.eta is None or not 0 <= method.eta < np.inf:
        raise UserError(f"eta, the strength of the noise, must be 0 or more; got {method.eta}")
    if method.tolerance <= 0:
        raise UserError(f"the tolerance must be positive; got {method.tolerance}")
    if method.interval is not None and not 0 <= method.interval[0] < method.interval[1] <= 1:
        raise UserError(f"interval needs 0 <= start < stop <= 1; got {method.interval}")
    if method.replace_null and len(away) != 1:
        raise UserError(f"replace_null puts one negative condition in the place of ∅; got {len(away)} of them")
    if weak is not None and (weak.info.shape, weak.info.fields, weak.path) != (
        run.info.shape,
        run.info.fields,
        run.path,
    ):
        raise UserError("the weak run must have been trained on data of the same shape and fields, on the same path")
    if run.gammas is not None:
        low, high = run.gammas
        if not ((gamma >= low) & (gamma <= high)).all():
            raise UserError(f"this network was taught γ from {low:g} to {high:g} and is told it; got {gamma}")
        asked = away or wanted.others or weak, method.guidance, method.rescale, method.interval, method.schedule
        if asked[0] or asked[1:] != ("cfg", 0.0, None, "constant"):
            raise UserError(
                "this network is guided by the γ it is told: negatives, intervals and the like need another"
            )
        return
    if run.guided and (gamma > 1).any():
        raise UserError(f"this network is guided already (target model_guidance): use gamma 1; got {gamma.max():g}")
    if not run.has_null and method.guidance != "autoguidance" and (away or (gamma != 1).any() or not _full(wanted.c)):
        raise UserError(
            "this network was trained without null dropout (drop_rate = 0), so it knows no ∅: give every field, "
            "gamma 1 and no negative, or train with drop_rate > 0"
        )
    if method.guidance == "cfg_pp" and (
        method.solver not in ("ddim", "euler") or (method.solver == "euler" and run.path != "linear")
    ):
        raise UserError(f"guidance cfg_pp is a first-order step with a noise of its own: use ddim, not {method.solver}")
    if method.guidance == "cfg_pp" and method.schedule != "constant":
        raise UserError(
            f"guidance cfg_pp has no γ to schedule, gamma is its strength λ: use schedule 'constant', not "
            f"{method.schedule!r}"
        )
    try:
        velocity, _ = guided(
            run.network,
            weak and weak.network,
            False,
            run.path,
            method,
            (run.params, weak and weak.params),
            wanted,
            weights,
        )
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    if method.solver in ADAPTIVE and isinstance(velocity, solvers.StatefulVelocity):
        raise UserError(
            f"{method.solver} chooses its steps, and guidance {method.guidance} remembers them or reuses references: "
            "use a solver that takes --steps"
        )


def _full(c: Condition) -> bool:
    return all(np.all(p) for p in jax.tree.leaves(c.present))
