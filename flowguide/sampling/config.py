"""How to sample, and what each sample is asked to be."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from flowguide import guidance, paths, solvers, times
from flowguide.condition import Condition, bind
from flowguide.errors import UserError
from flowguide.networks import Network
from flowguide.networks.perturbation import Perturbation
from flowguide.sampling.conditions import Cond, conditions, negative_list
from flowguide.sampling.run import Run
from flowguide.targets import with_gamma
from flowguide.typing import Array, PyTree, Schedule, Velocity

ADAPTIVE = tuple(sorted(solvers.EMBEDDED_TABLEAUX))
STOCHASTIC = tuple(sorted(solvers.STOCHASTIC))
SOLVER_NAMES = (*sorted(solvers.SOLVERS), *STOCHASTIC, *ADAPTIVE)


class Sampler(NamedTuple):
    """The solvers that a sampler takes, and what it takes unless gamma_conditioned."""

    solvers: tuple[str, ...]
    solver: str
    eta: float


SAMPLERS = {
    "flow": Sampler(SOLVER_NAMES, "heun", 1.0),
    "pc": Sampler(("ddim", "euler", "heun", "midpoint", "ralston", "rk4"), "ddim", 1.0),
    "fkc": Sampler(STOCHASTIC, "renoise_2m", 2.0),
}


class SamplerConfig(NamedTuple):
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
      perturbation: of the network that guidance "perturbed" goes negatives from.
      reuse: steps for which the references' differences are kept, see ``guidance.guide``.
      tolerance: relative and absolute, of adaptive solvers.
      eta: strength η of the noise of stochastic solvers: 0 none, 1 memoryless. None takes the sampler's own, 1, or 2
        for "fkc".
      passes: "together" or "apart", see ``guidance.guide``.
      sampler: "flow", the guided flow or SDE itself; "pc", with Langevin steps between
        (``tilted.predictor_corrector``); or "fkc", weighted particles of the γ-powered law
        (``tilted.feynman_kac``), for ``sample_particles``.
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


DEFAULT = SamplerConfig()


class SampleRequest(NamedTuple):
    """What each sample is asked to be; one entry a sample in every leaf."""

    c: Condition
    negatives: tuple[Condition, ...]
    composed: tuple[Condition, ...]
    gamma: np.ndarray


def ask(
    run: Run,
    cond: Cond,
    num: int,
    gamma: float | np.ndarray,
    negative: Cond,
    gamma_negative: float,
    compose: Sequence[tuple[Cond, float]] = (),
) -> tuple[SampleRequest, np.ndarray]:
    """What each of ``num`` samples is asked to be, and the weights of negative and of further conditions."""
    fields = run.info.fields
    for pair in compose:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[1], int | float | np.number)):
            raise UserError(f'compose takes pairs of condition and weight, as [("hat=red", 0.5)]; got {pair!r}')
    try:
        gammas = np.broadcast_to(np.asarray(gamma, np.float32), (num,))
    except (ValueError, TypeError):
        raise UserError(f"gamma must be a number, or an array of shape ({num},); got {gamma!r}") from None
    request = SampleRequest(
        conditions(cond, fields, num),
        tuple(conditions(d, fields, num) for d in negative_list(negative)),
        tuple(conditions(d, fields, num) for d, _ in compose),
        gammas,
    )
    return request, np.array([gamma_negative, *(w for _, w in compose)], np.float32)


def guided(
    network: Network,
    weak: Network | None,
    gamma_conditioned: bool,
    path: str,
    method: SamplerConfig,
    params: PyTree,
    request: SampleRequest,
    weights: Array | np.ndarray,
) -> tuple[Velocity | solvers.StatefulVelocity, guidance.Guidance]:
    """The guided velocity and its guidance; ``weights`` are γ_n and those of the other conditions."""
    own, weak_params = params
    velocity, gamma = partial(network.velocity, own), guidance.SCHEDULES[method.schedule](request.gamma)
    if gamma_conditioned:  # one pass, and nothing to combine
        alone = guidance.Guidance((), guidance.composed([]), lambda t: jnp.int32(guidance.Terms.CONDITIONAL))
        return bind(velocity, with_gamma(request.c, jnp.asarray(request.gamma))), alone
    worse = None if weak is None else partial(weak.velocity, weak_params)
    if worse is None and method.perturbation != Perturbation():
        worse = partial(network.perturbed(method.perturbation), own)

    inputs = guidance.methods.GuidanceInputs(
        velocity,
        request.c,
        gamma,
        paths.PATHS[path](),
        request.negatives,
        None if method.replace_null else guidance.constant(weights[0]),
        tuple((d, _times(gamma, w)) for d, w in zip(request.composed, weights[1:], strict=True)),
        None if method.solver in ADAPTIVE else nodes(method),
        worse,
        method.interval,
    )
    guiding = guidance.methods.build(method.guidance, inputs, method.rescale, **dict(method.settings))
    return guidance.guide(velocity, request.c, guiding, method.passes, method.reuse), guiding


def _times(schedule: Schedule, weight: Array | float) -> Schedule:
    return lambda t: weight * schedule(t)


def nodes(method: SamplerConfig) -> Array:
    """The grid of a method that takes one."""
    if isinstance(method.grid, str):
        return times.grid(method.steps, times.WARPS[method.grid]())
    return jnp.asarray(method.grid, jnp.float32)
