"""Training targets: the plain velocity, one that contrasts examples, or a guided one.

A guided one needs one evaluation per sampling step instead of two.

A guided target is trained for one γ, or for a range of γ: then γ is drawn in training and given to the network as an
extra field of the condition. γ is the scale of (1 − γ)·u(x, ∅) + γ·u(x, c), as everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from flowguide import condition
from flowguide.condition import Condition
from flowguide.solvers.solver import over
from flowguide.typing import Array, CondVelocity

GAMMA = "gamma"  # the condition field that gives the guidance scale to a γ-conditioned network


def with_gamma(c: Condition, gamma: Array | float) -> Condition:
    """Adds the field ``GAMMA`` to a condition, present for every example: the input of a γ-conditioned network.

    Args:
      c: a condition with named fields.
      gamma: () or ``(B,)``.

    Raises:
      ValueError: if the fields of ``c`` have no names, so that none can be added.
    """
    if not (isinstance(c.value, dict) and c.value):
        raise ValueError(
            f"γ can only be added to named fields; got {type(c.value).__name__}: use a dict, such as {{'label': ...}}"
        )
    like = next(iter(jax.tree.leaves(c.present)))
    value = jnp.broadcast_to(jnp.asarray(gamma, jnp.float32), like.shape)[:, None]
    return Condition({**c.value, GAMMA: value}, {**c.present, GAMMA: jnp.ones_like(like)})


class Seen(NamedTuple):
    """The batch that the network sees: t ``(B,)``, x = x_t ``(B, *D)`` and the condition c after dropout."""

    t: Array
    x: Array
    c: Condition


class Residual(Protocol):
    """velocity, teacher, the batch as seen, u* = α̇x1 + σ̇x0 ``(B, *D)``, γ ``(B,)`` -> the error ``(B, *D)``."""

    def __call__(
        self, velocity: CondVelocity, teacher: CondVelocity, seen: Seen, u: Array, gamma: Array, /
    ) -> Array: ...


class Target(NamedTuple):
    """A training target.

    Attributes:
      residual: the loss is its mean square. No gradient flows through the teacher or through a pass for ∅.
      gammas: the range of γ of a γ-conditioned network; None if the network does not take γ.
      quantile: [0, 1] -> γ, the quantile function of the distribution of γ; only used if ``gammas`` is given.
      guided: the γ of which the trained velocity is the guided one; None if it is a plain velocity or takes γ.
      needs_null: whether the network must learn u(t, x, ∅) on the way.
      teacher: folder of the run that teaches; None if the network, or its moving average, is its own teacher.
      contrast: (u*, ũ) -> the velocity that the residual compares with. ũ is the u* of another example of the batch, at
        the same t. None compares with u* itself.
    """

    residual: Residual
    gammas: tuple[float, float] | None = None
    quantile: Callable[[Array], Array] = jnp.ones_like
    guided: float | None = None
    needs_null: bool = False
    teacher: str | None = None
    contrast: Callable[[Array, Array], Array] | None = None


def plain() -> Target:
    """u − u*: the velocity itself (Lipman et al. 2023, eq. 9)."""
    return Target(lambda velocity, teacher, seen, u, gamma: velocity(*seen) - u)


def contrastive(weight: float = 0.05) -> Target:
    """|u − u*|² − λ|u − ũ|², λ = ``weight`` (Stoica et al. 2025, ΔFM, arXiv 2506.05350).

    ũ is the velocity of another example of the batch, with its own data and noise, at the same t; it does not depend on
    x_t. The residual is √(1 − λ)·[u − (u* − λũ)/(1 − λ)], whose square is that loss plus λ|u* − ũ|²/(1 − λ), which has
    no gradient. So the loss has no negative values, and the trained field is (v − λE[ũ])/(1 − λ), v = E[u*|x_t, c].
    E[ũ] = α̇E[x1] is the same for all x and c: conditional velocities are 1/(1 − λ) times as far from each other, and
    from that of ∅, as those of the data.

    Raises:
      ValueError: if λ is not from 0 to less than 1: from 1 on the loss has no minimum.
    """
    if not 0 <= weight < 1:
        raise ValueError(f"contrastive expects 0 <= weight < 1; got {weight}: use 0.05")

    def residual(velocity: CondVelocity, teacher: CondVelocity, seen: Seen, u: Array, gamma: Array) -> Array:
        return math.sqrt(1 - weight) * (velocity(*seen) - u)

    return Target(residual, contrast=lambda u, other: (u - weight * other) / (1 - weight))


def model_guidance(gamma: float = 2.0) -> Target:
    """u − u* − w·sg[T(c) − T(∅)], w = 1 − 1/γ, T the moving average of u (Tang et al. 2025, MG, arXiv 2502.12154).

    With T = u its mean vanishes for u = u_∅ + γ(u_c − u_∅) of the plain velocities. For an example whose condition was
    dropped, c = ∅ and the target is the plain one.

    Raises:
      ValueError: if γ is less than 1 or not finite.
    """
    if not 1 <= gamma < math.inf:
        raise ValueError(f"model_guidance expects a finite gamma of 1 or more; got {gamma}: use 2.0, for example")
    w = 1 - 1 / gamma

    def residual(velocity: CondVelocity, teacher: CondVelocity, seen: Seen, u: Array, gamma: Array) -> Array:
        push = teacher(*seen) - teacher(*_without(seen))
        return velocity(*seen) - (u + w * jax.lax.stop_gradient(push))

    return Target(residual, guided=gamma, needs_null=True)


def guidance_free(low: float = 0.2) -> Target:
    """β·u(c, γ) + (1 − β)·sg[u(∅, 1)] − u*, β ~ U(low, 1), γ = 1/β (Chen et al. 2025, GFT, arXiv 2501.15420).

    The sum is the conditional velocity that the guided one implies; γ ranges from 1 to 1/low. The network is its own
    teacher.

    Raises:
      ValueError: if ``low`` is not between 0 and 1.
    """
    if not 0 < low < 1:
        raise ValueError(
            f"guidance_free draws β from U(low, 1), with γ = 1/β, and expects 0 < low < 1; got low={low}: use 0.2 for "
            "γ up to 5"
        )

    def residual(velocity: CondVelocity, teacher: CondVelocity, seen: Seen, u: Array, gamma: Array) -> Array:
        t, x, c = seen
        null = velocity(t, x, with_gamma(condition.null(c), 1.0))
        beta = over(1 / gamma, x)
        return beta * velocity(t, x, with_gamma(c, gamma)) + (1 - beta) * jax.lax.stop_gradient(null) - u

    return Target(residual, (1.0, 1 / low), lambda tau: 1 / (1 - (1 - low) * tau), needs_null=True)


def distilled(gamma_range: tuple[float, float] = (1.0, 5.0), workdir: str = "") -> Target:
    """u(c, γ) − [(1 − γ)·T(∅) + γ·T(c)], γ ~ U(gamma_range), T a network trained before.

    The first stage of the distillation of Meng et al. 2023 (arXiv 2210.03142), where w = γ − 1. ``workdir`` is the
    folder of the teacher's run.

    Raises:
      ValueError: if ``gamma_range`` is not two finite numbers in increasing order.
    """
    if len(gamma_range) != 2 or not -math.inf < gamma_range[0] < gamma_range[1] < math.inf:
        raise ValueError(
            f"gamma_range expects two finite numbers, the lower first; got {tuple(gamma_range)}: use (1.0, 5.0), for "
            "example"
        )
    low, high = gamma_range

    def residual(velocity: CondVelocity, teacher: CondVelocity, seen: Seen, u: Array, gamma: Array) -> Array:
        t, x, c = seen
        null = teacher(*_without(seen))
        guided = null + over(gamma, x) * (teacher(t, x, c) - null)
        return velocity(t, x, with_gamma(c, gamma)) - jax.lax.stop_gradient(guided)

    return Target(residual, (low, high), lambda tau: low + (high - low) * tau, teacher=workdir)


def _without(seen: Seen) -> Seen:
    return seen._replace(c=condition.null(seen.c))


TARGETS: dict[str, Callable[..., Target]] = {
    "plain": plain,
    "contrastive": contrastive,
    "model_guidance": model_guidance,
    "guidance_free": guidance_free,
    "distilled": distilled,
}
