"""Exact fields: joint distributions p(x, c) whose velocities, scores and densities are known on every path.

A ``Mixture`` is conditioned on a label; a ``Joint`` Gaussian on a vector. ``velocity``, ``score``, ``log_density`` and
``sample`` accept either. The null condition gives the marginal p(x) = ∫ p(x, c) dc.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from flowguide import paths
from flowguide.condition import Condition
from flowguide.paths import Path
from flowguide.typing import Array, CondVelocity


class Mixture(NamedTuple):
    """A Gaussian mixture with labels: p(x, c) = Σ_k π_k N(x; m_k, Σ_k) 1[label_k = c]. Null admits every component.

    Attributes:
      weights: π ``(K,)``, positive, with any sum.
      means: m ``(K, d)``.
      covariances: Σ ``(K, d, d)``, symmetric positive definite.
      labels: int32 ``(K,)``; several components may share one.
    """

    weights: Array
    means: Array
    covariances: Array
    labels: Array


class Joint(NamedTuple):
    """A joint Gaussian of x ``(d,)`` and a vector condition c ``(k,)``.

    Attributes:
      mean_x: ``(d,)``.
      mean_c: ``(k,)``.
      covariance_x: Σ_xx ``(d, d)``, symmetric positive definite.
      cross: Σ_xc ``(d, k)``.
      covariance_c: Σ_cc ``(k, k)``, symmetric positive definite.
    """

    mean_x: Array
    mean_c: Array
    covariance_x: Array
    cross: Array
    covariance_c: Array


def joint(
    mean_x: ArrayLike, mean_c: ArrayLike, covariance_x: ArrayLike, cross: ArrayLike, covariance_c: ArrayLike
) -> Joint:
    """Builds a joint Gaussian from arrays or nested lists.

    Raises:
      ValueError: if the shapes do not match.
    """
    law = Joint(*(jnp.asarray(a, float) for a in (mean_x, mean_c, covariance_x, cross, covariance_c)))
    d, k = law.mean_x.shape[0], law.mean_c.shape[0]
    expected = ((d,), (k,), (d, d), (d, k), (k, k))
    if tuple(a.shape for a in law) != expected:
        raise ValueError(f"a joint Gaussian with d = {d}, k = {k} has shapes {expected}; got {[a.shape for a in law]}")
    return law


def observation(matrix: ArrayLike, noise: ArrayLike) -> Joint:
    """x|c ~ N(A·c, noise·I or noise) with c ~ N(0, I): ``matrix`` A ``(d, k)``, ``noise`` () or ``(d, d)``.

    With A = 1 and noise 1 this is the example for which Bradley & Nakkiran (2024) show what guidance samples.
    """
    a = jnp.asarray(matrix, float)
    d, k = a.shape
    noise = jnp.asarray(noise, a.dtype)
    noise = noise * jnp.eye(d, dtype=a.dtype) if noise.ndim == 0 else noise
    return joint(jnp.zeros(d), jnp.zeros(k), a @ a.T + noise, a, jnp.eye(k))


def moments(law: Joint, c: Condition) -> tuple[Array, Array]:
    """Returns mean ``(B, d)`` and covariance ``(B, d, d)`` of x|c, or of x where c is null; c has one Vector field."""
    return _mean(law, c), _covariances(law)[_only(c)[1].astype(int)]


def _gain(law: Joint) -> Array:
    """Returns Σ_xcΣ_cc^{-1}, the gain of the regression of x on c."""
    return jnp.linalg.solve(law.covariance_c, law.cross.T).T


def _mean(law: Joint, c: Condition) -> Array:
    value, present = _only(c)
    return law.mean_x + jnp.where(present[:, None], (value - law.mean_c) @ _gain(law).T, 0.0)


def _covariances(law: Mixture | Joint) -> Array:
    """All covariances: of each component ``(K, d, d)``; or of x, and of x|c for any c, ``(2, d, d)``."""
    if isinstance(law, Mixture):
        return law.covariances
    return jnp.stack([law.covariance_x, law.covariance_x - _gain(law) @ law.cross.T])


def mixture(weights: ArrayLike, means: ArrayLike, covariances: ArrayLike, labels: ArrayLike | None = None) -> Mixture:
    """Builds a mixture; covariances may be variances, () or ``(K,)``. By default each component is its own class."""
    means = jnp.asarray(means, float)
    covariances = jnp.asarray(covariances, means.dtype)
    count, d = means.shape
    if covariances.ndim < 2:
        covariances = jnp.broadcast_to(covariances, (count,))[:, None, None] * jnp.eye(d, dtype=means.dtype)
    labels = jnp.arange(count) if labels is None else jnp.asarray(labels)
    return Mixture(jnp.asarray(weights, means.dtype), means, covariances, labels)


_Spectrum: TypeAlias = tuple[Array, Array]  # eigenvalues (K, d) and eigenvectors (K, d, d) of the covariances


class _Posterior(NamedTuple):
    """Per example and component, in the eigenbasis of each covariance; S_k = α²Σ_k + σ²I."""

    log_joint: Array  # (B, K) log π_k N(x; αm_k, S_k), −inf for components of other classes
    rotated: Array  # (B, K, d) x − αm_k, in that basis
    inverse: Array  # (B, K, d) eigenvalues of S_k^{-1}


def velocity(law: Mixture | Joint, p: Path) -> CondVelocity:
    """The exact marginal velocity u(t, x, c) for a condition with one field (an array, or a dict of one).

    u = Σ_k w_k [α̇m_k + (αα̇Σ_k + σσ̇I)S_k^{-1}(x − αm_k)], with w_k the posterior weights of the components; a
    ``Joint`` has one component, with the moments of x|c.
    """

    spectrum = jnp.linalg.eigh(_covariances(law))  # once, not in every evaluation

    def u(t: Array, x: Array, c: Condition) -> Array:
        if isinstance(law, Joint):
            return _gaussian(law, spectrum, p, t, x, c)[0]
        eigenvalues, basis = spectrum
        q = _posterior(law, spectrum, p, t, x, c)
        t = _each(t, x)[:, None, None]
        a, b, da, db = p.alpha(t), p.sigma(t), p.d_alpha(t), p.d_sigma(t)
        slope = jnp.einsum("kde,bke->bkd", basis, (a * da * eigenvalues + b * db) * q.inverse * q.rotated)
        return jnp.einsum("bk,bkd->bd", jax.nn.softmax(q.log_joint), da * law.means + slope)

    return u


def score(law: Mixture | Joint, p: Path) -> CondVelocity:
    """Returns ∇_x log p_t(x|c), a function of t, x ``(B, d)`` and c; regular on all of [0, 1]."""

    spectrum = jnp.linalg.eigh(_covariances(law))

    def s(t: Array, x: Array, c: Condition) -> Array:
        if isinstance(law, Joint):
            return _gaussian(law, spectrum, p, t, x, c)[1]
        q = _posterior(law, spectrum, p, t, x, c)
        return -jnp.einsum("bk,kde,bke->bd", jax.nn.softmax(q.log_joint), spectrum[1], q.inverse * q.rotated)

    return s


def log_density(law: Mixture | Joint, p: Path, t: Array | float, x: Array, c: Condition) -> Array:
    """Returns log p_t(x|c) ``(B,)``; log p_t(x) where c is null."""
    spectrum = jnp.linalg.eigh(_covariances(law))
    if isinstance(law, Joint):
        return _gaussian(law, spectrum, p, t, x, c)[2]
    prior = jnp.where(_admitted(law, c), jnp.log(law.weights), -jnp.inf)
    return jax.nn.logsumexp(_posterior(law, spectrum, p, t, x, c).log_joint, -1) - jax.nn.logsumexp(prior, -1)


def sample(key: Array, law: Mixture | Joint, c: Condition) -> Array:
    """Draws exact samples x1 ``(B, d)`` from p(x|c)."""
    which, noise = jax.random.split(key)
    if isinstance(law, Joint):
        mean, covariance = moments(law, c)
        return mean + jnp.einsum("bij,bj->bi", jnp.linalg.cholesky(covariance), jax.random.normal(noise, mean.shape))
    k = jax.random.categorical(which, jnp.where(_admitted(law, c), jnp.log(law.weights), -jnp.inf))
    z = jax.random.normal(noise, (k.shape[0], law.means.shape[1]), law.means.dtype)
    return law.means[k] + jnp.einsum("bij,bj->bi", jnp.linalg.cholesky(law.covariances)[k], z)


def flow_matching_minimum(m: Mixture, p: Path, t: Array) -> Array:
    """Returns the minimum of the flow-matching loss at times t ``(T,)``, for a single Gaussian (K = 1): ``(T,)``.

    E|α̇x1 + σ̇x0 − u(t, x_t)|²/d: the variance of the target that x_t does not explain. Per eigenvalue v of the
    covariance it is vΔ²/(α²v + σ²), with Δ = α̇σ − ασ̇.

    Raises:
      ValueError: if the mixture has more than one component.
    """
    if m.means.shape[0] != 1:
        raise ValueError(f"the minimum has a closed form only for one component; got {m.means.shape[0]}")
    t = jnp.asarray(t)[:, None]
    v = jnp.linalg.eigvalsh(m.covariances[0])
    return jnp.mean(v * paths.wronskian(p, t) ** 2 / (p.alpha(t) ** 2 * v + p.sigma(t) ** 2), -1)


def _admitted(m: Mixture, c: Condition) -> Array:
    value, present = _only(c)
    return (value[:, None] == m.labels) | ~present[:, None]


def _only(c: Condition) -> tuple[Array, Array]:
    """Returns value and presence of the only field of c."""
    (value,), (present,) = jax.tree.leaves(c.value), jax.tree.leaves(c.present)
    return value, present


def _each(t: Array | float, x: Array) -> Array:
    """Broadcasts t () or ``(B,)`` to ``(B,)``, in the dtype of x."""
    return jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])


def _gaussian(
    law: Joint, spectrum: _Spectrum, p: Path, t: Array | float, x: Array, c: Condition
) -> tuple[Array, Array, Array]:
    """Returns velocity, score and log-density of a single Gaussian; S = α²Σ + σ²I."""
    t = _each(t, x)[:, None]
    a, b, da, db = p.alpha(t), p.sigma(t), p.d_alpha(t), p.d_sigma(t)
    mean = _mean(law, c)
    eigenvalues, basis = spectrum  # S is diagonal in this basis at every t
    present = _only(c)[1][:, None]

    def rotate(y: Array, turn: str) -> Array:
        of_x, of_x_given_c = (jnp.einsum(turn, q, y) for q in basis)
        return jnp.where(present, of_x_given_c, of_x)

    v = jnp.where(present, eigenvalues[1], eigenvalues[0])
    s = a**2 * v + b**2
    residual = rotate(x - a * mean, "de,bd->be")
    u = da * mean + rotate((a * da * v + b * db) * residual / s, "de,be->bd")
    log_p = -0.5 * jnp.sum(residual**2 / s + jnp.log(2 * math.pi * s), -1)
    return u, rotate(-residual / s, "de,be->bd"), log_p


def _posterior(m: Mixture, spectrum: _Spectrum, p: Path, t: Array | float, x: Array, c: Condition) -> _Posterior:
    t = _each(t, x)[:, None, None]
    eigenvalues, basis = spectrum
    s = p.alpha(t) ** 2 * eigenvalues + p.sigma(t) ** 2
    rotated = jnp.einsum("kde,bkd->bke", basis, x[:, None] - p.alpha(t) * m.means)
    log_normal = -0.5 * jnp.sum(rotated**2 / s + jnp.log(2 * math.pi * s), -1)
    log_joint = jnp.where(_admitted(m, c), jnp.log(m.weights) + log_normal, -jnp.inf)
    return _Posterior(log_joint, rotated, 1 / s)
