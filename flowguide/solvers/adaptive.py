"""Adaptive integration to a given tolerance."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from flowguide.solvers.runge_kutta import DOPRI5, Tableau
from flowguide.solvers.solver import (
    StatefulVelocity,
    advance,
    check_nodes,
    checked,
    checkpointed_scan,
    over,
    vector_field,
)
from flowguide.typing import Array, PyTree, TreeVelocity, Velocity


class Status(IntEnum):
    """How an adaptive solve ended."""

    DONE = 0
    MAX_STEPS = 1  # ran out of ``max_steps``: raise it, or loosen the tolerances
    NOT_FINITE = 2  # the velocity was NaN or infinite, so that no step size could be accepted


class Solution(NamedTuple):
    """The result of an adaptive solve.

    Attributes:
      x: the state at the last node, or where the solve stopped.
      status: a ``Status``, int32 () or, with ``per_sample``, ``(B,)``.
      evaluations: int32 ``(N,)``, batched velocity evaluations in each interval of ts.
      accepted: int32 () or ``(B,)``, accepted steps.
      rejected: int32 () or ``(B,)``, rejected steps.
    """

    x: PyTree
    status: Array
    evaluations: Array
    accepted: Array
    rejected: Array

    @property
    def success(self) -> Array:
        """bool (): whether the whole solve reached the last node."""
        return jnp.all(self.status == Status.DONE)


_Carry: TypeAlias = tuple[PyTree, Array, Array, Array, Array]  # x, h, accepted, rejected, status


class _Loop(NamedTuple):
    x: PyTree
    slope: PyTree  # velocity at (t, x)
    t: Array
    h: Array  # magnitude of the next step
    ratio: Array  # scaled error of the last accepted step
    accepted: Array
    rejected: Array
    tries: Array
    finite: Array  # whether the last try was finite


def solve_adaptive(
    velocity: Velocity | TreeVelocity | StatefulVelocity,
    x: PyTree,
    ts: Array,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    tableau: Tableau = DOPRI5,
    max_steps: int = 1000,
    per_sample: bool = False,
    reverse_mode: bool = False,
) -> Solution:
    """Integrates dx/dt = velocity(t, x) with an embedded Runge-Kutta pair and PI step-size control.

    A step is accepted if the root mean square of error/(atol + rtol·max(|x|, |x'|)) is at most 1, over the whole state
    or, with ``per_sample``, over each sample. Every node of ``ts`` is hit exactly, and the method restarts there, so
    that a velocity with jumps (the edges of a guidance interval) is integrated piece by piece: stages are evaluated
    strictly inside their interval. (Hairer, Nørsett & Wanner 1993, §II.4.)

    Derivatives are those of the accepted steps, with the step sizes held fixed. Forward mode works directly; reverse
    mode needs ``reverse_mode``.

    Args:
      velocity: t () or ``(B,)``, x -> dx/dt.
      x: an array or tree of arrays ``(B, ...)`` at ``ts[0]``.
      ts: the nodes to stop at, ``(N + 1,)`` with N ≥ 1, increasing or decreasing; at least start and end.
      rtol: relative tolerance. Below about 1e-6 float32 rounding dominates.
      atol: absolute tolerance.
      tableau: an embedded pair whose last stage is the first of the next step.
      max_steps: maximum number of steps, accepted and rejected, per interval of ts.
      per_sample: give each sample its own step size, so that its result does not depend on the rest of the batch;
        ``velocity`` is called with t ``(B,)``. Otherwise the batch shares one step size.
      reverse_mode: replace the ``lax.while_loop`` by a scan of ``max_steps`` iterations per interval, of which those
        after the end are skipped; about 2√max_steps states are stored for the gradient. Set max_steps low.

    Raises:
      ValueError: if the tableau has no embedded error estimate, or ``ts`` is not a valid grid (see ``solve``).
      TypeError: if the velocity does not fit x (see ``solve``).
    """
    if tableau.error is None:
        raise ValueError("expected the tableau of an embedded pair; got one without error weights: use DOPRI5")
    error_weights, exponent = tableau.error, 1.0 / tableau.order
    ts = check_nodes(ts)
    velocity = checked(vector_field(velocity, "an adaptive solver"), x)
    leaf = jax.tree.leaves(x)[0]
    own = leaf.shape[:1] if per_sample else ()

    def norm(tree: PyTree) -> Array:
        leaves = jax.tree.leaves(tree)
        first = len(own)
        total = sum(jnp.sum(jnp.square(a.astype(ts.dtype)), axis=tuple(range(first, a.ndim))) for a in leaves)
        count = sum(a.size for a in leaves) / (own[0] if own else 1)
        return jnp.sqrt(total / count)

    def scaled(error: PyTree, a: PyTree, b: PyTree) -> PyTree:
        error, a, b = jax.lax.stop_gradient((error, a, b))  # step sizes are held fixed
        return jax.tree.map(lambda e, y, z: e / (atol + rtol * jnp.maximum(abs(y), abs(z))), error, a, b)

    def interval(carry: _Carry, ends: tuple[Array, Array]) -> tuple[_Carry, Array]:
        x, h, accepted, rejected, status = carry
        start, end = ends
        inside = jnp.sort(jnp.stack([jnp.nextafter(start, end), jnp.nextafter(end, start)]))
        direction = jnp.sign(end - start)

        def at(t: Array, x: PyTree) -> PyTree:
            return velocity(jnp.clip(t, inside[0], inside[1]), x)

        def running(s: _Loop) -> Array:
            # Without this test a step that underflows would be retried forever.
            return jnp.any((s.t != end) & (s.t + s.h * direction != s.t)) & (s.tries < max_steps)

        def body(s: _Loop) -> _Loop:
            left = jnp.abs(end - s.t)
            last = s.h >= left * (1 - 1e-3)  # avoid a tiny remaining step
            h = jnp.where(last, left, s.h) * direction
            slopes = (s.slope,)
            for c, row in zip(tableau.nodes[1:], tableau.matrix, strict=True):
                slopes += (at(s.t + c * h, advance(s.x, h, row, slopes)),)
            new = advance(s.x, h, tableau.weights, slopes)
            zero = jax.tree.map(jnp.zeros_like, s.x)
            ratio = norm(scaled(advance(zero, h, error_weights, slopes), s.x, new))
            finite = jnp.isfinite(ratio)
            ratio = jnp.where(finite, ratio, jnp.inf)
            accept = (ratio <= 1) & (left > 0)
            # Gustafsson's PI controller, with the exponents 0.7/k and 0.4/k of Hairer & Wanner (1996), §IV.2.
            grow = 0.9 * jnp.maximum(ratio, 1e-10) ** (-0.7 * exponent) * s.ratio ** (0.4 * exponent)
            shrink = jnp.maximum(0.9 * ratio**-exponent, 0.2)
            factor = jnp.where(accept, jnp.clip(grow, 0.2, 10.0), jnp.minimum(shrink, 1.0))
            step = jnp.where(last & accept, jnp.maximum(s.h, jnp.abs(h) * factor), jnp.abs(h) * factor)

            def keep(a: Array, b: Array) -> Array:
                return jnp.where(over(accept, a), a, b)

            return _Loop(
                x=jax.tree.map(keep, new, s.x),
                slope=jax.tree.map(keep, slopes[-1], s.slope),
                t=jnp.where(accept, jnp.where(last, end, s.t + h), s.t),
                h=jnp.where(left > 0, step, s.h),
                ratio=jnp.where(accept, jnp.maximum(ratio, 1e-4), s.ratio),
                accepted=s.accepted + accept,
                rejected=s.rejected + (~accept & (left > 0)),
                tries=s.tries + 1,
                finite=finite | (left == 0),
            )

        t = jnp.full(own, start)
        slope = at(t, x)
        # The first of the two guesses of Hairer, Nørsett & Wanner (1993), §II.4; the controller does the rest.
        guess = 0.01 * norm(scaled(x, x, x)) / jnp.maximum(norm(scaled(slope, x, x)), 1e-10)
        finite = jnp.isfinite(norm(jax.lax.stop_gradient(slope)))
        h = jnp.clip(jnp.where(h > 0, h, guess), 1e-6 * jnp.abs(end - start), jnp.abs(end - start))
        h = jnp.where(finite, h, 0.0)  # ends the loop: no step from here can be finite
        one = jnp.ones(own, ts.dtype)
        s = _Loop(x, slope, t, h, one, accepted, rejected, jnp.int32(0), finite)
        if reverse_mode:

            def turn(s: _Loop, _: tuple[Array, ...]) -> tuple[_Loop, None]:
                return jax.lax.cond(running(s), body, lambda s: s, s), None

            s, _ = checkpointed_scan(turn, s, (jnp.arange(max_steps),))
        else:
            s = jax.lax.while_loop(running, body, s)
        failure = jnp.where(s.finite, Status.MAX_STEPS, Status.NOT_FINITE)
        # Keep the first failure: later intervals started from a wrong state.
        status = jnp.where((status != Status.DONE) | (s.t == end), status, failure).astype(jnp.int32)
        return (s.x, s.h, s.accepted, s.rejected, status), 1 + s.tries * (len(tableau.nodes) - 1)

    zeros = jnp.zeros(own, jnp.int32)
    carry = x, jnp.zeros(own, ts.dtype), zeros, zeros, zeros
    (x, _, accepted, rejected, status), evaluations = jax.lax.scan(interval, carry, (ts[:-1], ts[1:]))
    return Solution(x, status, evaluations, accepted, rejected)
