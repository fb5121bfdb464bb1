"""What a velocity is trained to be: plain, or guided already, so that a sample needs one evaluation a step and not two.

A guided target holds for one γ, or for a range of them where γ is drawn in training and told to the network as one more
field of the condition. Here too γ is that of (1 − γ)·u(x, ∅) + γ·u(x, c).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from flowguide import condition
from flowguide.condition import Condition, Vector
from flowguide.solvers.solver import over
from flowguide.typing import Array, CondVelocity

GAMMA = "gamma"  # the field through which a network is told the scale of its guidance
GAMMA_FIELD = Vector(1)


def with_gamma(c: Condition, gamma: Array | float) -> Condition:
    """The condition with one field more, ``GAMMA``, present for every example: what a network that takes γ is given.

    Args:
      c: fields by name.
      gamma: () or ``(B,)``.

    Raises:
      ValueError: if ``c`` has no names, and so no place for another.
    """
    if not (isinstance(c.value, dict) and c.value):
        raise ValueError(f"γ joins fields that have names; got {type(c.value).__name__}: give {{'label': ...}}, say")
    like = next(iter(jax.tree.leaves(c.present)))
    value = jnp.broadcast_to(jnp.asarray(gamma, jnp.float32), like.shape)[:, None]
    return Condition({**c.value, GAMMA: value}, {**c.present, GAMMA: jnp.ones_like(like)})


class Seen(NamedTuple):
    """A batch as the network is to see it: t ``(B,)``, x = x_t ``(B, *D)`` and the condition c, some of it dropped."""

    t: Array
    x: Array
    c: Condition


# velocity, teacher, what is seen, u* = α̇x1 + σ̇x0 (B, *D), γ (B,) -> what is to vanish, (B, *D)
Residual: TypeAlias = Callable[[CondVelocity, CondVelocity, Seen, Array, Array], Array]


class Target(NamedTuple):
    """What a velocity is trained to be.

    Attributes:
      residual: its mean square is the loss. No gradient goes through the teacher, nor through any pass for ∅.
      gammas: the range of γ that the network learns and is told through ``GAMMA``; None if it is told none.
      quantile: [0, 1] -> γ, the quantile function of the law that γ is drawn from; only read where there is a range.
    """

    residual: Residual
    gammas: tuple[float, float] | None = None
    quantile: Callable[[Array], Array] = jnp.ones_like


def plain() -> Target:
    """u − u*: the velocity itself (Lipman et al. 2023, eq. 9)."""
    return Target(lambda velocity, teacher, seen, u, gamma: velocity(*seen) - u)


def model_guidance(gamma: float = 2.0) -> Target:
    """u − u* − w·sg[T(c) − T(∅)], w = 1 − 1/γ, T the moving average of u (Tang et al. 2025, MG, arXiv 2502.12154).

    Where T is u, it vanishes on average for u = u_∅ + γ(u_c − u_∅) of the plain velocities. An example whose condition
    was dropped has c = ∅, and so the plain target.

    Raises:
      ValueError: if γ is less than 1.
    """
    if not 1 <= gamma < math.inf:
        raise ValueError(f"model_guidance needs a finite gamma of 1 or more; got {gamma}: 2.0, say")
    w = 1 - 1 / gamma

    def residual(velocity: CondVelocity, teacher: CondVelocity, seen: Seen, u: Array, gamma: Array) -> Array:
        push = teacher(*seen) - teacher(*_without(seen))
        return velocity(*seen) - (u + w * jax.lax.stop_gradient(push))

    return Target(residual)


def guidance_free(low: float = 0.2) -> Target:
    """β·u(c, γ) + (1 − β)·sg[u(∅, 1)] − u*, β ~ U(low, 1), γ = 1/β (Chen et al. 2025, GFT, arXiv 2501.15420).

    The sum is the conditional velocity that guided ones imply; γ runs from 1 to 1/low. The network is its own teacher.

    Raises:
      ValueError: if ``low`` is not between 0 and 1.
    """
    if not 0 < low < 1:
        raise ValueError(f"guidance_free draws β from low to 1, and γ = 1/β; got low={low}: 0.2, say, for γ up to 5")

    def residual(velocity: CondVelocity, teacher: CondVelocity, seen: Seen, u: Array, gamma: Array) -> Array:
        t, x, c = seen
        null = velocity(t, x, with_gamma(condition.null(c), 1.0))
        beta = over(1 / gamma, x)
        return beta * velocity(t, x, with_gamma(c, gamma)) + (1 - beta) * jax.lax.stop_gradient(null) - u

    return Target(residual, (1.0, 1 / low), lambda tau: 1 / (1 - (1 - low) * tau))


def distilled(gamma_range: tuple[float, float] = (1.0, 5.0)) -> Target:
    """u(c, γ) − [(1 − γ)·T(∅) + γ·T(c)], γ ~ U(gamma_range), T a network trained before.

    The first stage of the distillation of Meng et al. 2023 (arXiv 2210.03142), who call γ − 1 w.

    Raises:
      ValueError: if the range is not one.
    """
    if len(gamma_range) != 2 or not -math.inf < gamma_range[0] < gamma_range[1] < math.inf:
        raise ValueError(f"gamma_range needs two finite numbers, the lower first; got {tuple(gamma_range)}: (1.0, 5.0)")
    low, high = gamma_range

    def residual(velocity: CondVelocity, teacher: CondVelocity, seen: Seen, u: Array, gamma: Array) -> Array:
        t, x, c = seen
        null = teacher(*_without(seen))
        guided = null + over(gamma, x) * (teacher(t, x, c) - null)
        return velocity(t, x, with_gamma(c, gamma)) - jax.lax.stop_gradient(guided)

    return Target(residual, (low, high), lambda tau: low + (high - low) * tau)


def _without(seen: Seen) -> Seen:
    return seen._replace(c=condition.null(seen.c))


TARGETS: dict[str, Callable[..., Target]] = {
    "plain": plain,
    "model_guidance": model_guidance,
    "guidance_free": guidance_free,
    "distilled": distilled,
}
