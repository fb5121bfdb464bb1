"""Exact fields: conditional laws p(x, c) whose velocities are known, to hold samplers and networks against."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowguide.condition import Condition
from flowguide.paths import Path
from flowguide.typing import Array, CondVelocity


class Mixture(NamedTuple):
    """A Gaussian mixture with labels: p(x, c) = Σ_k π_k N(x; m_k, Σ_k) 1[label_k = c]. Null means every component.

    Attributes:
      weights: π ``(K,)``, positive, of any sum.
      means: m ``(K, d)``.
      covariances: Σ ``(K, d, d)``, symmetric positive definite.
      labels: int32 ``(K,)``; several components may share one.
    """

    weights: Array
    means: Array
    covariances: Array
    labels: Array


def mixture(weights: Array, means: Array, covariances: Array, labels: Array | None = None) -> Mixture:
    """A mixture; covariances may be variances, () or ``(K,)``. Without labels each component is its own class."""
    means = jnp.asarray(means, float)
    covariances = jnp.asarray(covariances, means.dtype)
    count, d = means.shape
    if covariances.ndim < 2:
        covariances = jnp.broadcast_to(covariances, (count,))[:, None, None] * jnp.eye(d, dtype=means.dtype)
    labels = jnp.arange(count) if labels is None else jnp.asarray(labels)
    return Mixture(jnp.asarray(weights, means.dtype), means, covariances, labels)


class _Posterior(NamedTuple):
    """Per example and component, in the eigenbasis of each covariance; S_k = α²Σ_k + σ²I."""

    log_joint: Array  # (B, K) log π_k N(x; αm_k, S_k), −inf for components of another class
    residual: Array  # (B, K, d) x − αm_k
    inverse: Array  # (B, K, d) eigenvalues of S_k^{-1}
    eigenvalues: Array  # (K, d) of Σ_k
    basis: Array  # (K, d, d)


def velocity(m: Mixture, p: Path) -> CondVelocity:
    """The exact marginal velocity u(t, x, c) for a condition of one Label field (an array, or a dict of one).

    u = Σ_k w_k [α̇m_k + (αα̇Σ_k + σσ̇I)S_k^{-1}(x − αm_k)], with w_k the posterior weights of the components.
    """

    def u(t: Array, x: Array, c: Condition) -> Array:
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])[:, None, None]
        q = _posterior(m, p, t, x, c)
        a, b, da, db = p.alpha(t), p.sigma(t), p.d_alpha(t), p.d_sigma(t)
        rotated = jnp.einsum("kde,bkd->bke", q.basis, q.residual)
        slope = jnp.einsum("kde,bke->bkd", q.basis, (a * da * q.eigenvalues + b * db) * q.inverse * rotated)
        return jnp.einsum("bk,bkd->bd", jax.nn.softmax(q.log_joint), da * m.means + slope)

    return u


def log_density(m: Mixture, p: Path, t: Array, x: Array, c: Condition) -> Array:
    """log p_t(x|c) ``(B,)``; log p_t(x) where c is null."""
    t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])[:, None, None]
    prior = jnp.where(_admitted(m, c), jnp.log(m.weights), -jnp.inf)
    return jax.nn.logsumexp(_posterior(m, p, t, x, c).log_joint, -1) - jax.nn.logsumexp(prior, -1)


def sample(key: Array, m: Mixture, c: Condition) -> Array:
    """Exact draws x1 ``(B, d)`` from p(x|c)."""
    which, noise = jax.random.split(key)
    k = jax.random.categorical(which, jnp.where(_admitted(m, c), jnp.log(m.weights), -jnp.inf))
    z = jax.random.normal(noise, (k.shape[0], m.means.shape[1]), m.means.dtype)
    return m.means[k] + jnp.einsum("bij,bj->bi", jnp.linalg.cholesky(m.covariances)[k], z)


def flow_matching_minimum(m: Mixture, p: Path, t: Array) -> Array:
    """The least value of the flow matching loss at times t ``(T,)``, for a single Gaussian (K = 1): ``(T,)``.

    E|α̇x1 + σ̇x0 − u(t, x_t)|²/d: the variance of the target that x_t does not explain. Per eigenvalue v of the
    covariance it is vΔ²/(α²v + σ²), with Δ = α̇σ − ασ̇.

    Raises:
      ValueError: if the mixture has more than one component.
    """
    if m.means.shape[0] != 1:
        raise ValueError(f"the minimum has a closed form for one component; got {m.means.shape[0]}")
    t = jnp.asarray(t)[:, None]
    v = jnp.linalg.eigvalsh(m.covariances[0])
    a, b = p.alpha(t), p.sigma(t)
    delta = p.d_alpha(t) * b - a * p.d_sigma(t)
    return jnp.mean(v * delta**2 / (a**2 * v + b**2), -1)


def _admitted(m: Mixture, c: Condition) -> Array:
    (value,), (present,) = jax.tree.leaves(c.value), jax.tree.leaves(c.present)
    return (value[:, None] == m.labels) | ~present[:, None]


def _posterior(m: Mixture, p: Path, t: Array, x: Array, c: Condition) -> _Posterior:
    eigenvalues, basis = jnp.linalg.eigh(m.covariances)
    s = p.alpha(t) ** 2 * eigenvalues + p.sigma(t) ** 2
    residual = x[:, None] - p.alpha(t) * m.means
    squared = jnp.einsum("kde,bkd->bke", basis, residual) ** 2
    log_normal = -0.5 * jnp.sum(squared / s + jnp.log(2 * math.pi * s), -1)
    log_joint = jnp.where(_admitted(m, c), jnp.log(m.weights) + log_normal, -jnp.inf)
    return _Posterior(log_joint, residual, 1 / s, eigenvalues, basis)
