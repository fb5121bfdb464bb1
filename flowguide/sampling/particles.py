"""Particles of the γ-powered law, drawn together by a Feynman-Kac corrector."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowguide import paths, processes, solvers, tilted
from flowguide.data import to_image
from flowguide.errors import UserError
from flowguide.networks import Network
from flowguide.sampling.checks import check, resolve_defaults
from flowguide.sampling.conditions import Cond, number
from flowguide.sampling.config import SamplerConfig, SampleRequest, ask, nodes
from flowguide.sampling.draw import layout, shares, spread
from flowguide.sampling.run import Run
from flowguide.typing import Array, Device, PRNGKey, PyTree

DEFAULT = SamplerConfig(sampler="fkc")


class ParticleSamples(NamedTuple):
    """Weighted samples of G laws, K of each; ``resample_equal`` makes samples of them.

    Attributes:
      x: uint8 images or float32 points ``(G, K, *D)``.
      log_weights: float32 ``(G, K)``, their exponentials sum to one over K.
      ess: float32 ``(G, N)``, effective sample size after each step, before resampling there.
      ancestors: int32 ``(G, K)``, which particle of the start each comes from.
      log_z: float32 ``(G,)``, estimate of log ∫ p(x)^(1−γ)·p(x|c)^γ dx.
      evaluations: network evaluations that each particle cost.
    """

    x: np.ndarray
    log_weights: np.ndarray
    ess: np.ndarray
    ancestors: np.ndarray
    log_z: np.ndarray
    evaluations: int


def sample_particles(
    run: Run,
    cond: Cond = "",
    *,
    num: int | None = None,
    gamma: float | np.ndarray = 1.0,
    negative: Cond = (),
    gamma_negative: float = 1.0,
    compose: Sequence[tuple[Cond, float]] = (),
    method: SamplerConfig = DEFAULT,
    seed: int = 0,
    batch_size: int = 64,
    devices: Sequence[Device] | None = None,
    progress: bool = False,
) -> ParticleSamples:
    """Draws ``method.particles`` weighted particles of each of ``num`` laws p(x)^(1−γ)·p(x|c)^γ.

    A negative condition multiplies by (p(x|d)/p(x))^(−γ_n), or takes the place of p(x) if ``method.replace_null``; a
    further one by (p(x|c_i)/p(x))^(γ·w_i). A law depends on (seed, its number) and its own conditions
    alone, up to rounding.

    Args:
      run: from ``load``.
      cond: for all laws or one each, in any of the forms that ``sample`` takes.
      num: how many laws; by default one a prompt, or 1.
      gamma: γ, for all or ``(num,)``.
      negative: as in ``sample``, for each law.
      gamma_negative: as in ``sample``.
      compose: as in ``sample``.
      method: of the sampler "fkc".
      seed: of the noise.
      batch_size: particles at a time, over all devices, though never less than one law a device.
      devices: where to compute; by default all, as in ``sample``. The particles of one law stay together on one.
      progress: show a progress bar.

    Raises:
      UserError: for settings that cannot be, before anything is computed, and where particles are not finite.
    """
    method = resolve_defaults(method)
    num = number(cond, num, 1, run.info.fields)
    if num < 1 or batch_size < 1 or method.particles < 2:
        raise UserError(
            "num and batch_size must be at least 1 and particles at least 2; got "
            f"{num}, {batch_size} and {method.particles}"
        )
    request, weights = ask(run, cond, num, gamma, negative, gamma_negative, compose)
    _check(run, request, weights, method)
    over = layout(devices)
    program = _program(run.network, run.path, run.info.shape, method, over.mesh)
    params, drawn = processes.put(run.params, over.whole), []
    size = max(1, batch_size // method.particles)
    for kept, keys, share in shares(request, num, size, seed, over, progress, method.particles):
        particles = program(params, keys, share, weights)
        if not all(bool(jnp.isfinite(a).all()) for a in (particles.x, particles.log_weights)):
            raise UserError(
                "particles or their weights are not finite: at this gamma there may be no such law (γ < 0, or a "
                "negative condition narrower than the other); lower gamma, gather weights until t = 0.95 only, take "
                "more steps, or train longer"
            )
        drawn.append(jax.tree.map(lambda a, kept=kept: processes.gather(a)[:kept], particles))
    p = jax.tree.map(lambda *leaves: np.concatenate(leaves), *drawn)
    factors = 2 if method.replace_null else 2 + len(request.negatives) + len(request.composed)
    cost = factors * (len(nodes(method)) - 1)
    x = to_image(p.x) if run.info.kind == "image" else p.x
    return ParticleSamples(x, p.log_weights, p.ess, p.ancestors, p.log_z, cost)


def resample_equal(laws: ParticleSamples, seed: int = 0) -> np.ndarray:
    """Samples ``(G·K, *D)`` of equal weight, law after law, drawn from the particles by their weights."""
    root = jax.random.fold_in(jax.random.key(seed), 2**31 + 1)  # no law has this number
    keys = jax.vmap(partial(jax.random.fold_in, root))(jnp.arange(len(laws.x)))
    count = laws.x.shape[1]
    index = jnp.broadcast_to(jnp.arange(count), laws.log_weights.shape)
    chosen = np.asarray(tilted.resample(keys, jnp.asarray(laws.log_weights), index))
    return np.concatenate([x[i] for x, i in zip(laws.x, chosen, strict=True)])


def _law(
    network: Network, method: SamplerConfig, params: PyTree, request: SampleRequest, weights: Array
) -> tilted.Product:
    velocity, gamma = partial(network.velocity, params), jnp.asarray(request.gamma)
    if method.replace_null:
        return tilted.powered(velocity, request.c, gamma, against=request.negatives[0])
    _, *others = _weights(method, gamma, request, weights)
    return tilted.composed(
        velocity, request.c, list(zip((request.c, *request.composed, *request.negatives), others, strict=True))
    )


def _weights(method: SamplerConfig, gamma: Array, request: SampleRequest, weights: Array) -> tuple[Array, ...]:
    """Of ∅, the condition, the further and the negative ones; or of the negative and the condition."""
    if method.replace_null:
        return 1 - gamma, gamma
    others = gamma, *(gamma * w for w in weights[1:]), *[-weights[0]] * len(request.negatives)
    return 1 - sum(others, jnp.zeros(())), *others


@lru_cache(maxsize=32)
def _program(network: Network, path: str, shape: tuple[int, ...], method: SamplerConfig, mesh: jax.sharding.Mesh):
    """The jitted sampler. Each device has laws of its own, with all their particles."""

    def draw(params: PyTree, keys: PRNGKey, request: SampleRequest, weights: Array) -> tilted.Particles:
        law, own, proposal = _law(network, method, params, request, weights), paths.PATHS[path](), None
        if method.proposal is not None:
            proposal = _weights(method, jnp.float32(method.proposal), request, weights)
        return tilted.feynman_kac(
            law,
            own,
            keys,
            nodes(method),
            shape,
            particles=method.particles,
            solver=lambda keys: solvers.STOCHASTIC[str(method.solver)](own, keys, float(method.eta or 0.0)),
            proposal=proposal,
            threshold=method.threshold,
            clip=method.clip,
            until=method.until,
            passes=method.passes,
        )

    return spread(draw, mesh)


def _check(run: Run, request: SampleRequest, weights: np.ndarray, method: SamplerConfig) -> None:
    if method.sampler != "fkc":
        raise UserError(f"sample_particles is for the sampler 'fkc'; got {method.sampler!r}: call sample")
    if run.gammas is not None or run.guided:
        raise UserError("this network is a guided velocity already; weights need u(x, c) and u(x, ∅): give a plain one")
    if not run.has_null and not method.replace_null:
        raise UserError("this network was trained without null dropout, so it knows no p(x): train with drop_rate > 0")
    check(run, request, weights, method)
