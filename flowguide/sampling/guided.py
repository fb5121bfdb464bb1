"""The guided velocity of a request."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp

from flowguide import guidance, solvers
from flowguide.condition import bind
from flowguide.networks import Network
from flowguide.networks.perturbation import Perturbation
from flowguide.paths import Path
from flowguide.sampling.config import ADAPTIVE, SamplerConfig, nodes
from flowguide.sampling.measured import Measured
from flowguide.sampling.request import SampleRequest
from flowguide.schema import Examples, Fields
from flowguide.targets import with_gamma
from flowguide.typing import Array, CondVelocity, PRNGKey, PyTree, Schedule, Velocity


def gamma_conditioned_velocity(velocity: CondVelocity, request: SampleRequest) -> tuple[Velocity, guidance.Guidance]:
    """Returns the velocity of a γ-conditioned network, and the guidance that says it takes one pass."""
    alone = guidance.Guidance((), guidance.composed([]), lambda t: jnp.int32(guidance.Terms.CONDITIONAL))
    return bind(velocity, with_gamma(request.c, jnp.asarray(request.gamma))), alone


def guided_velocity(
    velocity: CondVelocity,
    path: Path,
    config: SamplerConfig,
    request: SampleRequest,
    weak: CondVelocity | None = None,
    keys: PRNGKey | None = None,
    fields: Fields = MappingProxyType({}),
) -> tuple[Velocity | solvers.StatefulVelocity, guidance.Guidance]:
    """Returns the guided velocity of a plain network, and its guidance.

    Args:
      velocity: of the network.
      path: it was trained on.
      config: with its defaults resolved.
      request: what is asked.
      weak: a weaker network, for guidance that moves away from one.
      keys: typed keys ``(B,)``, for guidance that draws (``guidance.methods.RANDOM``); None to check it only.
      fields: of the condition, for guidance that draws conditions.

    Raises:
      ValueError, TypeError: for guidance that cannot combine what is asked.
    """
    gamma = guidance.SCHEDULES[config.schedule](request.gamma)
    inputs = guidance.methods.GuidanceInputs(
        velocity,
        request.c,
        gamma,
        path,
        request.negatives,
        None if config.replace_null else guidance.constant(request.gamma_negative),
        tuple((d, _times(gamma, request.weights[i])) for i, d in enumerate(request.composed)),
        None if config.solver in ADAPTIVE else nodes(config),
        weak,
        config.interval,
        keys,
        made_up(fields),
    )
    settings = dict(config.settings)
    guiding = guidance.methods.build(config.guidance, inputs, config.rescale, config.channels, **settings)
    return guidance.guide(velocity, request.c, guiding, config.passes, config.reuse), guiding


def measured_velocity(
    velocity: Velocity | solvers.StatefulVelocity,
    path: Path,
    examples: Examples,
    config: SamplerConfig,
    measured: Measured | None,
) -> Velocity | solvers.StatefulVelocity:
    """Returns a guided velocity whose samples also fit what was measured, as ``for_each`` returns it.

    Raises:
      TypeError: if the velocity has memory and something was measured.
    """
    if measured is None:
        return velocity
    measurement, y, noise = measured.seen(examples)
    return guidance.with_measurement(
        velocity, measurement, y, path, noise=noise, variance=measured.variance, jacobian_from=config.jacobian_from
    )


def weak_velocity(
    network: Network, params: PyTree, weak: Network | None, weak_params: PyTree, perturbation: Perturbation
) -> CondVelocity | None:
    """Returns the velocity of the weaker network or, without one, of the network perturbed; None for neither."""
    if weak is not None:
        return partial(weak.velocity, weak_params)
    return partial(network.perturbed(perturbation), params) if perturbation != Perturbation() else None


def made_up(fields: Fields) -> Callable[[PRNGKey], PyTree]:
    """Returns key () -> a made-up value of each field, independent of each other, without a batch axis."""

    def draw(key: PRNGKey) -> PyTree:
        keys = jax.random.split(key, len(fields))
        return {name: field.random(own, 1)[0] for own, (name, field) in zip(keys, fields.items(), strict=True)}

    return draw


def _times(schedule: Schedule, weight: Array | float) -> Schedule:
    return lambda t: weight * schedule(t)
