"""The ``Solver`` type, ``solve`` and helpers for writing solvers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from flowguide.typing import Array, PyTree, TreeVelocity, Velocity


class Step(Protocol):
    """velocity, memory, x at t, t, t_next -> x at t_next, memory."""

    def __call__(
        self, velocity: Velocity, memory: PyTree, x: PyTree, t: Array, t_next: Array, /
    ) -> tuple[PyTree, PyTree]: ...


class Solver(NamedTuple):
    """Two pure functions, and the times at which a step evaluates the velocity.

    Attributes:
      init: x -> memory, the solver's own state that is carried from step to step (``()`` for one-step methods).
      step: (velocity, memory, x, t, t_next) -> (x at t_next, memory). t_next may be on either side of t, unless
        ``forward_only``.
      nodes: times of the velocity evaluations of a step, as fractions of the way from t to t_next. Their number is the
        cost of a step.
      first: ``nodes`` of the first step, if it differs; None if not.
      forward_only: whether steps can only go from noise to data, as those of stochastic solvers.
    """

    init: Callable[[PyTree], PyTree]
    step: Step
    nodes: tuple[float, ...]
    first: tuple[float, ...] | None = None
    forward_only: bool = False


class StatefulVelocity(NamedTuple):
    """A velocity with memory, such as guidance with momentum, with a running estimate, or with reused references.

    It is not a vector field, so it has no density and cannot be integrated adaptively. Its memory advances once per
    step of ``solve``, at the first evaluation, which is at the start of the step; later stages of that step read the
    memory but do not change it.

    Attributes:
      init: x -> memory.
      apply: (memory, t, x) -> (dx/dt, memory).
    """

    init: Callable[[PyTree], PyTree]
    apply: Callable[[PyTree, Array, PyTree], tuple[PyTree, PyTree]]


def solve(
    solver: Solver,
    velocity: Velocity | TreeVelocity | StatefulVelocity,
    x: PyTree,
    ts: Array,
    *,
    trajectory: bool = False,
    checkpoint: bool = False,
    progress: Callable[[Array, Array], None] | None = None,
) -> PyTree:
    """Integrates dx/dt = velocity(t, x) over the grid ``ts``, one step per interval, in a single ``lax.scan``.

    Args:
      solver: the method.
      velocity: t (), x -> dx/dt with the structure and shapes of x, in any real floating dtype. Or a
        ``StatefulVelocity``, if the first evaluation of each step of the solver is at the start of the step, as in all
        solvers here.
      x: the state at ``ts[0]``: an array or any tree of floating arrays. Its dtypes are kept.
      ts: nodes ``(N + 1,)``, increasing or decreasing; exactly N steps are taken.
      trajectory: also return the states in between.
      checkpoint: reverse-mode gradients store about 2√N states and the intermediates of one step, and recompute every
        step once, instead of storing the intermediates of all N steps (Griewank 1992, one level).
      progress: called on the host as progress(steps done, N) while the solve runs; calls may come out of order.

    Returns:
      The state at ``ts[-1]``; with ``trajectory`` the states at all nodes, each leaf ``(N + 1, ...)``.

    Raises:
      ValueError: if ``ts`` is not a strictly monotonic vector of at least two nodes, or decreases and the solver is
        ``forward_only``. If the values of ``ts`` are traced, an invalid grid makes the whole result NaN instead.
      TypeError: if ``solver`` is not a ``Solver``, x is not floating, or the velocity does not return the structure,
        shapes and kind of dtype of x.
    """
    if not isinstance(solver, Solver):
        name = getattr(solver, "__name__", None)
        cure = f"call it: {name}(), or {name}(path) if it takes the path" if name else "use heun(), for example"
        raise TypeError(f"the solver must be a Solver; got {name or type(solver).__name__}: {cure}")
    ts = check_nodes(ts, increasing=solver.forward_only)
    check_state(x)
    steps = ts.shape[0] - 1
    velocity = as_stateful(velocity)

    def body(carry: tuple[PyTree, ...], at: tuple[Array, Array, Array]) -> tuple[tuple[PyTree, ...], PyTree]:
        x, memory, past = carry
        index, *ends = at
        after = []  # memory of the velocity after each evaluation of this step

        def evaluate(t: Array, x: PyTree) -> PyTree:
            slope, remembered = velocity.apply(past, t, x)
            after.append(remembered)
            return slope

        x, memory = solver.step(checked(evaluate, x), memory, x, *ends)
        if progress is not None:
            jax.debug.callback(progress, index + 1, steps)
        return (x, memory, after[0]), x if trajectory else None

    scan = checkpointed_scan if checkpoint else jax.lax.scan
    start = x, solver.init(x), velocity.init(x)
    (last, *_), between = scan(body, start, (jnp.arange(steps), ts[:-1], ts[1:]))
    if not trajectory:
        return last
    return jax.tree.map(lambda first, rest: jnp.concatenate([jnp.asarray(first)[None], rest]), x, between)


def as_stateful(velocity: Velocity | TreeVelocity | StatefulVelocity) -> StatefulVelocity:
    """Returns the velocity as a ``StatefulVelocity``, with empty memory if it has none.

    Raises:
      TypeError: if it is not callable.
    """
    if isinstance(velocity, StatefulVelocity):
        return velocity
    if not callable(velocity):
        raise TypeError(f"the velocity must be a function (t, x) -> dx/dt; got {type(velocity).__name__}")
    return StatefulVelocity(lambda x: (), lambda memory, t, x: (velocity(t, x), memory))


def vector_field(velocity: Velocity | TreeVelocity | StatefulVelocity, what: str) -> Velocity:
    """Returns the velocity if it is a vector field.

    Raises:
      TypeError: if it is a ``StatefulVelocity``; the message names the caller, ``what``.
    """
    if isinstance(velocity, StatefulVelocity):
        raise TypeError(
            f"{what} needs a vector field; got a StatefulVelocity (a guidance rule with memory, or reused references), "
            "which depends on the steps taken: use a rule without memory, and reuse=1"
        )
    return velocity


def checkpointed_scan(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], carry: PyTree, xs: tuple[Array, ...]
) -> tuple[PyTree, PyTree]:
    """``lax.scan`` in about √N segments, of which only the first states are stored for the gradient."""
    steps = xs[0].shape[0]
    length = math.isqrt(steps - 1) + 1
    whole = steps // length * length

    @jax.checkpoint
    def segment(carry: PyTree, xs: tuple[Array, ...]) -> tuple[PyTree, PyTree]:
        return jax.lax.scan(jax.checkpoint(body), carry, xs)

    split = tuple(a[:whole].reshape(-1, length) for a in xs)
    carry, ys = jax.lax.scan(segment, carry, split)
    ys = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), ys)
    if whole == steps:
        return carry, ys
    carry, rest = segment(carry, tuple(a[whole:] for a in xs))
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, rest)


def check_nodes(ts: Array, *, increasing: bool = False, whole: bool = False) -> Array:
    """Returns ``ts`` as an array if it is a valid grid. If its values are traced, an invalid grid becomes NaN.

    Args:
      ts: nodes ``(N + 1,)``, strictly increasing or decreasing.
      increasing: reject decreasing nodes.
      whole: reject nodes that do not go from 0 to 1.

    Raises:
      ValueError: if the grid is invalid; states what was got and what was expected.
    """
    if np.ndim(ts) != 1 or np.shape(ts)[0] < 2:
        raise ValueError(f"ts must be a vector of at least 2 nodes, from start to end; got shape {np.shape(ts)}")
    xp = jnp if isinstance(ts, Tracer) else np
    nodes = xp.asarray(ts)
    way = xp.diff(nodes)
    fits, wanted = (way > 0).all(), "strictly increasing"
    if whole:
        fits, wanted = fits & (nodes[0] == 0) & (nodes[-1] == 1), "strictly increasing from 0 to 1"
    elif not increasing:
        fits, wanted = fits | (way < 0).all(), "strictly increasing or strictly decreasing"
    if isinstance(ts, Tracer):
        return jnp.where(fits, ts, jnp.nan)
    if not fits:
        raise ValueError(f"ts must be {wanted}, without NaN; got {np.array2string(np.asarray(nodes), threshold=8)}")
    return jnp.asarray(ts)


def check_state(x: PyTree) -> None:
    """Raises ``TypeError`` unless every leaf is floating."""
    for leaf in jax.tree.leaves(x):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"x must have a floating dtype; got {jnp.result_type(leaf)}: convert x first")


def checked(velocity: Velocity, x: PyTree) -> Velocity:
    """Wraps a velocity to check, while tracing, that its result has the structure and shapes of dx/dt."""
    check_state(x)

    def same(t: Array, x: PyTree) -> PyTree:
        u = velocity(t, x)
        expected, got = jax.tree.structure(x), jax.tree.structure(u)
        if expected != got:
            raise TypeError(f"the velocity must return a tree with the structure of x: expected {expected}, got {got}")
        for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(u), strict=True):
            if jnp.shape(a) != jnp.shape(b) or not jnp.issubdtype(jnp.result_type(b), jnp.floating):
                raise TypeError(
                    f"the velocity must return the shape of x and a floating dtype: expected {jnp.shape(a)}, "
                    f"got {jnp.shape(b)} {jnp.result_type(b)}"
                )
        return u

    return same


def evaluation_times(solver: Solver, ts: Array) -> Array:
    """Returns the times ``(evaluations,)`` at which ``solve`` evaluates the velocity over ``ts``, in order."""
    ts = jnp.asarray(ts)

    def within(nodes: tuple[float, ...], start: Array, end: Array) -> Array:
        return (start[:, None] + jnp.asarray(nodes, ts.dtype) * (end - start)[:, None]).reshape(-1)

    if solver.first is None:
        return within(solver.nodes, ts[:-1], ts[1:])
    return jnp.concatenate([within(solver.first, ts[:1], ts[1:2]), within(solver.nodes, ts[1:-1], ts[2:])])


def advance(x: PyTree, dt: Array, weights: tuple[float | Array, ...], slopes: tuple[PyTree, ...]) -> PyTree:
    """Returns x + dt·Σ weightᵢ·slopeᵢ leaf by leaf, in the dtypes of x; zero weights cost nothing.

    ``dt`` is () or, if each sample has its own step, ``(B,)``.
    """
    terms = [(w, k) for w, k in zip(weights, slopes, strict=True) if not (isinstance(w, float) and w == 0.0)]

    def leaf(a: Array, *slopes: Array) -> Array:
        total = sum(w * k for (w, _), k in zip(terms, slopes, strict=True))
        return a + (over(dt, a) * total).astype(a.dtype)

    return jax.tree.map(leaf, x, *(k for _, k in terms))


def over(scale: Array, x: Array) -> Array:
    """Reshapes a scale () or (B,) to broadcast against x (B, *D)."""
    return scale.reshape(scale.shape + (1,) * (x.ndim - scale.ndim)) if scale.ndim else scale
