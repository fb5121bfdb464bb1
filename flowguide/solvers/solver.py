"""The one loop, and what a solver is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from flowguide.typing import Array, PyTree, Velocity


class Solver(NamedTuple):
    """A pair of pure functions and the places where they look at the velocity.

    Attributes:
      init: x -> memory, what is carried from step to step beside x (``()`` for one-step methods).
      step: (velocity, memory, x, t, t_next) -> (x at t_next, memory). Steps go either way, unless ``forward_only``.
      nodes: where a step evaluates the velocity, as fractions of the way from t to t_next. Their number is the
        cost of a step.
      first: the same for the first step, where a method starts in another way; None if it does not.
      forward_only: whether steps go from noise to data alone, as those do that add noise.
    """

    init: Callable[[PyTree], PyTree]
    step: Callable[[Velocity, PyTree, PyTree, Array, Array], tuple[PyTree, PyTree]]
    nodes: tuple[float, ...]
    first: tuple[float, ...] | None = None
    forward_only: bool = False


class StatefulVelocity(NamedTuple):
    """A velocity that remembers: guidance with momentum, with an estimate that grows, with references kept for a while.

    It is no vector field, hence has no density and no adaptive steps. Its memory advances once a step of ``solve``, by
    the first evaluation of the step, at its start; the further stages of that step read the memory and leave it alone.

    Attributes:
      init: x -> memory.
      apply: (memory, t, x) -> (dx/dt, memory).
    """

    init: Callable[[PyTree], PyTree]
    apply: Callable[[PyTree, Array, PyTree], tuple[PyTree, PyTree]]


def solve(
    solver: Solver,
    velocity: Velocity | StatefulVelocity,
    x: PyTree,
    ts: Array,
    *,
    trajectory: bool = False,
    checkpoint: bool = False,
    progress: Callable[[Array, Array], None] | None = None,
) -> PyTree:
    """Integrates dx/dt = velocity(t, x) over the grid ``ts``, one step an interval, in a single ``lax.scan``.

    Args:
      solver: the method.
      velocity: t (), x -> dx/dt of the structure and shapes of x, of any real floating dtype. Or a
        ``StatefulVelocity``, if the solver evaluates at the start of its steps first, as all of ours do.
      x: the state at ``ts[0]``: an array or any tree of floating arrays. Its dtypes are kept.
      ts: nodes ``(N + 1,)``, increasing or decreasing; exactly N steps are taken.
      trajectory: also keep the states between.
      checkpoint: reverse-mode gradients keep about 2√N states and the inner values of one step, and compute every
        step once more, instead of keeping the inner values of all N steps (Griewank 1992, one level).
      progress: called on the host as progress(steps done, N), in no particular order, while the solve runs.

    Returns:
      The state at ``ts[-1]``; with ``trajectory`` the states at all nodes, each leaf ``(N + 1, ...)``.

    Raises:
      ValueError: if ``ts`` is not a vector of two nodes or more, strictly increasing or decreasing, or decreases
        where the solver is ``forward_only``. Where its values are not known while tracing, bad ones make all of the
        result NaN, as a velocity that is NaN does.
      TypeError: if ``solver`` is no ``Solver``, x is not floating, or the velocity has not the structure, shapes or
        kind of dtype of x.
    """
    if not isinstance(solver, Solver):
        name = getattr(solver, "__name__", None)
        cure = f"call it, as {name}(), or {name}(path) if it takes the path" if name else "make one, as heun()"
        raise TypeError(f"the solver must be a Solver; got {name or type(solver).__name__}: {cure}")
    ts = check_nodes(ts, increasing=solver.forward_only)
    check_state(x)
    steps = ts.shape[0] - 1
    velocity = as_stateful(velocity)

    def body(carry: tuple[PyTree, ...], at: tuple[Array, Array, Array]) -> tuple[tuple[PyTree, ...], PyTree]:
        x, memory, past = carry
        index, *ends = at
        after = []  # what the velocity remembers after each evaluation of this step

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


def as_stateful(velocity: Velocity | StatefulVelocity) -> StatefulVelocity:
    """Any velocity as one with memory, empty if it has none.

    Raises:
      TypeError: if it is no function.
    """
    if isinstance(velocity, StatefulVelocity):
        return velocity
    if not callable(velocity):
        raise TypeError(f"the velocity must be a function (t, x) -> dx/dt; got {type(velocity).__name__}")
    return StatefulVelocity(lambda x: (), lambda memory, t, x: (velocity(t, x), memory))


def vector_field(velocity: Velocity | StatefulVelocity, what: str) -> Velocity:
    """The velocity, refused where only a vector field will do.

    Raises:
      TypeError: if it is a ``StatefulVelocity``; says what needs a field.
    """
    if isinstance(velocity, StatefulVelocity):
        raise TypeError(
            f"{what} needs dx/dt as a function of (t, x) alone; a guidance rule with memory, or reused references, "
            "make a StatefulVelocity, which depends on the steps taken: use a rule without memory"
        )
    return velocity


def checkpointed_scan(body: Callable, carry: PyTree, xs: tuple[Array, ...]) -> tuple[PyTree, PyTree]:
    """``lax.scan`` in about √N segments; of each only its first state is kept for the gradient."""
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
    """``ts`` as an array, refused if it is no grid. One whose values are traced and are no grid becomes NaN.

    Args:
      ts: nodes ``(N + 1,)``, strictly increasing or decreasing.
      increasing: refuse those that decrease.
      whole: refuse those that do not go from 0 to 1.

    Raises:
      ValueError: says what was got and what was expected.
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
    """Raises ``TypeError`` if a leaf is not floating."""
    for leaf in jax.tree.leaves(x):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"the state must be of a floating dtype; got {jnp.result_type(leaf)}: convert x first")


def checked(velocity: Velocity, x: PyTree) -> Velocity:
    """The same velocity, which says while it is traced if what it returns cannot be dx/dt."""
    check_state(x)

    def same(t: Array, x: PyTree) -> PyTree:
        u = velocity(t, x)
        expected, got = jax.tree.structure(x), jax.tree.structure(u)
        if expected != got:
            raise TypeError(f"the velocity must return a tree like x: expected {expected}, got {got}")
        for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(u), strict=True):
            if jnp.shape(a) != jnp.shape(b) or not jnp.issubdtype(jnp.result_type(b), jnp.floating):
                raise TypeError(
                    f"the velocity must return the shape of x and a floating dtype: expected {jnp.shape(a)}, "
                    f"got {jnp.shape(b)} {jnp.result_type(b)}"
                )
        return u

    return same


def evaluation_times(solver: Solver, ts: Array) -> Array:
    """The times, in their order ``(evaluations,)``, at which ``solve`` evaluates the velocity over ``ts``."""
    ts = jnp.asarray(ts)

    def within(nodes: tuple[float, ...], start: Array, end: Array) -> Array:
        return (start[:, None] + jnp.asarray(nodes, ts.dtype) * (end - start)[:, None]).reshape(-1)

    if solver.first is None:
        return within(solver.nodes, ts[:-1], ts[1:])
    return jnp.concatenate([within(solver.first, ts[:1], ts[1:2]), within(solver.nodes, ts[1:-1], ts[2:])])


def advance(x: PyTree, dt: Array, weights: tuple[float | Array, ...], slopes: tuple[PyTree, ...]) -> PyTree:
    """x + dt·Σ weightᵢ·slopeᵢ leaf by leaf, in x's own dtypes; zero weights cost nothing.

    ``dt`` is () or, for steps of each sample's own, ``(B,)``.
    """
    terms = [(w, k) for w, k in zip(weights, slopes, strict=True) if not (isinstance(w, float) and w == 0.0)]

    def leaf(a: Array, *slopes: Array) -> Array:
        total = sum(w * k for (w, _), k in zip(terms, slopes, strict=True))
        return a + (over(dt, a) * total).astype(a.dtype)

    return jax.tree.map(leaf, x, *(k for _, k in terms))


def over(scale: Array, x: Array) -> Array:
    """A scale () or (B,), shaped to broadcast against x (B, *D)."""
    return scale.reshape(scale.shape + (1,) * (x.ndim - scale.ndim)) if scale.ndim else scale
