"""What guidance samples: every method on laws that are known exactly. ``flowguide lab`` prints the tables.

Two laws on the line: a Gaussian, x ~ N(0, 2) and x|c ~ N(1.5, 1), and a mixture of two modes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from flowguide import analytic, guidance, paths, solvers, tilted, times
from flowguide.condition import Condition, given
from flowguide.guidance.methods import GuidanceInputs, build
from flowguide.typing import Array, CondVelocity

AXIS = np.linspace(-6.0, 9.0, 6001)
BINS = np.linspace(-6.0, 9.0, 151)
PATH = paths.linear()


class Law(NamedTuple):
    """p(x, c) on the line; label 0 is the condition, label 1, where there is one, a condition to avoid."""

    name: str
    conditional: Callable[[np.ndarray], np.ndarray]
    marginal: Callable[[np.ndarray], np.ndarray]
    velocity: CondVelocity
    labels: int


def gaussian() -> Law:
    """x ~ N(0, 2), x|c ~ N(1.5, 1): two Gaussians, whatever is between them."""
    own, every = (
        analytic.velocity(analytic.mixture(jnp.ones(1), jnp.array([[m]]), jnp.array([v])), PATH)
        for m, v in ((1.5, 1.0), (0.0, 2.0))
    )

    def velocity(t: Array, x: Array, c: Condition) -> Array:
        first = given(jnp.zeros(len(x), int))
        return jnp.where(c.present[:, None], own(t, x, first), every(t, x, first))

    return Law("Gaussian", partial(normal, 1.5, 1.0), partial(normal, 0.0, 2.0), velocity, 1)


def two_modes() -> Law:
    """p(x|c) of two modes, and as much of something broad beside it."""
    means, variances, weights = np.array([1.2, -0.8, 0.6]), np.array([0.25, 0.12, 0.8]), np.array([0.3, 0.2, 0.5])
    mixture = analytic.mixture(*map(jnp.asarray, (weights, means[:, None], variances)), labels=jnp.array([0, 0, 1]))

    def density(x: np.ndarray, count: int) -> np.ndarray:
        parts = [w * normal(m, v, x) for w, m, v in zip(weights[:count], means, variances, strict=False)]
        return np.sum(parts, 0) / weights[:count].sum()

    velocity = analytic.velocity(mixture, PATH)
    return Law("two modes", partial(density, count=2), partial(density, count=3), velocity, 2)


def normal(mean: float, variance: float, x: np.ndarray) -> np.ndarray:
    """Density of N(mean, variance)."""
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


def powered(law: Law, gamma: float) -> np.ndarray:
    """p(x)^(1−γ)·p(x|c)^γ on ``AXIS``, normalised by quadrature."""
    log_p = (1 - gamma) * np.log(law.marginal(AXIS)) + gamma * np.log(law.conditional(AXIS))
    p = np.exp(log_p - log_p.max())
    return p / np.trapezoid(p, AXIS)


class Contender(NamedTuple):
    """A method of ``guidance.methods`` and how it is solved."""

    name: str
    method: str = "cfg"
    settings: tuple[tuple[str, float], ...] = ()
    eta: float = 0.0
    interval: tuple[float, float] | None = None
    schedule: str = "constant"
    negative: str = ""  # "weighed" or "replaces"
    solver: str = "ab3"
    corrections: int = 0
    particles: bool = False


CONTENDERS = (
    Contender("CFG, ODE"),
    Contender("CFG, SDE η = 1", eta=1.0),
    Contender("CFG, SDE η = 4", eta=4.0),
    Contender("CFG, 0.2 ≤ t ≤ 0.8", interval=(0.2, 0.8)),
    Contender("CFG, γ(t) linear", schedule="linear"),
    Contender("CFG++ λ = γ/5", "cfg_pp", solver="ddim"),
    Contender("CFG-Zero*", "zero_star"),
    Contender("APG, parallel 0", "apg"),
    Contender("APG, parallel 0.5", "apg", (("parallel", 0.5),)),
    Contender("TCFG", "tcfg"),
    Contender("MAMBO-G, α = 1", "mambo_g", (("alpha", 1.0),)),
    Contender("β-CFG", "beta_cfg"),
    Contender("feedback", "feedback", (("pi", 0.8),)),
    Contender("negative replaces ∅", negative="replaces"),
    Contender("negative, γ_n = 1", negative="weighed"),
    Contender("contrastive, γ_n = 1", "contrastive", negative="weighed"),
    Contender("DNG, λ = 1", "dng", (("prior", 0.3), ("tau", 1.0)), negative="weighed"),
    Contender("PC, M = 2", corrections=2),
    Contender("PC, M = 8", corrections=8),
    Contender("CFG, ODE, weighed", particles=True, solver="heun"),
    Contender("FKC, η = 1", particles=True, eta=1.0),
    Contender("FKC, η = 2", particles=True, eta=2.0),
)


def draw(law: Law, contender: Contender, gamma: float, num: int, steps: int) -> np.ndarray:
    """Samples ``(num,)``."""
    sampler = _weighted if contender.particles else _guided
    return np.asarray(sampler(law, contender, num, steps, gamma))[:, 0]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))  # γ is traced: one program for all of them
def _guided(law: Law, contender: Contender, num: int, steps: int, gamma: Array) -> Array:
    c, ts = given(jnp.zeros(num, int)), times.grid(steps)
    scale = guidance.SCHEDULES[contender.schedule](gamma / 5 if contender.method == "cfg_pp" else gamma)
    negatives = (given(jnp.ones(num, int)),) if contender.negative else ()
    gamma_negative = guidance.constant(1.0) if contender.negative == "weighed" else None
    inputs = GuidanceInputs(law.velocity, c, scale, PATH, negatives, gamma_negative, ts=ts, interval=contender.interval)
    settings: dict[str, Any] = dict(contender.settings)
    guided = guidance.guide(law.velocity, c, build(contender.method, inputs, **settings))
    keys = jax.random.split(jax.random.key(1), num)
    solver = solvers.SOLVERS[contender.solver](PATH)
    if contender.eta:
        solver = solvers.euler_maruyama(PATH, keys, solvers.memoryless(contender.eta))
    if contender.corrections:
        solver = tilted.predictor_corrector(PATH, keys, contender.corrections)
    return solvers.solve(solver, guided, jax.random.normal(jax.random.key(0), (num, 1)), ts)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _weighted(law: Law, contender: Contender, num: int, steps: int, gamma: Array) -> Array:
    """Resampled from so many weighted particles; those of the flow are weighed once, at the end."""
    options: dict[str, Any] = {"eta": contender.eta}
    if not contender.eta:
        options = {"solver": lambda keys: solvers.SOLVERS[contender.solver](PATH), "threshold": 0.0}
    p, key = tilted.powered(law.velocity, given(jnp.zeros(1, int)), gamma), jax.random.key(0)[None]
    r = tilted.feynman_kac(p, PATH, key, times.grid(steps), (1,), particles=num, **options)
    return tilted.resample(jax.random.key(1)[None], r.log_weights, r.x)[0]


def inverse(density: np.ndarray, num: int) -> np.ndarray:
    """Draws from a density on ``AXIS``, by its quantiles."""
    cdf = np.cumsum(density)
    return np.interp(np.random.default_rng(0).uniform(size=num), cdf / cdf[-1], AXIS)


def distances(samples: np.ndarray, density: np.ndarray) -> tuple[float, float]:
    """Wasserstein-1, and total variation of the histogram, of samples to a density on ``AXIS``."""
    cdf = np.cumsum(density) / density.sum()
    empirical = np.searchsorted(np.sort(samples), AXIS, side="right") / len(samples)
    expected = np.diff(np.interp(BINS, AXIS, cdf))
    found = np.histogram(samples, BINS)[0] / len(samples)
    outside = 1 - found.sum()
    return float(np.trapezoid(np.abs(empirical - cdf), AXIS)), float(0.5 * (np.abs(found - expected).sum() + outside))


def closed_forms(law: Law, gamma: float) -> dict[str, tuple[float, float]]:
    """Means and variances that are known: of the laws, and of CFG on Gaussians."""
    found = {}
    for name, p in (("p(x|c)", law.conditional(AXIS)), ("tilted law", powered(law, gamma))):
        p = p / np.trapezoid(p, AXIS)
        mean = np.trapezoid(p * AXIS, AXIS)
        found[f"exact: {name}"] = (mean, np.trapezoid(p * (AXIS - mean) ** 2, AXIS))
    if law.name == "Gaussian":
        for eta, name in ((0.0, "CFG, ODE"), (1.0, "CFG, SDE η = 1"), (4.0, "CFG, SDE η = 4")):
            mean, variance = analytic.guided_moments(gamma, 0.0, 2.0, 1.5, 1.0, eta=eta)
            found[f"exact: {name}"] = (float(mean), float(variance))
    return found


def plot(cells: dict[tuple[str, float], dict[str, np.ndarray]], laws: list[Law], gammas: list[float]) -> Figure:
    """Densities of the laws as areas and lines, and of what some methods sample."""
    figure = Figure(figsize=(4 * len(gammas) + 2, 6.5), layout="constrained")
    axes = figure.subplots(len(laws), len(gammas), squeeze=False)
    drawn = ("CFG, ODE", "CFG, SDE η = 1", "CFG, 0.2 ≤ t ≤ 0.8", "MAMBO-G, α = 1", "FKC, η = 2")
    for row, law in enumerate(laws):
        for column, gamma in enumerate(gammas):
            ax = axes[row, column]
            ax.fill_between(AXIS, law.conditional(AXIS), color="0.85", label="p(x|c)")
            ax.plot(AXIS, law.marginal(AXIS), color="0.6", ls=":", label="p(x)")
            ax.plot(AXIS, powered(law, gamma), color="k", lw=2, label="p(x)^(1−γ)·p(x|c)^γ")
            for i, name in enumerate(drawn):
                if name not in cells[law.name, gamma]:
                    continue
                heights = np.histogram(cells[law.name, gamma][name], BINS, density=True)[0]
                ax.plot((BINS[1:] + BINS[:-1]) / 2, heights, color=f"C{i}", lw=1.2, label=name)
            ax.set_xlim(-3, 6 if law.name == "Gaussian" else 3.5)
            ax.set_ylim(0, 1.4 * powered(law, gamma).max() if law.name != "Gaussian" else None)
            ax.set_title(f"{law.name}, γ = {gamma:g}", fontsize=10)
            ax.set_yticks([])
    figure.legend(*axes[-1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return figure
