"""Draws samples from a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowguide import guidance, processes, solvers
from flowguide.condition import Condition
from flowguide.errors import UserError
from flowguide.kinds import checked
from flowguide.model import GammaConditioned, Model
from flowguide.networks import Network
from flowguide.paths import Path
from flowguide.sampling.batches import Devices, Draw, batches, in_a_row, spread
from flowguide.sampling.checks import SAMPLERS, check, check_counts, resolve_defaults
from flowguide.sampling.config import ADAPTIVE, DDPM, DEFAULT, SamplerConfig, nodes
from flowguide.sampling.guided import gamma_conditioned_velocity, guided_velocity, measured_velocity, weak_velocity
from flowguide.sampling.measured import Inpaint, Measured, read_measured
from flowguide.sampling.particles import ParticleSamples, draw_particles, evaluations, resample_equal
from flowguide.sampling.request import SampleRequest, request
from flowguide.schema import Examples, Field
from flowguide.schema.conditions import Cond, sample_count
from flowguide.typing import Array, CondVelocity, Device, PRNGKey, PyTree

PARTICLES = DEFAULT._replace(sampler="fkc")
PRODUCT = PARTICLES._replace(steps=100, particles=2000)


class Samples(NamedTuple):
    """What was drawn.

    Attributes:
      x: as the kind of example is shown, uint8 images (latents are decoded) or float32 vectors, ``(num, *D)``. Rows of
        a table have a class by its number; ``model.info.examples.named(x)`` gives its name.
      evaluations: int ``(num,)``, network evaluations that each sample cost.
    """

    x: np.ndarray
    evaluations: np.ndarray


class Functions(NamedTuple):
    """What a program is compiled for, besides the sampler: everything of a model but its parameters. Hashable."""

    network: Network
    weak: Network | None
    path: Path
    gamma_conditioned: bool
    examples: Examples
    fields: tuple[tuple[str, Field], ...]


def functions_of(model: Model, weak: Model | None = None) -> Functions:
    """Returns the functions of a model, and of a weaker one."""
    conditioned = isinstance(model.guidance, GammaConditioned)
    weaker = None if weak is None else weak.network
    fields = tuple(model.info.fields.items())
    return Functions(model.network, weaker, model.path, conditioned, model.info.examples, fields)


@checked
def sample(
    model: Model,
    cond: Cond = "",
    *,
    num: int | None = None,
    gamma: float | np.ndarray | None = None,
    negative: Cond = (),
    gamma_negative: float = 1.0,
    compose: Sequence[tuple[Cond, float]] = (),
    weak: Model | None = None,
    measured: Measured | None = None,
    config: SamplerConfig = DEFAULT,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 64,
    devices: Sequence[Device] | None = None,
    progress: bool = False,
) -> Samples:
    """Draws samples of the guided flow.

    Sample i depends only on (seed, i) and its own condition, up to rounding: with another ``batch_size``, or on other
    devices, about one value of an image in 10,000 differs, by 1 of 255.

    Args:
      model: from ``load``.
      cond: the same for all samples: a prompt "hat=red", a label, or a dict {"hat": value}. One for each sample: a list
        of these, arrays ``(num, ...)`` in the dict, an array of labels, or a Condition of ``num`` examples.
      num: number of samples; by default one for each condition or measured example, or 64.
      gamma: guidance scale γ, one number or ``(num,)``: 0 unconditional, 1 conditional, more is guided. By default 2,
        or 1 for a model that nothing can guide.
      negative: what to move away from: one condition in any of these forms (a string is one prompt, an array has one
        label for each sample), or a list of several, which all apply to all samples.
      gamma_negative: their weight γ_n; not used if ``config.replace_null`` puts a negative condition in ∅'s place.
      compose: further conditions, each with its weight: u_∅ + γ[(u_c − u_∅) + Σ w_i(u_i − u_∅)].
      weak: the weaker model that guidance "autoguidance" moves away from, trained on the same data.
      measured: what was measured of the samples, by ``guidance.with_measurement``: ``Inpaint(y)``, ``Upsample(y)``,
        ``Deblur(y, sigma)`` or ``LinearMap(y, function)``. The solver is ab2 then, unless given: heun and rk4 evaluate
        the velocity at t = 1, and miss a y without noise by the error of a step.
      config: how to guide and integrate.
      seed: of the noise.
      first: number of the first sample, to draw a part of many: the samples are those from ``first`` on.
      batch_size: samples at a time, over all devices; affects memory and speed, and samples only by rounding.
      devices: where to compute; by default all, those of all processes, which must then make this call together.
      progress: show a progress bar.

    Raises:
      UserError: for settings that cannot be, before anything is computed, and for samples that are not finite.
    """
    config = resolve_defaults(config, model, measured is not None)
    default = 64
    if measured is not None:
        measured = read_measured(measured, model.info)
        default = len(measured.y) if len(measured.y) > 1 else default
    num = sample_count(cond, num, default, model.info.fields)
    check_counts(seed, num=num, batch_size=batch_size)
    if config.sampler == "fkc":
        raise UserError("sampler 'fkc' draws particles of a law together: call sample_particles")
    asked = request(model, cond, num, gamma, negative, gamma_negative, compose, measured)
    check(model, asked, config, weak)

    over = in_a_row(devices)
    parts = batches(asked, num, batch_size, seed, over, progress=progress, first=first)
    x, cost = in_batches(model, weak, config, over, parts)
    x = model.output(x, asked.c)
    return Samples(asked.measured.kept(x) if isinstance(asked.measured, Inpaint) else x, cost)


@checked
def sample_particles(
    model: Model,
    cond: Cond = "",
    *,
    num: int | None = None,
    gamma: float | np.ndarray | None = None,
    negative: Cond = (),
    gamma_negative: float = 1.0,
    compose: Sequence[tuple[Cond, float]] = (),
    config: SamplerConfig = PARTICLES,
    seed: int = 0,
    batch_size: int = 64,
    devices: Sequence[Device] | None = None,
    progress: bool = False,
) -> ParticleSamples:
    """Draws ``config.particles`` weighted particles of each of ``num`` laws p(x)^(1−γ)·p(x|c)^γ.

    A negative condition multiplies by (p(x|d)/p(x))^(−γ_n), or takes the place of p(x) with ``config.replace_null``; a
    further one multiplies by (p(x|c_i)/p(x))^(γ·w_i). A law depends only on (seed, its number) and its own conditions,
    up to rounding.

    Args:
      model: from ``load``.
      cond: for all laws or one each, in any of the forms that ``sample`` takes.
      num: number of laws; by default one for each condition, or 1.
      gamma: γ, one number or ``(num,)``; default as in ``sample``.
      negative: as in ``sample``, for each law.
      gamma_negative: as in ``sample``.
      compose: as in ``sample``.
      config: of the sampler "fkc".
      seed: of the noise.
      batch_size: particles at a time, over all devices, but never less than one law a device.
      devices: where to compute; by default all, as in ``sample``. The particles of one law stay together on one.
      progress: show a progress bar.

    Raises:
      UserError: for settings that cannot be, before anything is computed, and for particles that are not finite.
    """
    config = resolve_defaults(config, model)
    num = sample_count(cond, num, 1, model.info.fields)
    check_counts(seed, num=num, batch_size=batch_size)
    if config.sampler != "fkc":
        raise UserError(f"sample_particles is for the sampler 'fkc'; got {config.sampler!r}: call sample")
    asked = request(model, cond, num, gamma, negative, gamma_negative, compose)
    check(model, asked, config)

    over = in_a_row(devices)
    program = _program(functions_of(model), config, over.mesh, False)
    params, drawn, size = processes.put(model.params, over.whole), [], max(1, batch_size // config.particles)
    for kept, keys, part in batches(asked, num, size, seed, over, progress=progress, samples_each=config.particles):
        particles = program((params, None), keys, part)
        if not all(bool(jnp.isfinite(a).all()) for a in (particles.x, particles.log_weights)):
            raise UserError(
                "particles or their weights are not finite: at this gamma there may be no such law (γ < 0, or a "
                "negative condition narrower than the other); lower gamma, gather weights until t = 0.95 only, take "
                "more steps, or train longer"
            )
        drawn.append(jax.tree.map(lambda a, kept=kept: processes.gather(a)[:kept], particles))
    p = jax.tree.map(lambda *leaves: np.concatenate(leaves), *drawn)
    x, cost = model.output(p.x, asked.c), evaluations(config, asked)
    return ParticleSamples(x, p.log_weights, p.ess, p.ancestors, p.log_z, cost)


@checked
def sample_product(
    model: Model,
    conds: Sequence[Cond],
    num: int,
    *,
    config: SamplerConfig = PRODUCT,
    seed: int = 0,
    devices: Sequence[Device] | None = None,
) -> np.ndarray:
    """Returns samples ``(num, *D)`` of p(x)^(1−n)·Π p(x|c_i), the law of x given n independent observations of it.

    It draws at least ``config.particles`` weighted particles and resamples them by weight, so some samples are equal.
    The further the conditions together are from each alone, the more steps and particles it takes.

    Args:
      model: of a network that also learned p(x), by ``drop_rate``.
      conds: n ≥ 1 conditions, each in any form of one for all samples that ``sample`` takes.
      num: number of samples.
      config: of the sampler "fkc".
      seed: of the noise.
      devices: one of them computes, by default the first.

    Raises:
      UserError: as ``sample_particles``.
    """
    check_counts(seed, num=num)
    config = config._replace(particles=max(num, config.particles))
    first, *rest = conds
    compose = [(cond, 1.0) for cond in rest]
    devices = (devices or jax.devices())[:1]  # particles of one law stay together
    found = sample_particles(model, first, num=1, gamma=1.0, compose=compose, config=config, seed=seed, devices=devices)
    return resample_equal(found, seed)[np.random.default_rng(seed).permutation(config.particles)[:num]]


def drawing(functions: Functions, config: SamplerConfig, states: bool = False) -> Draw:
    """Returns the function (params and weaker params, keys, request) -> what is drawn; not jitted.

    It gives samples, statuses and evaluations, each ``(B, ...)``; for the sampler "fkc", ``tilted.Particles``. With
    ``states``, which needs a grid, each sample is its states at all nodes.
    """

    def draw(params: PyTree, keys: PRNGKey, asked: SampleRequest) -> PyTree:
        own, weak_params = params
        velocity, used = _velocity(functions, own, config), config
        if config.sampler == "fkc":
            return draw_particles(velocity, functions.path, functions.examples.model_shape, config, keys, asked)
        if config.solver == DDPM:  # guidance leaves the variances alone
            used = config._replace(channels=config.channels or functions.examples.model_shape[-1])
        if functions.gamma_conditioned:
            guided, rules = gamma_conditioned_velocity(velocity, asked)
        else:
            weak = weak_velocity(functions.network, own, functions.weak, weak_params, config.perturbation)
            own_keys, fields = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 2), dict(functions.fields)
            guided, rules = guided_velocity(velocity, functions.path, used, asked, weak, own_keys, fields)
        guided = measured_velocity(guided, functions.path, functions.examples, config, asked.measured)
        x = jax.vmap(lambda key: jax.random.normal(key, functions.examples.model_shape))(keys)
        if config.solver == DDPM:
            x = jnp.concatenate([x, jnp.zeros_like(x)], axis=-1)
        if config.solver in ADAPTIVE:
            x, status, cost = _adaptive(guided, rules, x, config)
        else:
            x, status, cost = _on_a_grid(guided, rules, x, functions, config, keys, states=states)
        if config.solver == DDPM:
            x = x[..., : x.shape[-1] // 2]
        return x, jnp.broadcast_to(status, x.shape[:1]), jnp.broadcast_to(cost, x.shape[:1])

    return draw


def _velocity(functions: Functions, params: PyTree, config: SamplerConfig) -> CondVelocity:
    """Returns the velocity of the network or, for the solver "ddpm", velocity and variances of x beside zeros."""
    ancestral = functions.network.ancestral
    if config.solver != DDPM or ancestral is None:
        return partial(functions.network.velocity, params)

    def both(t: Array, x: Array, c: Condition) -> Array:
        return ancestral.velocity(params, t, x[..., : x.shape[-1] // 2], c)

    return both


def in_batches(
    model: Model,
    weak: Model | None,
    config: SamplerConfig,
    over: Devices,
    parts: Iterator[tuple[int, PyTree, SampleRequest]],
    *,
    states: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the network draws in all batches, and the evaluations that each sample cost."""
    program = _program(functions_of(model, weak), config, over.mesh, states)
    params = processes.put((model.params, None if weak is None else weak.params), over.whole)
    drawn, cost = [], []
    for kept, keys, part in parts:
        x, status, cost_each = (processes.gather(a) for a in program(params, keys, part))
        _check_drawn(x, status, config)
        drawn.append(x[:kept])
        cost.append(cost_each[:kept])
    return np.concatenate(drawn), np.concatenate(cost)


def _adaptive(velocity: Any, rules: guidance.Guidance, x: Array, config: SamplerConfig) -> tuple[Array, Array, Array]:
    edges = [t for t in config.interval or () if 0 < t < 1]
    ts, relative = jnp.array([0.0, *edges, 1.0]), config.tolerance
    absolute = relative if config.absolute_tolerance is None else config.absolute_tolerance
    pair = solvers.EMBEDDED_TABLEAUX[str(config.solver)]
    s = solvers.solve_adaptive(velocity, x, ts, rtol=relative, atol=absolute, tableau=pair, per_sample=True)
    middle = (ts[:-1] + ts[1:]) / 2
    cost = jnp.sum(s.evaluations * jax.vmap(partial(guidance.evaluations_at, rules))(middle))
    return s.x, s.status, cost


def _on_a_grid(
    velocity: Any,
    rules: guidance.Guidance,
    x: Array,
    functions: Functions,
    config: SamplerConfig,
    keys: PRNGKey,
    *,
    states: bool,
) -> tuple[Array, Array, Array]:
    noise_keys, ts = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 1), nodes(config)
    if config.solver == DDPM and functions.network.ancestral is not None:
        solver = solvers.ddpm(functions.path, noise_keys, functions.network.ancestral.chain)
    else:
        solver = SAMPLERS[config.sampler].solver(config, functions.path, noise_keys)
    cost = guidance.network_evaluations(solver, rules, ts, config.reuse)
    x = solvers.solve(solver, velocity, x, ts, trajectory=states)
    return jnp.swapaxes(x, 0, 1) if states else x, jnp.int32(solvers.Status.DONE), cost


@lru_cache(maxsize=32)
def _program(functions: Functions, config: SamplerConfig, mesh: jax.sharding.Mesh, states: bool) -> Draw:
    """The jitted sampler. Each device draws whole samples or, for particles, whole laws."""
    return spread(drawing(functions, config, states), mesh)


def _check_drawn(x: np.ndarray, status: np.ndarray, config: SamplerConfig) -> None:
    if np.any(status == solvers.Status.NOT_FINITE):
        raise UserError(f"{config.solver} met a velocity that is not finite: lower gamma, or train longer")
    if np.any(status != solvers.Status.DONE):
        raise UserError(
            f"{config.solver} did not reach tolerance {config.tolerance:g}: raise the tolerance or lower gamma"
        )
    if not np.isfinite(x).all():
        raise UserError("the samples are not finite: lower gamma, take more steps, or train longer")
