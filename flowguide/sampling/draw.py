"""Samples of the guided flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from flowguide import guidance, paths, processes, solvers, tilted
from flowguide.data import to_image
from flowguide.errors import UserError
from flowguide.networks import Network
from flowguide.sampling.checks import check, resolve_defaults
from flowguide.sampling.conditions import Cond, number
from flowguide.sampling.config import ADAPTIVE, DEFAULT, STOCHASTIC, SamplerConfig, SampleRequest, ask, guided, nodes
from flowguide.sampling.run import Run
from flowguide.typing import Array, Device, PRNGKey, PyTree


class Layout(NamedTuple):
    """Devices in a row, and arrays cut among them or whole on each."""

    mesh: jax.sharding.Mesh
    split: NamedSharding
    whole: NamedSharding


def layout(devices: Sequence[Device] | None) -> Layout:
    """All devices, those of other processes too, or those given."""
    mesh = jax.sharding.Mesh(np.asarray(devices or jax.devices()), ("data",))
    return Layout(mesh, NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec()))


def shares(
    request: SampleRequest, num: int, size: int, seed: int, over: Layout, progress: bool, each: int = 1
) -> Iterator[tuple[int, PRNGKey, SampleRequest]]:
    """``num`` draws in batches: how many of a batch count, a key for each draw, and what it is asked to be.

    Every batch has the same size, so that there is one program; the last one is filled up with repetitions. ``each`` is
    how many samples a draw makes, for the progress bar.
    """
    devices = over.mesh.size
    size = -(-min(size, num) // devices) * devices
    root = np.asarray(jax.random.key_data(jax.random.key(seed)))
    bar = tqdm(total=num * each, disable=not progress, unit="sample", dynamic_ncols=True)
    with bar:
        for first in range(0, num, size):
            index = np.minimum(np.arange(first, first + size), num - 1)
            cut = jax.tree.map(lambda a, index=index: np.asarray(a)[index], request)
            kept = min(size, num - first)
            yield kept, _keys(root, processes.put(index, over.split)), processes.put(cut, over.split)
            bar.update(kept * each)


@jax.jit
def _keys(root: Array, index: Array) -> PRNGKey:
    return jax.vmap(partial(jax.random.fold_in, jax.random.wrap_key_data(root)))(index)


def spread(draw: Callable, mesh: jax.sharding.Mesh) -> Callable:
    """A jitted function of (params, keys, request, weights): each device draws its share, without a word to others."""
    each, same = PartitionSpec("data"), PartitionSpec()
    return jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=(same, each, each, same), out_specs=each, check_vma=False))


class Samples(NamedTuple):
    """What was drawn.

    Attributes:
      x: uint8 images or float32 points ``(num, *D)``.
      evaluations: int ``(num,)``, network evaluations that each sample cost.
    """

    x: np.ndarray
    evaluations: np.ndarray


def sample(
    run: Run,
    cond: Cond = "",
    *,
    num: int | None = None,
    gamma: float | np.ndarray = 1.0,
    negative: Cond = (),
    gamma_negative: float = 1.0,
    compose: Sequence[tuple[Cond, float]] = (),
    weak: Run | None = None,
    method: SamplerConfig = DEFAULT,
    seed: int = 0,
    batch_size: int = 64,
    devices: Sequence[Device] | None = None,
    progress: bool = False,
) -> Samples:
    """Draws samples of the guided flow.

    Sample i depends on (seed, i) and its own condition alone, up to rounding: with another ``batch_size``, or on other
    devices, about one value of an image in 10,000 differs, by 1 of 255.

    Args:
      run: from ``load``.
      cond: for all samples: a prompt "hat=red", a label, or a dict {"hat": value}. One a sample: a list of such, arrays
        ``(num, ...)`` in the dict, an array of labels, or a Condition of ``num`` examples.
      num: how many; by default one a prompt, or 64.
      gamma: guidance scale γ, for all or ``(num,)``: 0 unconditional, 1 conditional, more is guided.
      negative: what to avoid: one condition in any of these forms (a string is one prompt, an array has one label a
        sample), or a list of several, each avoided in all samples.
      gamma_negative: their weight γ_n; not read where ``method.replace_null`` puts a negative condition in ∅'s place.
      compose: further conditions, each with its weight: u_∅ + γ[(u_c − u_∅) + Σ w_i(u_i − u_∅)].
      weak: the worse run that guidance "autoguidance" goes away from, trained on the same data.
      method: how to guide and integrate.
      seed: of the noise.
      batch_size: samples at a time, over all devices; changes memory and speed, and the samples only by rounding.
      devices: where to compute; by default all, of several processes those of all, which must call this together.
      progress: show a progress bar.

    Raises:
      UserError: for settings that cannot be, before anything is computed, and where the samples are not finite.
    """
    method = resolve_defaults(method)
    num = number(cond, num, 64, run.info.fields)
    if num < 1 or batch_size < 1:
        raise UserError(f"num and batch_size must be at least 1; got {num} and {batch_size}")
    if method.sampler == "fkc":
        raise UserError("sampler 'fkc' draws particles of a law together: call sample_particles")
    request, weights = ask(run, cond, num, gamma, negative, gamma_negative, compose)
    check(run, request, weights, method, weak)

    over = layout(devices)
    gamma_conditioned = run.gammas is not None
    program = _program(
        run.network, weak and weak.network, gamma_conditioned, run.path, run.info.shape, method, over.mesh
    )
    params = processes.put((run.params, weak and weak.params), over.whole)

    drawn, cost = [], []
    for kept, keys, share in shares(request, num, batch_size, seed, over, progress):
        x, status, cost_each = program(params, keys, share, weights)
        x, status, cost_each = (processes.gather(a) for a in (x, status, cost_each))
        if np.any(status == solvers.Status.NOT_FINITE):
            raise UserError(f"{method.solver} met a velocity that is not finite: lower gamma, or train longer")
        if np.any(status != solvers.Status.DONE):
            raise UserError(
                f"{method.solver} did not reach tolerance {method.tolerance:g}: raise the tolerance or lower gamma"
            )
        if not np.isfinite(x).all():
            raise UserError("the samples are not finite: lower gamma, take more steps, or train longer")
        drawn.append(to_image(x[:kept]) if run.info.kind == "image" else x[:kept])
        cost.append(cost_each[:kept])
    return Samples(np.concatenate(drawn), np.concatenate(cost))


def drawing(
    network: Network,
    weak: Network | None,
    gamma_conditioned: bool,
    path: str,
    shape: tuple[int, ...],
    method: SamplerConfig,
) -> Callable[[PyTree, PRNGKey, SampleRequest, Array], tuple[Array, Array, Array]]:
    """The sampler (params, keys, request, weights) -> samples, statuses and evaluations ``(B,)``; not jitted."""

    def draw(params: PyTree, keys: PRNGKey, request: SampleRequest, weights: Array) -> tuple[Array, Array, Array]:
        velocity, rules = guided(network, weak, gamma_conditioned, path, method, params, request, weights)
        x = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        if method.solver in ADAPTIVE:
            edges = [t for t in method.interval or () if 0 < t < 1]
            ts = jnp.array([0.0, *edges, 1.0])
            tolerance = method.tolerance
            pair = solvers.EMBEDDED_TABLEAUX[str(method.solver)]
            s = solvers.solve_adaptive(velocity, x, ts, rtol=tolerance, atol=tolerance, tableau=pair, per_sample=True)
            middle = (ts[:-1] + ts[1:]) / 2
            cost = jnp.sum(s.evaluations * jax.vmap(partial(guidance.evaluations_at, rules))(middle))
            x, status = s.x, s.status
        else:
            own, noise_keys = paths.PATHS[path](), jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 1)
            if method.sampler == "pc":
                predictor = solvers.SOLVERS[str(method.solver)](own)
                solver = tilted.predictor_corrector(own, noise_keys, method.corrections, predictor=predictor)
            elif method.solver in STOCHASTIC:
                solver = solvers.STOCHASTIC[method.solver](own, noise_keys, float(method.eta or 0.0))
            else:
                solver = solvers.SOLVERS[str(method.solver)](own)
            ts = nodes(method)
            cost = guidance.network_evaluations(solver, rules, ts, method.reuse)
            x, status = solvers.solve(solver, velocity, x, ts), jnp.int32(solvers.Status.DONE)
        return x, jnp.broadcast_to(status, x.shape[:1]), jnp.broadcast_to(cost, x.shape[:1])

    return draw


@lru_cache(maxsize=32)
def _program(
    network: Network,
    weak: Network | None,
    gamma_conditioned: bool,
    path: str,
    shape: tuple[int, ...],
    method: SamplerConfig,
    mesh: jax.sharding.Mesh,
):
    """The jitted sampler."""
    return spread(drawing(network, weak, gamma_conditioned, path, shape, method), mesh)
