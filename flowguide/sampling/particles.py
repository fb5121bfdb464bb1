"""The sampler "fkc": weighted particles of the γ-powered law, drawn together by a Feynman-Kac corrector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowguide import tilted
from flowguide.errors import UserError
from flowguide.model import GammaConditioned, Guided, Model, NoNull
from flowguide.paths import Path
from flowguide.sampling.config import DEFAULT, STOCHASTIC, SamplerConfig, nodes
from flowguide.sampling.request import SampleRequest
from flowguide.sampling.sampler import Sampler, stochastic
from flowguide.typing import Array, CondVelocity, PRNGKey

# A trained network's weights near t = 1 measure its errors, which grow with the size of an example and are divided by
# 1 − t: benchmarks/tilted_images.py. Examples of this many numbers or more stop gathering weights early.
LARGE, UNTIL_LARGE = 64, 0.7


class ParticleSamples(NamedTuple):
    """Weighted samples of G laws, K of each; ``resample_equal`` turns them into samples of equal weight.

    Attributes:
      x: as the kind of example is shown, uint8 images or float32 vectors, ``(G, K, *D)``.
      log_weights: float32 ``(G, K)``; their exponentials sum to one over K.
      ess: float32 ``(G, N)``, effective sample size after each step, before resampling there.
      ancestors: int32 ``(G, K)``, the particle of the start that each comes from.
      log_z: float32 ``(G,)``, estimate of log ∫ p(x)^(1−γ)·p(x|c)^γ dx.
      evaluations: network evaluations that each particle cost.
    """

    x: np.ndarray
    log_weights: np.ndarray
    ess: np.ndarray
    ancestors: np.ndarray
    log_z: np.ndarray
    evaluations: int


def resample_equal(samples: ParticleSamples, seed: int = 0) -> np.ndarray:
    """Returns samples ``(G·K, *D)`` of equal weight, law after law, drawn from the particles by their weights."""
    root = jax.random.fold_in(jax.random.key(seed), 2**31 + 1)  # no law has this number
    keys = jax.vmap(partial(jax.random.fold_in, root))(jnp.arange(len(samples.x)))
    count = samples.x.shape[1]
    index = jnp.broadcast_to(jnp.arange(count), samples.log_weights.shape)
    chosen = np.asarray(tilted.resample(keys, jnp.asarray(samples.log_weights), index))
    return np.concatenate([x[i] for x, i in zip(samples.x, chosen, strict=True)])


def draw_particles(
    velocity: CondVelocity,
    path: Path,
    shape: tuple[int, ...],
    config: SamplerConfig,
    keys: PRNGKey,
    request: SampleRequest,
) -> tilted.Particles:
    """Draws the particles of each law of a request; ``config`` is resolved."""
    proposal = None
    if config.proposal is not None:
        proposal = _powers(config, jnp.float32(config.proposal), request)
    return tilted.feynman_kac(
        _law(velocity, config, request),
        path,
        keys,
        nodes(config),
        shape,
        particles=config.particles,
        solver=partial(stochastic, config, path),
        proposal=proposal,
        threshold=config.threshold,
        clip=config.clip,
        until=1.0 if config.until is None else config.until,
        passes=config.passes,
    )


def evaluations(config: SamplerConfig, request: SampleRequest) -> int:
    """Returns the network evaluations that each particle costs."""
    factors = 2 if config.replace_null else 2 + len(request.negatives) + len(request.composed)
    return factors * (len(nodes(config)) - 1)


def _law(velocity: CondVelocity, config: SamplerConfig, request: SampleRequest) -> tilted.Product:
    gamma = jnp.asarray(request.gamma)
    if config.replace_null:
        return tilted.powered(velocity, request.c, gamma, against=request.negatives[0])
    _, *powers = _powers(config, gamma, request)
    factors = (request.c, *request.composed, *request.negatives)
    return tilted.composed(velocity, request.c, list(zip(factors, powers, strict=True)))


def _powers(config: SamplerConfig, gamma: Array, request: SampleRequest) -> tuple[Array, ...]:
    """The powers of ∅, the condition, the further and the negative ones; or of the negative and the condition."""
    if config.replace_null:
        return 1 - gamma, gamma
    further = [gamma * request.weights[i] for i in range(len(request.composed))]
    powers = gamma, *further, *[-request.gamma_negative] * len(request.negatives)
    return 1 - sum(powers, jnp.zeros(())), *powers


def _defaults(config: SamplerConfig, model: Model | None) -> Mapping[str, Any]:
    # A proposal of its own is weighed by its memoryless noise.
    found: dict[str, Any] = {"solver": "renoise_2m", "eta": 2.0 if config.proposal is None else 1.0}
    if model is not None:
        found["until"] = UNTIL_LARGE if math.prod(model.info.model_shape) >= LARGE else 1.0
    return found


def _check(config: SamplerConfig) -> None:
    guided = ("guidance", "settings", "schedule", "interval", "rescale", "perturbation", "reuse", "channels")
    for name in (*guided, "diffusion", "last_kind"):
        if getattr(config, name) != getattr(DEFAULT, name):
            raise UserError(
                f"sampler 'fkc' draws from one law, a product of powers: {name} = {getattr(config, name)!r} is none; "
                "leave it out, or use the sampler 'flow'"
            )
    if config.proposal is not None and not np.isfinite(config.proposal):
        raise UserError(f"the proposal is a guidance scale, a finite number; got {config.proposal}")
    if config.proposal is not None and config.eta != 1:
        raise UserError(f"a proposal of its own needs memoryless noise, eta = 1; got {config.eta}")
    if not 0 <= config.threshold <= 1:
        raise UserError(f"the threshold is a share of the particles, 0 to 1; got {config.threshold}")
    if config.until is not None and not 0 < config.until <= 1:
        raise UserError(f"until is the last time at which weights are gathered, 0 < until <= 1; got {config.until}")
    if config.clip is not None and not config.clip > 0:
        raise UserError(f"expected clip > 0; got {config.clip}")
    if config.particles < 2:
        raise UserError(f"expected at least 2 particles; got {config.particles}")


def _check_model(model: Model, request: SampleRequest, config: SamplerConfig) -> None:
    if isinstance(model.guidance, GammaConditioned | Guided):
        raise UserError("this network is a guided velocity already; weights need u(x, c) and u(x, ∅): use a plain one")
    if isinstance(model.guidance, NoNull) and not config.replace_null:
        raise UserError("this network was trained without null dropout, so it knows no p(x): train with drop_rate > 0")


PARTICLES = Sampler(STOCHASTIC, _defaults, _check, _check_model, stochastic)
