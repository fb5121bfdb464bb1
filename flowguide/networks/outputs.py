"""What a network predicts: a velocity, the data or the noise; and the velocity that follows from it.

Guidance, solvers, likelihood and losses see velocities alone. A new kind is a function of its settings that returns an
``Output``, and a line in ``OUTPUTS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from flowguide import paths
from flowguide.chain import Chain, level, linear
from flowguide.condition import Condition
from flowguide.networks.module import Ancestral, Apply, Network, Params
from flowguide.networks.perturbation import Perturbation
from flowguide.paths import Path
from flowguide.solvers.solver import over
from flowguide.typing import Array


class Output(NamedTuple):
    """What a network predicts.

    Attributes:
      velocity: (what the network computes, path) -> the velocity, both as functions of (params, t, x, c). Further
        channels are kept.
      chain: of a network that also predicts variances, in as many further channels as x has; None for all others.
    """

    velocity: Callable[[Apply, Path], Apply]
    chain: Chain | None = None

    @property
    def variance(self) -> bool:
        """Whether the network also predicts variances, in as many further channels as x has."""
        return self.chain is not None


def velocity() -> Output:
    """the velocity itself"""
    return Output(lambda raw, path: raw)


def x1(floor: float = 0.05) -> Output:
    """the data x̂1, and u = (σ̇x + Δx̂1)/max(σ, floor); (x̂1 − x)/max(1 − t, floor) on the linear path (JiT)

    Li & He 2025, arXiv 2511.13720, where the loss is that of velocities too. While σ < floor, training teaches the
    network the x̂1 that makes u right, x + (floor/σ)(E[x1|x] − x) on the linear path: the target has no floor here.

    Raises:
      ValueError: if ``floor`` is not above 0 and at most 1.
    """
    if not 0 < floor <= 1:
        raise ValueError(f"floor, the smallest σ to divide by, must be above 0 and at most 1; got {floor}: use 0.05")

    def convert(raw: Apply, path: Path) -> Apply:
        def u(params: Params, t: Array, x: Array, c: Condition) -> Array:
            return paths.x1_to_velocity(path, t, x, raw(params, t, x, c), floor=floor)

        return u

    return Output(convert)


def epsilon(
    steps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    learned_variance: bool = False,
    time_unit: float = 1000.0,
) -> Output:
    """the noise ε of a DDPM chain (DiT), of which the network sees the step over time_unit as its time

    At t the network gets the step k with the ratio α/σ of the path (``chain.level``) and x in the scale of the chain,
    (α_k + σ_k)x_t on the linear path. There u = (x_t − ε)/t; on any path u = α̇x̂1 + σ̇ε with x̂1 = (x_k − σ_k·ε)/α_k,
    also beyond the ends of the chain, where k is that of the end.

    The time that the network sees is k/``time_unit``: 1000 for networks that multiply times by 1000, as those of
    flowguide do, 1 for those that take the number of the step. With 1 the former do not learn: neighbouring steps have
    nothing in common in their sinusoids.

    Between steps k has a fraction, so the velocity is continuous in t, and exact if ε is: at the nearest step instead,
    with ε of normal data, it errs by up to half the change of the velocity from one step to the next.

    With ``learned_variance`` the network's output has a second half, the range of the variance (Nichol & Dhariwal 2021,
    eq. 15), which is for ancestral sampling; the loss of velocities does not train it.

    Raises:
      ValueError: as ``chain.linear``, and if ``time_unit`` is not above 0.
    """
    if not time_unit > 0:
        raise ValueError(f"time_unit, by which steps are divided, must be above 0; got {time_unit}: use 1000 or 1")
    links = linear(steps, beta_start, beta_end)

    def convert(raw: Apply, path: Path) -> Apply:
        def u(params: Params, t: Array, x: Array, c: Condition) -> Array:
            at = level(links, path, t)
            alpha, sigma, seen = over(at.alpha, x), over(at.sigma, x), over(at.scale, x) * x
            predicted = raw(params, at.step / time_unit, seen, c)
            noise, rest = predicted[..., : x.shape[-1]], predicted[..., x.shape[-1] :]
            u = paths.conditional_velocity(path, t, noise, (seen - sigma * noise) / alpha)
            return jnp.concatenate([u, rest], axis=-1)

        return u

    return Output(convert, links if learned_variance else None)


OUTPUTS: dict[str, Callable[..., Output]] = {"velocity": velocity, "x1": x1, "epsilon": epsilon}


def as_velocity(network: Network, output: Output, path: Path) -> Network:
    """Returns a network of another output as one that predicts velocities, also where it is perturbed."""

    def converted(raw: Apply) -> Apply:
        whole = output.velocity(raw, path)
        return _first_half(whole) if output.variance else whole

    u = converted(network.velocity)

    def perturbed(perturbation: Perturbation) -> Apply:
        weakened = network.perturbed(perturbation)
        return u if weakened is network.velocity else converted(weakened)

    ancestral = None if output.chain is None else Ancestral(output.chain, output.velocity(network.velocity, path))
    return Network(network.init, u, perturbed, ancestral)


def _first_half(whole: Apply) -> Apply:
    def u(params: Params, t: Array, x: Array, c: Condition) -> Array:
        return whole(params, t, x, c)[..., : x.shape[-1]]

    return u
