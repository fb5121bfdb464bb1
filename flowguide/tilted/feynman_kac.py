"""Sequential Monte Carlo along the guided process: weighted particles that correct the error of guidance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowguide.guidance import Passes, Reference, evaluate
from flowguide.guidance.guide import check_passes
from flowguide.guidance.posterior import log_ratio
from flowguide.paths import Path
from flowguide.solvers import Solver, renoise_2m
from flowguide.solvers.solver import check_nodes, checked, over
from flowguide.solvers.stochastic import is_one
from flowguide.tilted.product import Product, mix, weight_rate
from flowguide.typing import Array, PRNGKey, PyTree


class Particles(NamedTuple):
    """Weighted samples of G distributions, K of each.

    Attributes:
      x: ``(G, K, *D)``.
      log_weights: ``(G, K)``, normalised: their exponentials sum to one over K. ``resample`` makes the weights equal.
      ess: effective sample size 1/Σ W², out of K, at each node but the first, before resampling there, ``(G, N)``.
      resampled: whether the particles were resampled there, bool ``(G, N)``; always False at the last node.
      ancestors: int32 ``(G, K)``, the initial particle that each particle descends from. Few distinct values are a
        warning.
      log_z: ``(G,)`` estimate of log Z, Z = ∫Π p(x|c_i)^{w_i} dx; its exponential is unbiased up to the discretisation
        error. With ``until`` < 1 it estimates ∫Π p_t(x|c_i)^{w_i} dx at that t instead, and with ``clip`` it is biased.
    """

    x: Array
    log_weights: Array
    ess: Array
    resampled: Array
    ancestors: Array
    log_z: Array


def feynman_kac(
    p: Product,
    path: Path,
    keys: PRNGKey,
    ts: Array,
    shape: tuple[int, ...],
    *,
    particles: int,
    eta: float | Array | None = None,
    solver: Callable[[PRNGKey], Solver] | None = None,
    proposal: Sequence[Array | float] | None = None,
    threshold: float = 0.5,
    clip: float | None = None,
    until: float = 1.0,
    passes: Passes = "together",
    dtype: jnp.dtype | type = jnp.float32,
) -> Particles:
    """Draws K particles from each of G distributions Π p(x|c_i)^{w_i}, with the Feynman-Kac corrector.

    The proposal is the guided process. Each particle integrates log W at the rate ``weight_rate`` by the trapezoidal
    rule between evaluations that the solver makes anyway, so that a particle costs as much as a guided sample. If the
    effective sample size falls below ``threshold``·K, the particles of that distribution are resampled, together with
    the solver's state, systematically with one uniform number (Douc & Cappé 2005). (Skreta et al. 2025, arXiv
    2503.02819, Algorithm 1; the weights do not depend on the noise of the proposal.)

    Only noise makes duplicates differ: with a deterministic ``solver`` use ``threshold=0``, which weights but never
    resamples. With very few steps, N ≲ 10, it fails on multimodal distributions.

    Args:
      p: the distributions; conditions and weights of batch G.
      path: the path of the velocities.
      keys: typed keys ``(G,)``: all noise of a distribution derives from its key.
      ts: nodes ``(N + 1,)``, strictly increasing from 0 to 1.
      shape: shape of one sample.
      particles: K.
      eta: η of the proposal, D_t = ηκ. Default 2: on Gaussians, as γ grows, the guided process is narrower than the
        target by the factor η/(1 + η), and if that is 1/2 or less the weights have infinite variance. Default 1 with
        ``proposal``.
      solver: builds the proposal from keys ``(G·K,)``, one per particle. By default ``renoise_2m``, of weak order 2
        like the trapezoidal rule, with ``total`` = Σ w_i: any other stochastic solver also needs that ``total`` if it
        is not 1.
      proposal: weights v_i of the guided process used as proposal, if not the w_i of the target: (0, 1) for (∅, c)
        proposes by the conditional process for any γ. w_i and v_i must both sum to 1, and the noise must be memoryless.
        log W is then the integral of the rate for v, plus Σ (w_i − v_i)·log N(x'; μ_i, σ²) over the steps taken, which
        sums to Σ (w_i − v_i)·log p(x|c_i): see ``log_posterior_ratio``. This sum is itself noisy and of first order:
        for Gaussians at γ = 3, (0, 1) makes Z 11 % too large with 100 steps and 3 % with 400. It pays off if the guided
        process goes far from the target.
      threshold: fraction of K below which the effective sample size triggers resampling; 0 never, 1 always.
      clip: bounds the distance between the increment of log W in a step and its mean over the particles of the same
        distribution. This limits the effect of network errors, at the price of a bias; None does not clip.
      until: log W is only integrated up to this t. Near t = 1 the rate divides the errors of the networks by 1 − t.
      passes: "together" or "apart", as in ``guidance.guide``.
      dtype: dtype of the particles.

    Raises:
      ValueError: if the grid does not increase from 0 to 1, ``particles`` is below 1, ``threshold`` is outside [0, 1],
        or ``proposal`` does not fit p.
      TypeError: if a velocity returns another shape.
    """
    ts = check_nodes(ts, whole=True)
    check_passes(passes)
    if particles < 1 or not 0 <= threshold <= 1:
        raise ValueError(f"expected particles >= 1 and 0 <= threshold <= 1; got {particles} and {threshold}")
    if proposal is not None and not (is_one(p.total) and len(proposal) == len(p.weights)):
        raise ValueError(
            "a proposal needs one weight per factor of a product whose weights sum to 1; got "
            f"{len(proposal)} for {len(p.weights)} factors whose weights sum to {p.total}"
        )
    eta = (2.0 if proposal is None else 1.0) if eta is None else eta
    groups, count, steps = keys.shape[0], particles, ts.shape[0] - 1
    start_keys, noise_keys, coins = jax.vmap(partial(jax.random.split, num=3), out_axes=1)(keys)

    def each(keys: PRNGKey) -> PRNGKey:
        """Returns one key per particle ``(G·K,)``."""
        return jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count)))(keys).reshape(-1)

    def spread(a: Array | float) -> Array | float:
        """Repeats what is given per distribution for each of its particles."""
        return jnp.repeat(a, count, axis=0) if jnp.ndim(a) else a

    own = Product(
        tuple(Reference(f.velocity, jax.tree.map(spread, f.condition)) for f in p.factors),
        tuple(spread(w) for w in (p.weights if proposal is None else proposal)),
        spread(p.total),
    )
    beyond = [spread(w) - v for w, v in zip(p.weights, own.weights, strict=True)][1:] if proposal is not None else []
    own_keys = each(noise_keys)
    moves = renoise_2m(path, own_keys, eta, own.total) if solver is None else solver(own_keys)
    x = jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(each(start_keys))
    x = x / over(jnp.sqrt(jnp.asarray(own.total, dtype)), x)
    memory = moves.init(x)

    def grouped(a: Array) -> Array:
        return a.reshape(groups, count)

    def weigh(log_w: Array, gained: Array, t: Array) -> Array:
        gained = jnp.where(t > until, 0.0, grouped(gained))  # t > until is False for NaN, so an invalid grid gives NaN
        if clip is not None:
            mean = jnp.mean(gained, axis=1, keepdims=True)
            gained = mean + jnp.clip(gained - mean, -clip, clip)
        return log_w + gained

    def body(carry: PyTree, at: tuple[Array, ...]) -> tuple[PyTree, tuple[Array, Array]]:
        x, memory, log_w, log_z, rate, dt, ancestors = carry
        index, t, t_next = at
        us = evaluate(own.factors, t, x, passes)
        new_rate = weight_rate(path, own, t, x, us)
        log_w = weigh(log_w, dt * (rate + new_rate) / 2, t)
        ess = effective_size(log_w)
        low = (ess < threshold * count) & (index > 0)
        state = x, memory, us, new_rate, ancestors.reshape(-1)

        def renew(state: PyTree) -> PyTree:
            chosen = _systematic(jax.vmap(jax.random.fold_in, (0, None))(coins, index), log_w)
            chosen = jnp.where(low[:, None], chosen, jnp.arange(count))
            flat = (chosen + count * jnp.arange(groups)[:, None]).reshape(-1)
            return jax.tree.map(lambda a: a[flat] if jnp.shape(a)[:1] == x.shape[:1] else a, state)

        state = jax.lax.cond(jnp.any(low), renew, lambda state: state, state)
        x, memory, us, new_rate, ancestors = state
        log_z = log_z + jnp.where(low, _log_mean(log_w), 0.0)
        log_w = jnp.where(low[:, None], 0.0, log_w)

        known = [mix(own, us)]  # at the start of the step, which every solver evaluates first

        def velocity(t: Array, x: Array) -> Array:
            return known.pop() if known else mix(own, evaluate(own.factors, t, x, passes))

        new, memory = moves.step(checked(velocity, x), memory, x, t, t_next)
        for w, u in zip(beyond, us[1:], strict=False):
            ratio, _ = log_ratio(path, (t, x, u, us[0]), t_next, new)
            log_w = log_w + jnp.where(t_next > until, 0.0, grouped(jnp.asarray(w * ratio, log_w.dtype)))
        dt = (t_next - t).astype(dt.dtype)
        return (new, memory, log_w, log_z, new_rate, dt, grouped(ancestors)), (ess, low)

    size = math.prod(shape)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    zeros = jnp.zeros((groups, count), wide)
    first = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (groups, count))
    mass = 0.5 * size * ((1 - p.total) * math.log(2 * math.pi) - jnp.log(jnp.asarray(p.total, wide)))
    log_z = jnp.broadcast_to(mass, (groups,))
    carry = x, memory, zeros, log_z, zeros.reshape(-1), jnp.zeros((), wide), first
    carry, (ess, low) = jax.lax.scan(body, carry, (jnp.arange(steps), ts[:-1], ts[1:]))
    x, _, log_w, log_z, rate, dt, ancestors = carry
    # The last node is not evaluated. The rate there is 0 if Σ w_i = 1 and κ(1) = 0, because the factors then have equal
    # velocities. Otherwise, as on the path vp, the last interval uses the rate at its start, still of second order.
    vanishes = (path.sigma(ts[-1]) == 0) if is_one(own.total) else False
    log_w = weigh(log_w, dt * rate * jnp.where(vanishes, 0.5, 1.0), ts[-1])
    log_z = log_z + _log_mean(log_w)
    ess = jnp.concatenate([ess[1:], effective_size(log_w)[None]]).T
    low = jnp.concatenate([low[1:], jnp.zeros_like(low[:1])]).T
    return Particles(x.reshape(groups, count, *shape), jax.nn.log_softmax(log_w, axis=1), ess, low, ancestors, log_z)


def effective_size(log_weights: Array) -> Array:
    """(Σ W)²/Σ W² over the last axis (Kong et al. 1994): K for equal weights, 1 if one particle has all the weight."""
    return jnp.exp(2 * jax.nn.logsumexp(log_weights, axis=-1) - jax.nn.logsumexp(2 * log_weights, axis=-1))


def resample(keys: PRNGKey, log_weights: Array, tree: PyTree) -> PyTree:
    """Draws leaves ``(G, K, ...)`` by their weights ``(G, K)``, systematically; the result is equally weighted.

    Args:
      keys: typed keys ``(G,)``.
      log_weights: with any normalisation.
      tree: the leaves to draw from.
    """
    chosen = _systematic(keys, log_weights)
    return jax.tree.map(lambda a: jax.vmap(lambda leaf, index: leaf[index])(a, chosen), tree)


def _systematic(keys: PRNGKey, log_weights: Array) -> Array:
    """Returns indices ``(G, K)``, with each particle taken ⌊KW⌋ or ⌈KW⌉ times."""
    count = log_weights.shape[1]

    def one(key: PRNGKey, log_w: Array) -> Array:
        edges = jnp.cumsum(jax.nn.softmax(log_w))
        points = (jnp.arange(count) + jax.random.uniform(key, (), log_w.dtype)) / count
        return jnp.minimum(jnp.searchsorted(edges / edges[-1], points, side="right"), count - 1)

    return jax.vmap(one)(keys, log_weights)


def _log_mean(log_w: Array) -> Array:
    return jax.nn.logsumexp(log_w, axis=1) - math.log(log_w.shape[1])
