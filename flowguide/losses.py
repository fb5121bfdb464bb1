"""Losses: conditional flow matching, and classification of noisy data."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from flowguide import condition, paths, times
from flowguide.condition import Condition
from flowguide.couplings import Coupling, independent
from flowguide.paths import Path
from flowguide.targets import Seen, Target, plain
from flowguide.typing import Array, CondVelocity, PRNGKey


class Weight(Protocol):
    """The weight of the error at t: path, t ``(B,)`` -> ``(B,)``."""

    def __call__(self, path: Path, t: Array, /) -> Array: ...


def example_keys(root: PRNGKey, step: Array | int, index: Array) -> PRNGKey:
    """Returns typed keys ``(B,)`` that depend only on (root, step, global index of the example).

    With them every random draw in training is independent of how many devices or hosts share the batch.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(root, step), index)


def constant() -> Weight:
    """1: the error of the velocity itself."""
    return lambda path, t: jnp.ones_like(t)


def x1_error() -> Weight:
    """(σ/Δ)², Δ = α̇σ − ασ̇: turns it into the error of x̂1, as x̂1 = (σu − σ̇x)/Δ; (1 − t)² on the linear path."""
    return lambda path, t: jnp.square(path.sigma(t) / paths.wronskian(path, t))


def x0_error() -> Weight:
    """(α/Δ)²: turns it into the error of x̂0, the noise (DDPM's simple loss, Ho et al. 2020, eq. 14); t² on linear."""
    return lambda path, t: jnp.square(path.alpha(t) / paths.wronskian(path, t))


def min_snr(limit: float = 5.0) -> Weight:
    """min(α²/σ², limit) times the weight of ``x1_error`` (Hang et al. 2023, §3.4: "Min-SNR-γ")."""

    def weight(path: Path, t: Array) -> Array:
        # Written without the quotient α²/σ², which is infinite at t = 1.
        alpha, sigma = path.alpha(t), path.sigma(t)
        return jnp.minimum(alpha**2, limit * sigma**2) / jnp.square(paths.wronskian(path, t))

    return weight


WEIGHTS: dict[str, Callable[..., Weight]] = {
    "constant": constant,
    "x1_error": x1_error,
    "x0_error": x0_error,
    "min_snr": min_snr,
}


class Recipe(NamedTuple):
    """Settings of the flow-matching loss.

    Attributes:
      path: the probability path.
      warp: quantile function of the distribution of t (see ``times``).
      coupling: pairs noise with data.
      drop_rate: probability that an example loses its whole condition.
      drop_field_rate: probability that an example loses one of several fields, or the range that it is drawn from.
      stratified: if positive, the global batch size over which t is stratified.
      weight: weight of the error at t, one of ``WEIGHTS``.
      target: the training target, one of ``TARGETS``.
    """

    path: Path
    warp: times.Warp
    coupling: Coupling = independent()
    drop_rate: float = 0.1
    drop_field_rate: float | tuple[float, float] = 0.1
    stratified: int = 0
    weight: Weight = constant()
    target: Target = plain()


def flow_matching(
    velocity: CondVelocity,
    recipe: Recipe,
    keys: PRNGKey,
    index: Array,
    x1: Array,
    c: Condition,
    teacher: CondVelocity | None = None,
) -> Array:
    """Returns the loss of each example, float32 ``(B,)``; its key determines t, x0, γ and which conditions are dropped.

    Args:
      velocity: u(t (B,), x (B, *D), c).
      recipe: the settings.
      keys: typed keys ``(B,)``, see ``example_keys``.
      index: global index of the examples, int32 ``(B,)``; only used if t is stratified.
      x1: data ``(B, *D)``.
      c: its conditions, batch ``B``.
      teacher: the teacher, for targets that have one; None uses ``velocity``. No gradient flows through it.
    """
    t, x0, c_keys = _draw(recipe, keys, index, x1, c)
    c = condition.drop(c_keys, c, recipe.drop_rate, recipe.drop_field_rate)
    path, target, gamma = recipe.path, recipe.target, jnp.ones_like(t)
    if target.gammas is not None:
        gamma = times.draw(jax.vmap(jax.random.fold_in, in_axes=(0, None))(c_keys, 1), target.quantile)
    seen = Seen(t, paths.interpolate(path, t, x0, x1), c)
    u = paths.conditional_velocity(path, t, x0, x1)
    residual = target.residual(velocity, teacher or velocity, seen, u, gamma)
    return recipe.weight(path, t) * jnp.mean(jnp.square(residual), axis=tuple(range(1, x1.ndim)))


def classification(
    logits: Callable[[Array, Array, Condition], Array],
    recipe: Recipe,
    keys: PRNGKey,
    index: Array,
    x1: Array,
    c: Condition,
    teacher: object = None,
) -> Array:
    """Returns −log p_t(c|x_t) of each example, float32 ``(B,)``: the cross-entropy of a noise-aware classifier.

    t and x0 are drawn as in ``flow_matching``; nothing is dropped, and there is no teacher. The minimiser is the
    posterior p_t(c|x), which classifier guidance needs (Dhariwal & Nichol 2021, §4).

    Args:
      logits: (t (B,), x (B, *D), c) -> ``(B, K)``; it must not use c.
      recipe: the settings.
      keys: typed keys ``(B,)``, see ``example_keys``.
      index: global index of the examples, int32 ``(B,)``; only used if t is stratified.
      x1: data ``(B, *D)``.
      c: the labels, a condition with one field, int32 ``(B,)``.
      teacher: unused.
    """
    t, x0, _ = _draw(recipe, keys, index, x1, c)
    (label,) = jax.tree.leaves(c.value)
    log_p = jax.nn.log_softmax(logits(t, paths.interpolate(recipe.path, t, x0, x1), c))
    return -recipe.weight(recipe.path, t) * jnp.take_along_axis(log_p, label[:, None], axis=1)[:, 0]


class Task(Protocol):
    """The loss of each example, float32 ``(B,)``, of a network; ``flow_matching`` documents the arguments."""

    def __call__(
        self,
        network: CondVelocity,
        recipe: Recipe,
        keys: PRNGKey,
        index: Array,
        x1: Array,
        c: Condition,
        teacher: CondVelocity | None = None,
        /,
    ) -> Array: ...


# The losses that the trainer can minimise, by name.
TASKS: dict[str, Task] = {"flow": flow_matching, "classifier": classification}


def _draw(recipe: Recipe, keys: PRNGKey, index: Array, x1: Array, c: Condition) -> tuple[Array, Array, PRNGKey]:
    """Draws t ``(B,)``, the noise x0 ``(B, *D)``, and keys ``(B,)`` for condition dropout."""
    t_keys, x_keys, c_keys = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
    warp = recipe.warp
    if recipe.stratified:
        warp = _after(recipe.warp, lambda tau: times.stratify(tau, index, recipe.stratified))
    t = times.draw(t_keys, warp)
    x0 = jax.vmap(lambda key: jax.random.normal(key, x1.shape[1:], x1.dtype))(x_keys)
    x0 = recipe.coupling(jax.vmap(jax.random.fold_in, in_axes=(0, None))(x_keys, 1), x0, x1, c)
    return t, x0, c_keys


def _after(outer: Callable[[Array], Array], inner: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda tau: outer(inner(tau))
