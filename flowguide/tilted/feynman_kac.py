"""Sequential Monte Carlo along the guided process: particles with weights that make up for what guidance is not."""

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
    """Weighted samples of G laws, K of each.

    Attributes:
      x: ``(G, K, *D)``.
      log_weights: ``(G, K)``, normalised: their exponentials sum to one over K. ``resample`` makes them equal.
      ess: effective sample size 1/Σ W² at each node but the first, before resampling there, ``(G, N)``; of K.
      resampled: whether the particles were resampled there, bool ``(G, N)``; never at the last node.
      ancestors: int32 ``(G, K)``, from which particle of the start each comes. Few different ones are a warning.
      log_z: ``(G,)`` estimate of log Z, Z = ∫Π p(x|c_i)^{w_i} dx; its exponential is unbiased but for the steps' error.
        With ``until`` < 1 it estimates ∫Π p_t(x|c_i)^{w_i} dx at that t instead, and with ``clip`` it is biased.
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
    """Draws K particles of each of G laws Π p(x|c_i)^{w_i}, by the Feynman-Kac corrector.

    The proposal is the guided process; each particle gathers log W at ``weight_rate``, by the trapezoidal rule between
    evaluations that the solver makes anyway, so that a particle costs what a guided sample costs. Where the effective
    size falls below ``threshold``·K, the particles of that law are resampled systematically, by one uniform number
    (Douc & Cappé 2005), with all that the solver carries for them. (Skreta et al. 2025, arXiv 2503.02819, Algorithm 1;
    the weights do not depend on the noise of the proposal.)

    Noise tells duplicates apart: with a deterministic ``solver`` use ``threshold=0``, which weighs and never resamples.
    With few steps, of N ≲ 10, it fails on laws of several modes.

    Args:
      p: the laws; conditions and weights of batch G.
      path: of the velocities.
      keys: typed keys ``(G,)``: all noise of a law derives from its own.
      ts: nodes ``(N + 1,)``, strictly increasing from 0 to 1.
      shape: of one sample.
      particles: K.
      eta: of the proposal, D_t = ηκ. 2 by default: on Gaussians, as γ grows, the guided process is narrower than the
        law by η/(1 + η), and where that is 1/2 or less weights have no variance. 1 with a ``proposal`` of its own.
      solver: the proposal, made of keys ``(G·K,)``, one a particle. By default ``renoise_2m``, of weak order 2, as the
        trapezoidal rule is, told Σ w_i as its ``total``: so must be any other stochastic one where the sum is not 1.
      proposal: weights v_i of the guided process that proposes, where they are not the w_i of the law: (0, 1) for
        (∅, c) proposes by the conditional process, whatever γ. Each of their sums must be 1, and the noise memoryless.
        log W then gathers the rate for v, and Σ (w_i − v_i)·log N(x'; μ_i, σ²) of the steps taken, which adds up to
        Σ (w_i − v_i)·log p(x|c_i): see ``log_posterior_ratio``. This sum has noise of its own and is of first order:
        for Gaussians at γ = 3, (0, 1) makes Z 11 % too large with 100 steps and 3 % with 400. It is worth it where
        the guided process goes far from the law.
      threshold: share of K below which the effective size triggers resampling; 0 never, 1 always.
      clip: keeps what the rate of a step adds to log W this close to the mean over the particles of its law, against
        the errors of networks and at the price of a bias; None does not.
      until: weights are gathered up to this t alone. Near t = 1 the rate divides the networks' errors by 1 − t.
      passes: "together" or "apart", as in ``guidance.guide``.
      dtype: of the particles.

    Raises:
      ValueError: for a grid that does not increase from 0 to 1, fewer than one particle, or a threshold outside [0, 1].
      TypeError: if a velocity returns another shape.
    """
    ts = check_nodes(ts, whole=True)
    check_passes(passes)
    if particles < 1 or not 0 <= threshold <= 1:
        raise ValueError(f"expected particles >= 1 and 0 <= threshold <= 1; got {particles} and {threshold}")
    if proposal is not None and not (is_one(p.total) and len(proposal) == len(p.weights)):
        raise ValueError(
            "a proposal has a weight for each factor of a product whose weights sum to 1; got "
            f"{len(proposal)} for {len(p.weights)} that sum to {p.total}"
        )
    eta = (2.0 if proposal is None else 1.0) if eta is None else eta
    groups, count, steps = keys.shape[0], particles, ts.shape[0] - 1
    start_keys, noise_keys, coins = jax.vmap(partial(jax.random.split, num=3), out_axes=1)(keys)

    def each(keys: PRNGKey) -> PRNGKey:
        """A key a particle ``(G·K,)``."""
        return jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count)))(keys).reshape(-1)

    def spread(a: Array | float) -> Array | float:
        """What there is once for a law, once for each of its particles."""
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
        gained = jnp.where(t > until, 0.0, grouped(gained))  # a grid of NaN shows
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

        known = [mix(own, us)]  # at the start of the step, where every solver looks first

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
    # The last node is not evaluated. The rate there is 0 if Σ w_i = 1 and κ(1) = 0, as then all factors pull the same
    # way; where it is not, as on the path vp, the last interval takes the rate at its start, still of second order.
    vanishes = (path.sigma(ts[-1]) == 0) if is_one(own.total) else False
    log_w = weigh(log_w, dt * rate * jnp.where(vanishes, 0.5, 1.0), ts[-1])
    log_z = log_z + _log_mean(log_w)
    ess = jnp.concatenate([ess[1:], effective_size(log_w)[None]]).T
    low = jnp.concatenate([low[1:], jnp.zeros_like(low[:1])]).T
    return Particles(x.reshape(groups, count, *shape), jax.nn.log_softmax(log_w, axis=1), ess, low, ancestors, log_z)


def effective_size(log_weights: Array) -> Array:
    """(Σ W)²/Σ W² over the last axis (Kong et al. 1994): K for equal weights, 1 where one has all."""
    return jnp.exp(2 * jax.nn.logsumexp(log_weights, axis=-1) - jax.nn.logsumexp(2 * log_weights, axis=-1))


def resample(keys: PRNGKey, log_weights: Array, tree: PyTree) -> PyTree:
    """Leaves ``(G, K, ...)`` drawn by their weights ``(G, K)``, systematically; equally weighted from then on.

    Args:
      keys: typed keys ``(G,)``.
      log_weights: of any normalisation.
      tree: what is drawn.
    """
    chosen = _systematic(keys, log_weights)
    return jax.tree.map(lambda a: jax.vmap(lambda leaf, index: leaf[index])(a, chosen), tree)


def _systematic(keys: PRNGKey, log_weights: Array) -> Array:
    """Indices ``(G, K)``, each particle taken ⌊KW⌋ or ⌈KW⌉ times."""
    count = log_weights.shape[1]

    def one(key: PRNGKey, log_w: Array) -> Array:
        edges = jnp.cumsum(jax.nn.softmax(log_w))
        points = (jnp.arange(count) + jax.random.uniform(key, (), log_w.dtype)) / count
        return jnp.minimum(jnp.searchsorted(edges / edges[-1], points, side="right"), count - 1)

    return jax.vmap(one)(keys, log_weights)


def _log_mean(log_w: Array) -> Array:
    return jax.nn.logsumexp(log_w, axis=1) - math.log(log_w.shape[1])
