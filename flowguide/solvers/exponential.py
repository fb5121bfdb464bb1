"""Exponential integrators: exact in the linear part of the flow, and accurate if the data prediction changes slowly.

In λ = log(α/σ) every flow obeys d(x/σ)/dλ = e^λ·D with D = E[x1|x_t] (Lu et al. 2022a, eq. 3.5), so that for known D

    x' = (σ'/σ)x + σ'∫_λ^λ' e^λ D dλ.

The methods differ in how they extrapolate D from past evaluations. They are written so that nothing is singular at
α = 0 (λ = −∞) or σ' = 0 (λ' = ∞); steps that touch an endpoint have order 1, because D is not smooth in λ there. Any
velocity works, also a guided one; D is computed from it. State: one array ``(B, *D)``, t ().
"""

from __future__ import annotations

import jax.numpy as jnp

from flowguide import paths
from flowguide.paths import Path
from flowguide.solvers.solver import Solver
from flowguide.typing import Array, PyTree, Velocity


def ddim(path: Path) -> Solver:
    """The first-order step x' = α'·D + σ'·E[x0|x_t]: DDIM with η = 0 (Song et al. 2021, eq. 12); Euler's on linear."""

    def step(velocity: Velocity, memory: PyTree, x: Array, t: Array, t_next: Array) -> tuple[Array, PyTree]:
        d, e = predictions(path, velocity, t, x)
        return (paths.interpolate(path, t_next, e, d)).astype(x.dtype), memory

    return Solver(lambda x: (), step, (0.0,))


def dpmpp_2m(path: Path) -> Solver:
    """DPM-Solver++(2M) (Lu et al. 2022b, Algorithm 2): order 2, one evaluation per step.

    x' = α'D + σ'E[x0|x_t] + ½(α' − ασ'/σ)(D − D_prev)·h/h_prev, where h is the step in λ.
    """

    def init(x: Array) -> PyTree:
        return jnp.zeros_like(x), jnp.zeros(())

    def step(velocity: Velocity, memory: PyTree, x: Array, t: Array, t_next: Array) -> tuple[Array, PyTree]:
        d_previous, h_previous = memory
        d, e = predictions(path, velocity, t, x)
        h = log_ratio(path, t_next) - log_ratio(path, t)
        new = paths.interpolate(path, t_next, e, d) + _change(path, t, t_next, h, h_previous, d, d_previous)
        return new.astype(x.dtype), (d.astype(x.dtype), h.astype(h_previous.dtype))

    return Solver(init, step, (0.0,))


def unipc2(path: Path) -> Solver:
    """UniPC-2 (Zhao et al. 2023, Algorithms 1 and 2, data prediction): order 3, one evaluation per step.

    The predictor, of order 2, is DPM-Solver++(2M). The evaluation at its result is also used to correct it before the
    next step starts, by the exact integral of the quadratic through the last three D, which raises the order by one.
    The last node is not corrected.
    """

    def init(x: Array) -> PyTree:
        zero = jnp.zeros_like(x)
        return zero, zero, zero, jnp.asarray(jnp.nan), jnp.zeros(()), jnp.zeros(())

    def step(velocity: Velocity, memory: PyTree, x: Array, t: Array, t_next: Array) -> tuple[Array, PyTree]:
        # The step that led to x: the state at its start, D there and at the node before, its t and h, the h before.
        start, d1, d2, t1, h1, h2 = memory
        d, e = predictions(path, velocity, t, x)
        fresh = jnp.isnan(t1)
        t1 = jnp.where(fresh, t, t1)
        # From data to noise the first step starts where x = D and σ = 0, so there is nothing to correct.
        known = ~fresh & (path.sigma(t1) != 0)
        corrected = jnp.where(known, _correct(path, t1, t, h1, h2, start, d, d1, d2), x)
        sigma = path.sigma(t)
        e = e + jnp.where(sigma == 0, 0.0, (corrected - x) / jnp.where(sigma == 0, 1.0, sigma))
        h = log_ratio(path, t_next) - log_ratio(path, t)
        new = paths.interpolate(path, t_next, e, d) + _change(path, t, t_next, h, h1, d, d1)
        dtype, scalar = x.dtype, h1.dtype
        kept = corrected.astype(dtype), d.astype(dtype), d1, t.astype(scalar), h.astype(scalar), h1
        return new.astype(dtype), kept

    return Solver(init, step, (0.0,))


def predictions(path: Path, velocity: Velocity, t: Array, x: Array) -> tuple[Array, Array]:
    """Returns E[x1|x_t] and E[x0|x_t], both regular on [0, 1], from one evaluation."""
    u = velocity(t, x)
    return paths.velocity_to_x1(path, t, x, u), paths.velocity_to_x0(path, t, x, u)


def log_ratio(path: Path, t: Array) -> Array:
    """Returns λ = log(α/σ): −∞ where α = 0 and ∞ where σ = 0."""
    return jnp.log(path.alpha(t)) - jnp.log(path.sigma(t))


def step_ratio(h: Array, h1: Array) -> Array:
    """Returns h/h1 of two steps in λ; 0 if either touches an infinite λ or there was no previous step (h1 = 0)."""
    known = jnp.isfinite(h) & jnp.isfinite(h1) & (h1 != 0)
    return jnp.where(known, h, 0.0) / jnp.where(known, h1, 1.0)


def _weight(path: Path, t: Array, t_next: Array) -> Array:
    """Returns σ'∫e^λ dλ over the step = α'(1 − e^{−h}) = α' − ασ'/σ, and 0 where σ = 0."""
    sigma = path.sigma(t)
    safe = jnp.where(sigma == 0, 1.0, sigma)
    return jnp.where(sigma == 0, 0.0, path.alpha(t_next) - path.alpha(t) * path.sigma(t_next) / safe)


def _change(path: Path, t: Array, t_next: Array, h: Array, h1: Array, d: Array, d1: Array) -> Array:
    """The contribution of the change of D within the step, extrapolated to its middle (the midpoint rule of 2M)."""
    return 0.5 * _weight(path, t, t_next) * step_ratio(h, h1) * (d - d1)


def _correct(
    path: Path, t: Array, t_next: Array, h: Array, h1: Array, x: Array, d_next: Array, d: Array, d1: Array
) -> Array:
    """Returns x at t_next from x at t, given D at both and at the node before t (h1 = 0: there is none)."""
    sigma = path.sigma(t)
    decay = path.sigma(t_next) / jnp.where(sigma == 0, 1.0, sigma)
    base = decay * x + _weight(path, t, t_next) * d
    # D is interpolated linearly in e^λ if λ is infinite at a node, and otherwise linearly or quadratically in λ.
    finite = jnp.isfinite(h) & (h != 0)
    h = jnp.where(finite, h, 1.0)
    first = h + jnp.expm1(-h)  # ∫_0^h e^{τ−h} τ dτ
    second = h * h - 2 * first - h * first  # ∫_0^h e^{τ−h} τ(τ − h) dτ
    quadratic = finite & jnp.isfinite(h1) & (h1 != 0)
    h1 = jnp.where(quadratic, h1, 1.0)
    slope = (d_next - d) / h
    bend = jnp.where(quadratic, (slope - (d - d1) / h1) / (h + h1), 0.0)
    smooth = path.alpha(t_next) * (first * slope + second * bend)
    rough = 0.5 * _weight(path, t, t_next) * (d_next - d)
    return base + jnp.where(finite, smooth, rough)
