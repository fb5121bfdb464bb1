"""Log-densities under a model, in the units of the data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from flowguide import likelihood, processes
from flowguide.errors import UserError
from flowguide.guidance.methods import RANDOM
from flowguide.kinds import checked
from flowguide.model import Model
from flowguide.sampling.batches import Draw, batches, in_a_row, spread
from flowguide.sampling.checks import check, check_counts, resolve_defaults
from flowguide.sampling.config import DEFAULT, SamplerConfig
from flowguide.sampling.draw import Functions, functions_of
from flowguide.sampling.guided import gamma_conditioned_velocity, guided_velocity
from flowguide.sampling.request import SampleRequest, request
from flowguide.schema import Known, Records, Vectors
from flowguide.schema.arrays import as_array
from flowguide.schema.conditions import Cond
from flowguide.times import grid
from flowguide.typing import Array, Device, PRNGKey, PyTree

EXACT = 64  # dimensions up to which the divergence is exact


@checked
def log_prob(
    model: Model,
    x: Any,
    cond: Cond = "",
    *,
    gamma: float | np.ndarray = 1.0,
    negative: Cond = (),
    gamma_negative: float = 1.0,
    config: SamplerConfig = DEFAULT,
    steps: int = 50,
    probes: int | None = None,
    seed: int = 0,
    batch_size: int = 1024,
    devices: Sequence[Device] | None = None,
) -> np.ndarray:
    """Returns the log-density of each x under the flow of the model, in nats and in the units of the data.

    It integrates the divergence along the flow (see ``likelihood``) by RK4. With γ other than 1 it is the density of
    the guided sampler, which is not p(x)^(1−γ)·p(x|c)^γ.

    Args:
      model: of arrays of floats. Pixels are discrete: for images see ``likelihood.bits_per_dimension``.
      x: ``(N, *D)``.
      cond: for all or one each, in any of the forms that ``sample`` takes.
      gamma: guidance scale γ, one number or ``(N,)``.
      negative: as in ``sample``.
      gamma_negative: as in ``sample``.
      config: how to guide; its solver and steps are not used.
      steps: of the solve.
      probes: None computes the divergence exactly, for up to 64 dimensions; a number estimates it with so many random
        vectors an example.
      seed: of those vectors.
      batch_size: examples at a time, over all devices.
      devices: where to compute; by default all, as in ``sample``.

    Returns:
      float32 ``(N,)``.

    Raises:
      UserError: for a model of images or classes, another shape, or more dimensions than can be exact without
        ``probes``.
    """
    info = model.info
    if isinstance(info.examples, Records):
        discrete = ",".join(info.examples.discrete)
        raise UserError(
            f"log_prob is of arrays of floats, and {info.name} has classes in its examples, which have no density: "
            f"train with --fields={discrete:.100} for the log-density of the numbers given them"
        )
    if not isinstance(info.examples, Vectors):
        raise UserError(f"log_prob is of arrays of floats, and {info.name} has images, which are discrete")
    check_counts(seed, batch_size=batch_size, steps=steps, probes=1 if probes is None else probes)
    x = as_array("x", x)
    if x.dtype.kind not in "biuf" or x.shape[1:] != info.shape or x.ndim == 0 or not len(x):
        expected = f"numbers (N, {', '.join(map(str, info.shape))})"
        raise UserError(f"got x of dtype {x.dtype} and shape {x.shape}, expected {expected}")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
        x = x.astype(np.float32)
    if (bad := ~np.isfinite(x).reshape(len(x), -1).all(axis=1)).any():
        raise UserError(
            f"got x with NaN, infinity or numbers too large for float32 in row {int(np.argmax(bad))}: drop it"
        )
    size = int(np.prod(info.shape))
    if probes is None and size > EXACT:
        raise UserError(f"an exact log-density takes {size} derivatives a step: set probes=8, say, to estimate it")
    config = resolve_defaults(config._replace(solver=None, sampler="flow"), model)
    if config.guidance in RANDOM:
        raise UserError(
            f"guidance {config.guidance!r} draws random numbers at every t, so its flow has no density: use another one"
        )
    asked = request(model, cond, len(x), gamma, negative, gamma_negative)
    check(model, asked, config)
    if any(isinstance(field, Known) and np.any(asked.c.present[name]) for name, field in info.fields.items()):
        raise UserError(
            "given a part of x, the density of x is infinite where x agrees with it and 0 elsewhere: leave the part out"
        )
    over = in_a_row(devices)
    program = _program(functions_of(model), config, steps, probes, over.mesh)
    params = processes.put(model.params, over.whole)
    found = []
    for kept, own, part in batches(asked, len(x), batch_size, seed, over, x=np.asarray(info.examples.to_model(x))):
        found.append(processes.gather(program(params, own, part))[:kept])
    values = np.concatenate(found) - info.examples.log_volume
    if not np.isfinite(values).all():
        raise UserError(
            f"{int((~np.isfinite(values)).sum())} of {len(values)} log-densities are not finite: take more steps"
        )
    return values


@lru_cache(maxsize=32)
def _program(
    functions: Functions, config: SamplerConfig, steps: int, probes: int | None, mesh: jax.sharding.Mesh
) -> Draw:
    def program(params: PyTree, own: tuple[PRNGKey, Array], asked: SampleRequest) -> Array:
        keys, x = own
        velocity = partial(functions.network.velocity, params)
        if functions.gamma_conditioned:
            guided, _ = gamma_conditioned_velocity(velocity, asked)
        else:
            guided, _ = guided_velocity(velocity, functions.path, config, asked, None)
        split = likelihood.exact_divergence()
        if probes is not None:
            split = likelihood.hutchinson(keys, functions.examples.model_shape, probes)
        return likelihood.log_density(guided, x, divergence=split, ts=grid(steps)).log_density

    return spread(program, mesh)
