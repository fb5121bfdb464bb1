"""Losses: conditional flow matching, classification of noisy data, and reconstruction by an autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from flowguide import condition, paths, times
from flowguide.condition import Condition
from flowguide.couplings import Coupling, independent, next_example
from flowguide.paths import Path
from flowguide.targets import Seen, Target, plain
from flowguide.typing import Array, CondVelocity, PRNGKey, Velocity


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
      others: pairs each example with another one, for a target that contrasts them.
    """

    path: Path = paths.linear()
    warp: times.Warp = times.logit_normal()
    coupling: Coupling = independent()
    drop_rate: float = 0.1
    drop_field_rate: float | tuple[float, float] = 0.1
    stratified: int = 0
    weight: Weight = constant()
    target: Target = plain()
    others: Coupling = next_example()


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
    if target.contrast is not None:
        others = recipe.others(keys, x0, x1, c), recipe.others(keys, x1, x0, c)
        u = target.contrast(u, paths.conditional_velocity(path, t, *others))
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


def reconstruction(
    network: Callable[[PRNGKey, Array, Condition], Any],
    recipe: Recipe,
    keys: PRNGKey,
    index: Array,
    x1: Array,
    c: Condition,
    teacher: object = None,
    *,
    kl: float = 1e-4,
    l1: float = 0.0,
) -> Array:
    """Returns the loss of each example of a variational autoencoder, float32 ``(B,)``.

    It is mean (x̂ − x)² + l1·mean |x̂ − x| + kl·mean ½(μ² + σ² − 1 − log σ²), for x̂ = D(μ + σε) (Kingma & Welling 2014,
    eq. 10): means over the numbers of the example, and over those of its latents. A small ``kl`` keeps the latents near
    N(0, 1) in scale and costs little sharpness (Rombach et al. 2022, §G).

    Args:
      network: (keys ``(B,)`` of ε, x ``(B, *D)``, c) -> something with the reconstruction ``x`` and the ``posterior``,
        which has ``mean`` and ``log_variance``.
      recipe: unused.
      keys: typed keys ``(B,)``, see ``example_keys``.
      index: unused.
      x1: data ``(B, *D)``.
      c: conditions, which the network ignores.
      teacher: unused.
      kl: weight of the divergence from N(0, 1).
      l1: weight of the absolute error.
    """
    found = network(keys, x1, c)
    error, (mean, log_variance) = found.x - x1, found.posterior
    divergence = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance)
    return _means(jnp.square(error)) + l1 * _means(jnp.abs(error)) + kl * _means(divergence)


DEFAULT = Recipe()


class Pair(NamedTuple):
    """What a velocity is regressed on: u(t, x) should be u, on average.

    Attributes:
      t: ``(B,)``, in [0, 1]; 0 is noise.
      x: points between noise and data at t, ``(B, *D)``.
      u: velocities of their paths, ``(B, *D)``.
    """

    t: Array
    x: Array
    u: Array


def training_pair(key: PRNGKey, x1: Array, recipe: Recipe = DEFAULT) -> Pair:
    """Draws t and noise for data, for training loops of your own: minimise the mean of |u(t, x) − u|².

    Args:
      key: one typed key.
      x1: data ``(B, *D)``, floating.
      recipe: path, distribution of t and coupling; its other settings are not used.
    """
    t, x0, _ = _draw(recipe, jax.random.split(key, len(x1)), jnp.arange(len(x1)), x1, Condition({}, {}))
    return Pair(t, paths.interpolate(recipe.path, t, x0, x1), paths.conditional_velocity(recipe.path, t, x0, x1))


def loss(
    velocity: Velocity | CondVelocity, key: PRNGKey, x1: Array, c: Condition | None = None, recipe: Recipe = DEFAULT
) -> Array:
    """Returns the flow-matching loss of a batch, float32 (): the mean of ``flow_matching``.

    ```python
    loss = losses.loss(lambda t, x, c: network(params, t, x, c), key, x1, condition.given(labels))
    ```

    Args:
      velocity: u(t (B,), x (B, *D), c), or u(t, x) if c is None.
      key: one typed key. In several processes each example needs its own key: see ``flow_matching``.
      x1: data ``(B, *D)``, floating.
      c: its conditions, batch B. By default each is dropped with probability 0.1.
      recipe: the settings.
    """
    keys, index = jax.random.split(key, len(x1)), jnp.arange(len(x1))
    if c is None:
        plain_velocity: Any = velocity
        return jnp.mean(flow_matching(lambda t, x, _: plain_velocity(t, x), recipe, keys, index, x1, Condition({}, {})))
    conditional: Any = velocity
    return jnp.mean(flow_matching(conditional, recipe, keys, index, x1, c))


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
TASKS: dict[str, Task] = {"flow": flow_matching, "classifier": classification, "autoencoder": reconstruction}


def _means(x: Array) -> Array:
    """Returns the mean of each example, ``(B,)``."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


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
