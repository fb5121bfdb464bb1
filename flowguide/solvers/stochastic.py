"""Stochastic solvers: the same marginals as the flow, with noise added and taken away on the way.

For any D_t ≥ 0 the equation dx = [u + D_t·s]dt + √(2D_t)·dW, s = ∇log p_t, has the marginals of dx = u dt (Song et al.
2021, Appendix D.1; Ma et al. 2024, SiT, eq. 4). The family D_t = ηκ, κ = σΔ/α = σ²λ̇, is the natural one: η = 0 is the
flow, η = 1 the reversed noising process ("memoryless"), and its noise vanishes at t = 1. Guided velocities are no
velocities of a law, so there η changes what is sampled (``analytic.guided_moments`` says how).

Nothing here forms s, which is 0/0 at t = 1: D_t·s = −(D_t/σ)·E[x0|x_t]. At t = 0, where x is noise independent of the
data and κ is infinite, a step draws fresh noise; the last step, to t = 1, is the deterministic x̂1.

Noise: that of a sample derives from its own key and the number of the step, so that a sample does not depend on the
batch that it is drawn in. State: one array ``(B, *D)``; steps go from noise to data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from flowguide import paths
from flowguide.paths import Path
from flowguide.solvers.exponential import log_ratio, predictions, step_ratio
from flowguide.solvers.solver import Solver, over
from flowguide.typing import Array, PRNGKey, PyTree, Velocity

Diffusion: TypeAlias = Callable[[Path, Array], Array]  # D_t = σ²/2 of the noise; may be infinite at t = 0


def memoryless(eta: float | Array = 1.0) -> Diffusion:
    """D_t = ηκ = ησ(α̇σ − ασ̇)/α; η = 1 is the "SBDM" coefficient of SiT (Ma et al. 2024, Table 1)."""
    return lambda p, t: eta * p.sigma(t) * paths.wronskian(p, t) / p.alpha(t)


def constant(scale: float | Array = 1.0) -> Diffusion:
    """D_t = scale; stiff near t = 1, where D_t·s grows like 1/σ."""
    return lambda p, t: scale * jnp.ones_like(t)


def sigma(scale: float | Array = 1.0) -> Diffusion:
    """D_t = scale·σ."""
    return lambda p, t: scale * p.sigma(t)


def decreasing(scale: float | Array = 1.0) -> Diffusion:
    """D_t = scale·(1 − t)."""
    return lambda p, t: scale * (1 - t)


def cosine(scale: float | Array = 1.0) -> Diffusion:
    """D_t = scale·(cos πt + 1)²/4."""
    return lambda p, t: 0.25 * scale * (jnp.cos(jnp.pi * t) + 1) ** 2


def sine(scale: float | Array = 1.0) -> Diffusion:
    """D_t = scale·sin²πt."""
    return lambda p, t: scale * jnp.sin(jnp.pi * t) ** 2


DIFFUSIONS: dict[str, Callable[..., Diffusion]] = {
    "memoryless": memoryless,
    "constant": constant,
    "sigma": sigma,
    "decreasing": decreasing,
    "cosine": cosine,
    "sine": sine,
}


def euler_maruyama(path: Path, keys: PRNGKey, diffusion: Diffusion | None = None, total: float | Array = 1.0) -> Solver:
    """Euler-Maruyama: x' = x + (u + D_t·s)dt + √(2D_t·dt)z; weak order 1, one evaluation a step.

    Args:
      path: the path.
      keys: typed keys ``(B,)``, one a sample.
      diffusion: D_t; ``memoryless()`` by default.
      total: W = Σ w_i, () or ``(B,)``, where the velocity is a mix Σ w_i·u_i; the score is then
        Σ w_i·s_i = (αu − Wα̇x)/(σΔ). 1 for a velocity, and for guidance.
    """
    diffusion = memoryless() if diffusion is None else diffusion

    def move(t: Array, t_next: Array, x: Array, d: Array, e: Array, z: Array) -> Array:
        amount = diffusion(path, t)
        free = jnp.isfinite(amount)
        amount = jnp.where(free, amount, 0.0)
        dt = t_next - t
        u = paths.conditional_velocity(path, t, e, d)
        s = path.sigma(t)
        beyond = over(jnp.asarray(total, x.dtype), x) - 1
        minus_score = (e + beyond * path.d_alpha(t) / paths.wronskian(path, t) * x) / jnp.where(s == 0, 1.0, s)
        stepped = x + dt * (u - amount * minus_score) + jnp.sqrt(2 * amount * dt) * z
        # Where D_t is infinite, at t = 0, x is noise: as good as fresh one, unless it has another variance.
        fresh = jnp.where(beyond == 0, paths.interpolate(path, t_next, z, d), x + dt * u)
        return jnp.where(free, stepped, fresh)

    return _stochastic(path, keys, move)


def renoise(path: Path, keys: PRNGKey, eta: float | Array = 1.0) -> Solver:
    """x' = α'x̂1 + σ'(ρx̂0 + √(1 − ρ²)z), ρ = e^{−ηh}: exact where x̂1 stands still; weak order 1, one evaluation.

    The family D_t = ηκ on any path, h the step in λ = log(α/σ). η = 0 is DDIM and η = 1 the ancestral step (Song et al.
    2021, DDIM, eq. 12 with ρ = √(1 − σ_t²/σ'²); Lu et al. 2022b, SDE-DPM-Solver++1).

    Args:
      path: the path.
      keys: typed keys ``(B,)``, one a sample.
      eta: η ≥ 0.
    """

    def move(t: Array, t_next: Array, x: Array, d: Array, e: Array, z: Array) -> Array:
        return _renoise(path, t, t_next, d, e, z, eta)

    return _stochastic(path, keys, move)


def renoise_2m(path: Path, keys: PRNGKey, eta: float | Array = 1.0) -> Solver:
    """``renoise`` with x̂1 extrapolated over the step from the last one: weak order 2, one evaluation a step.

    Adds ½α'(1 − e^{−(1+η)h})(x̂1 − x̂1_prev)h/h_prev; SDE-DPM-Solver++(2M) (Lu et al. 2022b) for η = 1, and
    DPM-Solver++(2M) for η = 0. The noise is additive, and the noise in x̂1 − x̂1_prev is as correlated with x as that of
    x̂1 within the step will be: what makes two-step Maruyama methods of second order in law.

    Args:
      path: the path.
      keys: typed keys ``(B,)``, one a sample.
      eta: η ≥ 0.
    """

    def init(x: Array) -> PyTree:
        return jnp.int32(0), jnp.zeros_like(x), jnp.zeros(())

    def step(velocity: Velocity, memory: PyTree, x: Array, t: Array, t_next: Array) -> tuple[Array, PyTree]:
        index, d_previous, h_previous = memory
        d, e = predictions(path, velocity, t, x)
        h = log_ratio(path, t_next) - log_ratio(path, t)
        z = noise(keys, index, x)
        new = _renoise(path, t, t_next, d, e, z, eta)
        weight = path.alpha(t_next) * (1 - _kept(path, t, t_next) ** (1 + eta))
        new = new + 0.5 * weight * step_ratio(h, h_previous) * (d - d_previous)
        new = _deterministic_at_the_end(path, t_next, d, e, new)
        kept = index + 1, d.astype(x.dtype), h.astype(h_previous.dtype)
        return new.astype(x.dtype), kept

    return Solver(init, step, (0.0,))


def _renoise(path: Path, t: Array, t_next: Array, d: Array, e: Array, z: Array, eta: float | Array) -> Array:
    rho = _kept(path, t, t_next) ** eta
    return paths.interpolate(path, t_next, rho * e + jnp.sqrt(1 - rho**2) * z, d)


def _deterministic_at_the_end(path: Path, t_next: Array, d: Array, e: Array, new: Array) -> Array:
    return jnp.where(t_next >= 1, paths.interpolate(path, t_next, e, d), new)


def _stochastic(path: Path, keys: PRNGKey, move: Callable[..., Array]) -> Solver:
    def step(velocity: Velocity, memory: PyTree, x: Array, t: Array, t_next: Array) -> tuple[Array, PyTree]:
        d, e = predictions(path, velocity, t, x)
        new = move(t, t_next, x, d, e, noise(keys, memory, x))
        new = _deterministic_at_the_end(path, t_next, d, e, new)
        return new.astype(x.dtype), memory + 1

    return Solver(lambda x: jnp.int32(0), step, (0.0,))


def noise(keys: PRNGKey, step: Array, x: Array) -> Array:
    """Normal numbers like x ``(B, *D)``, each sample's from its own key and the number of the step."""

    def one(key: PRNGKey) -> Array:
        return jax.random.normal(jax.random.fold_in(key, step), x.shape[1:], x.dtype)

    return jax.vmap(one)(keys)


def _kept(path: Path, t: Array, t_next: Array) -> Array:
    """e^{−h} = ασ'/(α'σ) in [0, 1]: what one unit of η keeps of x̂0 over the step."""
    ratio = path.alpha(t) * path.sigma(t_next) / (path.alpha(t_next) * path.sigma(t))
    return jnp.clip(ratio, 0.0, 1.0)
