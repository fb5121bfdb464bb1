"""Stochastic solvers: SDEs with the same marginals as the flow.

For any D_t ≥ 0 the equation dx = [u + D_t·s]dt + √(2D_t)·dW, s = ∇log p_t, has the marginals of dx = u dt (Song et al.
2021, Appendix D.1; Ma et al. 2024, SiT, eq. 4). The natural family is D_t = ηκ, κ = σΔ/α = σ²λ̇: η = 0 is the flow, η =
1 the reversed noising process ("memoryless"), and the noise vanishes at t = 1. A guided velocity is not the velocity of
any distribution, so with guidance η changes what is sampled (``analytic.guided_moments`` says how).

s, which is 0/0 at t = 1, is never formed: D_t·s = −(D_t/σ)·E[x0|x_t]. At t = 0, κ is infinite and x is noise
independent of the data; ``renoise`` then draws fresh noise. The last step, to t = 1, returns x̂1 without noise.

A mix Σ w_i·u_i of velocities with W = Σ w_i ≠ 1 has the score Σ w_i·s_i = −W·ē/σ, where ē is E[x0|x_t] of the mean
velocity ū = Σ w_i·u_i/W: all solvers here take W as ``total`` and use the predictions of ū. Guidance has W = 1.

Each sample draws its noise from its own key and the step index, so a sample does not depend on its batch. State: one
array ``(B, *D)``. Steps only go from noise to data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np

from flowguide import paths
from flowguide.paths import Path
from flowguide.solvers.exponential import log_ratio, predictions, step_ratio
from flowguide.solvers.solver import Solver, over
from flowguide.typing import Array, PRNGKey, PyTree, Velocity

Last = Literal["data", "mean"]


class Diffusion(Protocol):
    """path, t -> D_t, half the squared amplitude of the noise; may be infinite at t = 0."""

    def __call__(self, path: Path, t: Array, /) -> Array: ...


# Gauss-Legendre nodes and weights on [0, 1], for the integrals over a step, which have no closed form if W ≠ 1.
NODES, SHARES = ((a + shift) / 2 for a, shift in zip(np.polynomial.legendre.leggauss(8), (1, 0), strict=True))


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


def euler_maruyama(
    path: Path,
    keys: PRNGKey,
    diffusion: Diffusion | None = None,
    total: float | Array = 1.0,
    last: Last = "data",
) -> Solver:
    """Euler-Maruyama: x' = x + (u + D·s)dt + √(2D·dt)z, D = min(D_t, σ²/(2W·dt)); weak order 1, one evaluation a step.

    The bound on D costs no accuracy, as any D ≥ 0 has the same marginals. It is active only where steps are too long
    for D_t, near t = 0. There the unbounded step would multiply the noise in x by 1 − W·D_t·dt/σ², which blows up below
    −1; the bound keeps this factor at ½ or more, and the variance of the noise within 4/3 of the correct one.

    Args:
      path: the path.
      keys: typed keys ``(B,)``, one per sample.
      diffusion: D_t; ``memoryless()`` by default.
      total: W = Σ w_i > 0, () or ``(B,)``, if the velocity is a mix Σ w_i·u_i. 1 for a single velocity and for
        guidance.
      last: what a step to t = 1 returns: "data", x̂1; or "mean", x + (u + D_t·s)dt, the step without its noise and
        without the bound on D, as SiT's last step "Mean" (Ma et al. 2024, released code).

    Raises:
      ValueError: if ``last`` is unknown.
    """
    diffusion = memoryless() if diffusion is None else diffusion
    if last not in get_args(Last):
        raise ValueError(f"last must be one of {get_args(Last)}; got {last!r}")

    def move(t: Array, t_next: Array, x: Array, d: Array, e: Array, z: Array) -> Array:
        w, s, dt = over(jnp.asarray(total, x.dtype), x), path.sigma(t), t_next - t
        whole = diffusion(path, t)
        whole = jnp.where(jnp.isnan(whole), 0.0, whole)  # η = 0 at t = 0 is 0·∞: no noise
        amount = jnp.minimum(whole, s**2 / (2 * w * dt))
        u = w * paths.conditional_velocity(path, t, e, d)
        minus_score = w * e / jnp.where(s == 0, 1.0, s)
        new = x + dt * (u - amount * minus_score) + jnp.sqrt(2 * amount * dt) * z
        if last == "data":
            return new
        whole = jnp.where(jnp.isinf(whole), amount, whole)
        return jnp.where(t_next >= 1, x + dt * (u - whole * minus_score), new)

    return _stochastic(path, keys, total, move, end=last == "data")


def renoise(path: Path, keys: PRNGKey, eta: float | Array = 1.0, total: float | Array = 1.0) -> Solver:
    """x' = α'x̂1 + σ'(ρx̂0 + √(1 − ρ²)z), ρ = e^{−ηh}: exact for constant x̂1; weak order 1, one evaluation per step.

    The family D_t = ηκ on any path, with h the step in λ = log(α/σ). η = 0 is DDIM and η = 1 the ancestral step (Song
    et al. 2021, DDIM, eq. 12 with ρ = √(1 − σ_t²/σ'²); Lu et al. 2022b, SDE-DPM-Solver++1). For W ≠ 1 the formula is
    that of ``_transition``, and η = 0 is the flow of the mix.

    Args:
      path: the path.
      keys: typed keys ``(B,)``, one per sample.
      eta: η ≥ 0.
      total: W = Σ w_i > 0, () or ``(B,)``, if the velocity is a mix Σ w_i·u_i. 1 for a single velocity and for
        guidance.
    """

    def move(t: Array, t_next: Array, x: Array, d: Array, e: Array, z: Array) -> Array:
        return _drawn(_transition(path, t, t_next, eta, total), d, e, z)

    return _stochastic(path, keys, total, move)


def renoise_2m(path: Path, keys: PRNGKey, eta: float | Array = 1.0, total: float | Array = 1.0) -> Solver:
    """``renoise`` with x̂1 extrapolated over the step from the previous one: weak order 2, one evaluation per step.

    It adds ½B(x̂1 − x̂1_prev)h/h_prev, where B is the weight of x̂1 in the transition from x, α'(1 − e^{−(1+η)h}) if W
    = 1: SDE-DPM-Solver++(2M) (Lu et al. 2022b) for η = 1, and DPM-Solver++(2M) for η = 0. The noise is additive, and
    the noise in x̂1 − x̂1_prev is as correlated with x as that of x̂1 within the step, which is what makes two-step
    Maruyama methods second-order in law.

    Args:
      path: the path.
      keys: typed keys ``(B,)``, one per sample.
      eta: η ≥ 0.
      total: W = Σ w_i > 0, () or ``(B,)``, if the velocity is a mix Σ w_i·u_i. 1 for a single velocity and for
        guidance.
    """

    def init(x: Array) -> PyTree:
        return jnp.int32(0), jnp.zeros_like(x), jnp.zeros(())

    def step(velocity: Velocity, memory: PyTree, x: Array, t: Array, t_next: Array) -> tuple[Array, PyTree]:
        index, d_previous, h_previous = memory
        d, e = predictions(path, _mean(velocity, total), t, x)
        h = log_ratio(path, t_next) - log_ratio(path, t)
        moved = _transition(path, t, t_next, eta, total)
        new = _drawn(moved, d, e, noise(keys, index, x))
        new = new + 0.5 * over(moved.pull, x) * step_ratio(h, h_previous) * (d - d_previous)
        new = _deterministic_at_the_end(path, t_next, d, e, new)
        kept = index + 1, d.astype(x.dtype), h.astype(h_previous.dtype)
        return new.astype(x.dtype), kept

    return Solver(init, step, (0.0,), forward_only=True)


class _Transition(NamedTuple):
    """x' = data·d + kept·e + √variance·z = Φx + pull·d + √variance·z, each () or ``(B,)``, for constant d."""

    data: Array
    kept: Array
    variance: Array
    pull: Array


def _transition(path: Path, t: Array, t_next: Array, eta: float | Array, total: float | Array) -> _Transition:
    """The distribution of x' under dx = [W(α̇d + σ̇e) − ηκWe/σ]dt + √(2ηκ)dW from x = αd + σe, for constant d.

    The equation is linear: with φ(s) = (σ'/σ_s·e^{−η(λ' − λ_s)})^W, the factor from s to the end, and integrals over
    the step, Φ = φ(t), the weight of d is α' + (W − 1)∫φ dα and the variance (σ'² − σ²Φ²)/W + (1 − 1/W)∫φ² d(σ²). For W
    = 1 these are α', and σ'²(1 − ρ²) with ρ = e^{−ηh} and kept = σ'ρ.
    """
    alpha, sigma, ratio = path.alpha(t), path.sigma(t), _kept(path, t, t_next)
    if is_one(total):
        rho, data = ratio**eta, path.alpha(t_next)
        kept = path.sigma(t_next) * rho
        return _Transition(data, kept, path.sigma(t_next) ** 2 * (1 - rho**2), data * (1 - ratio ** (1 + eta)))
    w = jnp.asarray(total, jnp.result_type(t))

    def factor(s: Array, w: Array) -> Array:
        safe = jnp.where(path.sigma(s) == 0, 1.0, path.sigma(s))
        return (path.sigma(t_next) / safe * _kept(path, s, t_next) ** eta) ** w

    at, share = t + (t_next - t) * NODES.astype(w.dtype), (t_next - t) * SHARES.astype(w.dtype)
    weights = factor(at, w[..., None])
    scale, end = factor(t, w), path.sigma(t_next) ** 2
    data = path.alpha(t_next) + (w - 1) * (weights @ (share * path.d_alpha(at)))
    variance = (end - (sigma * scale) ** 2) / w
    variance = variance + (1 - 1 / w) * (weights**2 @ (share * 2 * path.sigma(at) * path.d_sigma(at)))
    return _Transition(data, sigma * scale, variance, data - alpha * scale)


def _drawn(moved: _Transition, d: Array, e: Array, z: Array) -> Array:
    noise = jnp.sqrt(jnp.maximum(moved.variance, jnp.finfo(moved.variance.dtype).tiny))  # √ has no derivative at 0
    data, kept, noise = (over(a, d) for a in (moved.data, moved.kept, noise))
    return data * d + kept * e + noise * z


def _mean(velocity: Velocity, total: float | Array) -> Velocity:
    """Returns ū = Σ w_i·u_i/W."""
    if is_one(total):
        return velocity
    return lambda t, x: velocity(t, x) / over(jnp.asarray(total, x.dtype), x)


def _deterministic_at_the_end(path: Path, t_next: Array, d: Array, e: Array, new: Array) -> Array:
    return jnp.where(t_next >= 1, paths.interpolate(path, t_next, e, d), new)


def _stochastic(
    path: Path, keys: PRNGKey, total: float | Array, move: Callable[..., Array], end: bool = True
) -> Solver:
    """Returns the solver of ``move``; with ``end`` a step to t = 1 returns x̂1 instead."""

    def step(velocity: Velocity, memory: PyTree, x: Array, t: Array, t_next: Array) -> tuple[Array, PyTree]:
        d, e = predictions(path, _mean(velocity, total), t, x)
        new = move(t, t_next, x, d, e, noise(keys, memory, x))
        new = _deterministic_at_the_end(path, t_next, d, e, new) if end else new
        return new.astype(x.dtype), memory + 1

    return Solver(lambda x: jnp.int32(0), step, (0.0,), forward_only=True)


def is_one(total: float | Array) -> bool:
    """Whether a sum of weights is 1 by construction, for any values of the weights."""
    return isinstance(total, float) and total == 1.0


def noise(keys: PRNGKey, step: Array, x: Array) -> Array:
    """Draws standard normal noise like x ``(B, *D)``, for each sample from its own key and the step index."""

    def one(key: PRNGKey) -> Array:
        return jax.random.normal(jax.random.fold_in(key, step), x.shape[1:], x.dtype)

    return jax.vmap(one)(keys)


def _kept(path: Path, t: Array, t_next: Array) -> Array:
    """Returns e^{−h} = ασ'/(α'σ) in [0, 1]: the fraction of x̂0 that one unit of η keeps over the step."""
    ratio = path.alpha(t) * path.sigma(t_next) / (path.alpha(t_next) * path.sigma(t))
    return jnp.clip(ratio, 0.0, 1.0)
