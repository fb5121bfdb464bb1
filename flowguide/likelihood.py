"""Likelihood of data under a flow, and the way between data and noise.

A flow dx/dt = u(t, x) from N(0, I) at t = 0 gives its samples the density

    log p_1(x_1) = log N(x_0; 0, I) − ∫_0^1 ∇·u(t, x_t) dt

along the trajectory that ends in x_1 (Chen et al. 2018, eq. 8; Lipman et al. 2023, Appendix C). Here it is integrated
from x_1 back to noise with any solver for trees.

Of a *guided* velocity this is the density of that sampler: normalised, but neither p(x|c) nor p(x)^(1−γ)·p(x|c)^γ. A
rule that remembers earlier steps has no velocity field, hence no density: a ``StatefulVelocity`` is refused.

Do not trust the densities of rules that divide by what may be 0, as ``zero_star`` and ``rescale`` do. Their velocities
are not Lipschitz in x, so that the flow need not be invertible and its divergence has no bound: the densities of such
flows in the plane were seen to integrate to values from 1.06 to 2.6, and not to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer

from flowguide import times
from flowguide.solvers import Solver, StatefulVelocity, rk4, solve, vector_field
from flowguide.solvers.solver import check_nodes
from flowguide.typing import Array, PRNGKey, PyTree, Velocity

# (velocity, t (), x (B, *D)) -> the velocity there and its divergence (B,)
Divergence: TypeAlias = Callable[[Velocity, Array, Array], tuple[Array, Array]]


class Likelihood(NamedTuple):
    """Log-densities and what they rest on.

    Attributes:
      log_density: log p_1(x_1) ``(B,)``, in nats.
      x0: the noise that flows to x_1, ``(B, *D)``.
    """

    log_density: Array
    x0: Array


def exact_divergence() -> Divergence:
    """Σ_i ∂u_i/∂x_i by one forward-mode derivative a dimension: for small d."""

    def divergence(velocity: Velocity, t: Array, x: Array) -> tuple[Array, Array]:
        size = math.prod(x.shape[1:])
        u, slope = jax.linearize(lambda x: velocity(t, x), x)  # the velocity itself once, not once a dimension

        def along(i: Array) -> Array:
            direction = jax.nn.one_hot(i, size, dtype=x.dtype).reshape(x.shape[1:])
            return slope(jnp.broadcast_to(direction, x.shape)).reshape(x.shape[0], size)[:, i]

        return u, jnp.sum(jax.lax.map(along, jnp.arange(size)), axis=0)

    return divergence


def hutchinson(keys: PRNGKey, shape: tuple[int, ...], probes: int = 1) -> Divergence:
    """εᵀ(∂u/∂x)ε with Rademacher vectors ε, each sample's own and the same all along the solve: unbiased.

    (Hutchinson 1990; Grathwohl et al. 2019, eq. 7: fixed ε keep the integrand smooth in t.) For d > 1 Rademacher
    vectors have less variance than normal ones, as they are exact on the diagonal.

    Args:
      keys: typed keys ``(B,)``, one a sample.
      shape: of one sample.
      probes: vectors a sample, averaged; each costs one forward-mode derivative.

    Raises:
      ValueError: if ``probes`` is not positive.
    """
    if probes < 1:
        raise ValueError(f"at least one probe is needed; got probes={probes}")
    vectors = jax.vmap(lambda key: jax.random.rademacher(key, (probes, *shape), jnp.float32))(keys)

    def divergence(velocity: Velocity, t: Array, x: Array) -> tuple[Array, Array]:
        u, slope = jax.linearize(lambda x: velocity(t, x), x)

        def one(vector: Array) -> Array:
            vector = vector.astype(x.dtype)
            return jnp.sum((vector * slope(vector)).reshape(x.shape[0], -1), axis=1)

        return u, jnp.mean(jax.lax.map(one, jnp.moveaxis(vectors, 1, 0)), axis=0)

    return divergence


def log_density(
    velocity: Velocity | StatefulVelocity,
    x1: Array,
    *,
    divergence: Divergence | None = None,
    ts: Array | None = None,
    solver: Solver | None = None,
    checkpoint: bool = False,
) -> Likelihood:
    """log p_1(x_1) of data under the flow of ``velocity``, started at N(0, I).

    Args:
      velocity: t (), x ``(B, *D)`` -> u, where each sample's velocity depends on that sample alone.
      x1: data ``(B, *D)``, floating.
      divergence: ``exact_divergence()``, the default, or ``hutchinson(...)``.
      ts: nodes that increase from 0 to 1, as for sampling; 100 equal steps by default. They are walked backwards.
      solver: RK4 by default.
      checkpoint: save memory when the result is differentiated, see ``solve``.

    Raises:
      ValueError: if ``ts`` does not increase from 0 to 1, the solver adds noise, or a log-density is not finite. Under
        ``jit`` the check is skipped, and NaN or infinite values are returned.
      TypeError: for a ``StatefulVelocity``.
    """
    split, velocity = divergence or exact_divergence(), vector_field(velocity, "a density")

    def together(t: Array, state: PyTree) -> PyTree:
        u, trace = split(velocity, t, state[0])
        return u, trace.astype(state[1].dtype)

    start = x1, jnp.zeros(x1.shape[0], x1.dtype)
    # d(log p)/dt = −∇·u: the integral from 1 to 0 of ∇·u is minus what is to be subtracted from log N(x_0).
    x0, integral = solve(solver or rk4(), together, start, _nodes(ts)[::-1], checkpoint=checkpoint)
    size = math.prod(x1.shape[1:])
    log_normal = -0.5 * (jnp.sum(x0.reshape(x0.shape[0], -1) ** 2, axis=1) + size * math.log(2 * math.pi))
    log_density = log_normal + integral
    if not isinstance(log_density, Tracer) and (bad := int(jnp.sum(~jnp.isfinite(log_density)))):
        raise ValueError(
            f"{bad} of {log_density.size} log-densities are not finite: the velocity is not smooth enough along their "
            "trajectories (zero_star and rescale are not), x1 is not finite, or more steps are needed"
        )
    return Likelihood(log_density, x0)


def bits_per_dimension(log_density: Array, size: int, levels: int = 256, width: float = 2.0) -> Array:
    """−log₂ p of discrete data, in bits a dimension, from the density of their dequantised values.

    Args:
      log_density: nats, of x + uniform noise over one level, whose range has been scaled to ``width``.
      size: number of dimensions d.
      levels: of the data; 256 for bytes.
      width: of the range that the levels were scaled to; [−1, 1] has 2. (Theis et al. 2016, §3.1.)
    """
    return -log_density / (size * math.log(2)) + math.log2(levels / width)


def encode(
    velocity: Velocity | StatefulVelocity, x1: Array, *, ts: Array | None = None, solver: Solver | None = None
) -> Array:
    """The noise that the flow carries to x1: the solve from data back to noise; ``ts`` as in ``log_density``."""
    return solve(solver or rk4(), vector_field(velocity, "encode"), x1, _nodes(ts)[::-1])


def decode(
    velocity: Velocity | StatefulVelocity, x0: Array, *, ts: Array | None = None, solver: Solver | None = None
) -> Array:
    """The data that the flow makes of noise: ``solve`` itself, with the same defaults as ``encode``."""
    return solve(solver or rk4(), vector_field(velocity, "decode"), x0, _nodes(ts))


def _nodes(ts: Array | None) -> Array:
    return check_nodes(times.grid(100) if ts is None else ts, whole=True)
