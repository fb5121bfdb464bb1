"""Sampling: a trained network, a condition and a guidance scale become samples.

```python
from flowguide.sampling import load, sample

run = load("runs/avatars")
faces = sample(run, "hat=red,glasses=none", num=16, gamma=3.0, negative=["beard=yes"], seed=0)
```

Sample i depends on (seed, i) and its own condition alone, not on the batch it is drawn in or the number of devices.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tqdm import tqdm

from flowguide import build, checkpoint, guidance, paths, prompts, solvers, times
from flowguide.condition import Condition, Label, Vector, bind, given
from flowguide.condition import null as nothing
from flowguide.data import DataInfo, info_from_json, to_image
from flowguide.errors import UserError
from flowguide.networks import Network
from flowguide.networks.perturbation import Perturbation
from flowguide.targets import with_gamma
from flowguide.typing import Array, Device, PRNGKey, PyTree, Schedule, Velocity

ADAPTIVE = tuple(sorted(solvers.PAIRS))
STOCHASTIC = tuple(sorted(solvers.STOCHASTIC))
SOLVER_NAMES = (*sorted(solvers.SOLVERS), *STOCHASTIC, *ADAPTIVE)


class Run(NamedTuple):
    """What sampling needs of a training run.

    Attributes:
      info: what the network was trained on.
      network: its functions.
      params: averaged parameters.
      step: of training, at which they were saved.
      has_null: whether conditions were dropped in training, so that ∅ means something.
      path: name of the path it was trained on (``paths.PATHS``).
      gammas: the range of γ that the network was taught, and is told; None for a plain one, guided by references.
      guided: the network is a guided velocity already, of one γ (``targets.model_guidance``).
    """

    info: DataInfo
    network: Network
    params: PyTree
    step: int
    has_null: bool
    path: str
    gammas: tuple[float, float] | None = None
    guided: bool = False


class Null(NamedTuple):
    """Whether a network knows ∅.

    Attributes:
      untouched: fields whose null token is what it was before training.
      gap: ‖u_c − u_∅‖/‖u_c‖ half-way, over made-up conditions with every field present.
    """

    untouched: tuple[str, ...]
    gap: float


class Samples(NamedTuple):
    """What was drawn.

    Attributes:
      x: uint8 images or float32 points ``(num, *D)``.
      evaluations: int ``(num,)``, network evaluations that each sample cost.
    """

    x: np.ndarray
    evaluations: np.ndarray


class Method(NamedTuple):
    """How the guided flow is integrated; hashable, one compiled program each.

    Attributes:
      solver: one of ``SOLVER_NAMES``; those of ``ADAPTIVE`` choose their own steps.
      steps: of a grid given by name; not read by adaptive solvers.
      grid: of deterministic and stochastic solvers: the name of a warp (``times.WARPS``), or the nodes themselves,
        increasing from 0 to 1, whose number then says the steps. ``fit_grid`` finds good ones.
      guidance: one of ``guidance.methods.METHODS``.
      settings: of that method, pairs of name and number.
      schedule: of γ over time, one of ``guidance.SCHEDULES``.
      interval: the times between which guidance is applied, or None for all.
      replace_null: the negative condition takes the place of ∅.
      rescale: strength φ of the rescaling of Lin et al. 2024.
      perturbation: of the network that guidance "perturbed" goes away from.
      reuse: steps for which the references' differences are kept, see ``guidance.guide``.
      tolerance: relative and absolute, of adaptive solvers.
      eta: strength η of the noise of stochastic solvers: 0 none, 1 memoryless.
      passes: "together" or "apart", see ``guidance.guide``.
    """

    solver: str = "heun"
    steps: int = 25
    grid: str | tuple[float, ...] = "uniform"
    guidance: str = "cfg"
    settings: tuple[tuple[str, float], ...] = ()
    schedule: str = "constant"
    interval: tuple[float, float] | None = None
    replace_null: bool = False
    rescale: float = 0.0
    perturbation: Perturbation = Perturbation()
    reuse: int = 1
    tolerance: float = 1e-4
    eta: float = 1.0
    passes: guidance.Passes = "together"


DEFAULT = Method()


def load(workdir: str | Path, step: int | None = None) -> Run:
    """The run in ``workdir``, with the averaged parameters of the newest checkpoint or of ``step``.

    Raises:
      UserError: if there is no run, or no checkpoint, or it cannot be read, or it is a classifier.
    """
    workdir = Path(workdir)
    config = build.read_config(workdir)
    if config.task != "flow":
        raise UserError(f"{workdir} holds a {config.task}, which draws nothing: give a run of a velocity")
    try:
        info = info_from_json(json.loads((workdir / "info.json").read_text()))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"{workdir / 'info.json'} cannot be read ({error}): train.py writes it; run it again"
        ) from error
    network = build.network(config, info)
    like = jax.eval_shape(network.init, jax.random.key(0))
    params, step = checkpoint.restore_ema(workdir, like, step)
    guided = config.target.name == "model_guidance"
    return Run(info, network, params, step, config.drop_rate > 0, config.path, build.target(config).gammas, guided)


def check_null(run: Run, seed: int) -> Null:
    """Looks whether the null tokens of a run were trained, and whether they make a difference.

    Args:
      run: from ``load``.
      seed: of the training run, from which its first parameters follow.
    """
    init_key, _, _ = jax.random.split(jax.random.key(seed), 3)
    first = jax.tree_util.tree_flatten_with_path(run.network.init(init_key))[0]
    untouched = []
    for (place, before), now in zip(first, jax.tree.leaves(run.params), strict=True):
        names = [str(key.key) for key in place if isinstance(key, jax.tree_util.DictKey)]
        if names[-1] == "null" and np.array_equal(before, now):
            untouched.append(names[-2])
    keys = jax.random.split(jax.random.key(0), 1 + len(run.info.fields))
    value = {}
    for key, (name, field) in zip(keys[1:], run.info.fields.items(), strict=True):
        blank = prompts.blank(field)
        if isinstance(field, Vector):
            value[name] = jax.random.normal(key, (16, field.size))
        else:
            count = len(field.values if isinstance(field, Label) else field.words)
            value[name] = jax.random.randint(key, (16, *blank.shape), 0, count)
    x, c = jax.random.normal(keys[0], (16, *run.info.shape)), given(value)
    u, null = (bind(partial(run.network.velocity, run.params), each)(jnp.float32(0.5), x) for each in (c, nothing(c)))
    return Null(tuple(untouched), float(jnp.linalg.norm(u - null) / jnp.linalg.norm(u)))


def sample(
    run: Run,
    cond: str | Sequence[str] | Condition = "",
    *,
    num: int | None = None,
    gamma: float | np.ndarray = 1.0,
    negative: Sequence[str | Condition] = (),
    gamma_negative: float = 1.0,
    compose: Sequence[tuple[str | Condition, float]] = (),
    weak: Run | None = None,
    method: Method = DEFAULT,
    seed: int = 0,
    batch_size: int = 64,
    devices: Sequence[Device] | None = None,
    progress: bool = False,
) -> Samples:
    """Draws samples of the guided flow.

    Args:
      run: from ``load``.
      cond: a prompt for all samples, one prompt a sample, or a ready Condition of ``num`` examples.
      num: how many; by default one a prompt, or 64.
      gamma: guidance scale γ, for all or ``(num,)``: 0 unconditional, 1 conditional, more is guided.
      negative: conditions to avoid, each a prompt for all or a Condition of ``num`` examples.
      gamma_negative: their weight γ_n; not read where ``method.replace_null`` puts a negative condition in ∅'s place.
      compose: further conditions, each with its weight: u_∅ + γ[(u_c − u_∅) + Σ w_i(u_i − u_∅)].
      weak: the worse run that guidance "autoguidance" goes away from, trained on the same data.
      method: how to guide and integrate.
      seed: of the noise.
      batch_size: samples at a time, over all devices; changes memory and speed, not the samples.
      devices: where to compute; by default all local ones.
      progress: show a progress bar.

    Raises:
      UserError: for settings that cannot be, before anything is computed, and where the samples are not finite.
    """
    fields = run.info.fields
    if num is None:
        num = 64 if isinstance(cond, str) else len(cond) if not isinstance(cond, Condition) else _batch(cond)
    if num < 1 or batch_size < 1:
        raise UserError(f"num and batch_size must be at least 1; got {num} and {batch_size}")
    c = _condition(cond, fields, num)
    wanted = _Wanted(
        c,
        tuple(_condition(d, fields, num) for d in negative),
        tuple(_condition(d, fields, num) for d, _ in compose),
        np.broadcast_to(np.asarray(gamma, np.float32), (num,)),
    )
    weights = np.array([gamma_negative, *(w for _, w in compose)], np.float32)
    _check(run, wanted, weights, method, weak)

    devices = tuple(devices or jax.local_devices())
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    told = run.gammas is not None
    program = _program(run.network, weak and weak.network, told, run.path, run.info.shape, method, mesh)
    params = jax.device_put((run.params, weak and weak.params), whole)

    def share(tree: PyTree, index: np.ndarray) -> PyTree:
        return jax.tree.map(lambda a: jax.device_put(np.asarray(a)[index], split), tree)

    # Every batch has the same size, so that there is one program; the last one is filled up with repetitions.
    size = -(-min(batch_size, num) // len(devices)) * len(devices)
    root = jax.random.key(seed)
    drawn, cost = [], []
    for first in tqdm(range(0, num, size), disable=not progress, unit_scale=size, unit="sample", dynamic_ncols=True):
        index = np.minimum(np.arange(first, first + size), num - 1)
        keys = jax.device_put(jax.vmap(partial(jax.random.fold_in, root))(jnp.asarray(index)), split)
        x, status, cost_each = program(params, keys, share(wanted, index), weights)
        if np.any(np.asarray(status) == solvers.Status.NOT_FINITE):
            raise UserError(f"{method.solver} met a velocity that is not finite: lower gamma, or train longer")
        if np.any(np.asarray(status) != solvers.Status.DONE):
            raise UserError(
                f"{method.solver} did not reach tolerance {method.tolerance:g}: raise the tolerance or lower gamma"
            )
        kept = min(size, num - first)
        drawn.append(np.asarray(x)[:kept])
        cost.append(np.asarray(cost_each)[:kept])
    x = np.concatenate(drawn)
    if not np.isfinite(x).all():
        raise UserError("the samples are not finite: lower gamma, take more steps, or train longer")
    return Samples(to_image(x) if run.info.kind == "image" else x, np.concatenate(cost))


def fit_grid(
    run: Run,
    cond: Sequence[str] | Condition,
    *,
    gamma: float | np.ndarray = 1.0,
    negative: Sequence[str | Condition] = (),
    gamma_negative: float = 1.0,
    method: Method = DEFAULT,
    seed: int = 0,
    iterations: int = 30,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[float, ...]:
    """The grid of ``method.steps`` steps on which these guided samples come closest to the exact flow.

    ``solvers.fit_grid`` with pilot noise of its own, on one device; the nodes are for ``Method.grid``.

    Args:
      run: from ``load``.
      cond: the conditions of the pilot samples, one prompt each, of all that the grid is to serve: 64 are enough.
      gamma: guidance scale γ, for all or for each.
      negative: as in ``sample``.
      gamma_negative: as in ``sample``.
      method: how to integrate; its grid is not read.
      seed: of the samples to be drawn; the pilot's noise is other noise.
      iterations: of the fit.
      progress: see ``solvers.fit_grid``.

    Raises:
      UserError: for settings that cannot be, and solvers that no grid can be fitted to.
    """
    if method.solver not in solvers.SOLVERS:
        raise UserError(f"a grid is fitted to {', '.join(sorted(solvers.SOLVERS))}; got the solver {method.solver}")
    num = _batch(cond) if isinstance(cond, Condition) else len(cond)
    c = _condition(cond, run.info.fields, num)
    away = tuple(_condition(d, run.info.fields, num) for d in negative)
    wanted = _Wanted(c, away, (), np.broadcast_to(np.asarray(gamma, np.float32), (num,)))
    weights = np.array([gamma_negative], np.float32)
    _check(run, wanted, weights, method)
    told = run.gammas is not None
    guided, _ = _guided(run.network, None, told, run.path, method, (run.params, None), wanted, weights)
    key = jax.random.fold_in(jax.random.key(seed), 2**31)  # no sample has this number
    noise = jax.random.normal(key, (num, *run.info.shape))
    solver = solvers.SOLVERS[method.solver](paths.PATHS[run.path]())
    try:
        ts = solvers.fit_grid(solver, guided, noise, method.steps, iterations=iterations, progress=progress)
    except (ValueError, TypeError) as error:
        raise UserError(f"no grid could be fitted: {error}") from error
    return tuple(float(t) for t in ts)


def gap(
    run: Run,
    cond: str,
    *,
    num: int = 32,
    gamma: float = 1.0,
    negative: Sequence[str] = (),
    gamma_negative: float = 1.0,
    method: Method = DEFAULT,
    seed: int = 0,
) -> guidance.Gap:
    """How u(x, c) and u(x, ∅) differ along a guided solve, see ``guidance.gap``; arguments as in ``sample``.

    Raises:
      UserError: for settings that cannot be, and solvers that have no steps of their own or no reference to look at.
    """
    if method.solver not in solvers.SOLVERS or run.gammas is not None:
        raise UserError(
            f"the gap is measured along {', '.join(sorted(solvers.SOLVERS))}, of a network that knows ∅; got "
            f"{method.solver}"
        )
    fields = run.info.fields
    c, away = _condition(cond, fields, num), tuple(_condition(d, fields, num) for d in negative)
    wanted = _Wanted(c, away, (), np.full(num, gamma, np.float32))
    weights = np.array([gamma_negative], np.float32)
    _check(run, wanted, weights, method)
    solver = solvers.SOLVERS[method.solver](paths.PATHS[run.path]())

    @jax.jit
    def measured(params: PyTree, x0: Array) -> guidance.Gap:
        guided, _ = _guided(run.network, None, False, run.path, method, (params, None), wanted, weights)
        return guidance.gap(partial(run.network.velocity, params), c, solver, guided, x0, _nodes(method))

    return measured(run.params, jax.random.normal(jax.random.key(seed), (num, *run.info.shape)))


class _Wanted(NamedTuple):
    """What each sample is asked to be; one entry a sample in every leaf."""

    c: Condition
    away: tuple[Condition, ...]
    others: tuple[Condition, ...]
    gamma: np.ndarray


def _guided(
    network: Network,
    weak: Network | None,
    told: bool,
    path: str,
    method: Method,
    params: PyTree,
    wanted: _Wanted,
    weights: Array | np.ndarray,
) -> tuple[Velocity | solvers.StatefulVelocity, guidance.Guidance]:
    """The guided velocity and its guidance; ``weights`` are γ_n and those of the other conditions."""
    own, weak_params = params
    velocity, gamma = partial(network.velocity, own), guidance.SCHEDULES[method.schedule](wanted.gamma)
    if told:  # one pass, and nothing to combine
        alone = guidance.Guidance((), guidance.composed([]), lambda t: jnp.int32(guidance.Terms.CONDITIONAL))
        return bind(velocity, with_gamma(wanted.c, jnp.asarray(wanted.gamma))), alone
    worse = None if weak is None else partial(weak.velocity, weak_params)
    if worse is None and method.perturbation != Perturbation():
        worse = partial(network.perturbed(method.perturbation), own)

    def scheduled(schedule: Schedule, outside: float) -> Schedule:
        return schedule if method.interval is None else guidance.within(schedule, *method.interval, outside)

    asked = guidance.methods.Asked(
        velocity,
        wanted.c,
        scheduled(gamma, 1.0),
        paths.PATHS[path](),
        wanted.away,
        None if method.replace_null else scheduled(guidance.constant(weights[0]), 0.0),
        tuple((d, scheduled(_times(gamma, w), 0.0)) for d, w in zip(wanted.others, weights[1:], strict=True)),
        None if method.solver in ADAPTIVE else _nodes(method),
        worse,
    )
    guiding = guidance.methods.build(method.guidance, asked, method.rescale, **dict(method.settings))
    return guidance.guide(velocity, wanted.c, guiding, method.passes, method.reuse), guiding


def _times(schedule: Schedule, weight: Array | float) -> Schedule:
    return lambda t: weight * schedule(t)


def _nodes(method: Method) -> Array:
    if isinstance(method.grid, str):
        return times.grid(method.steps, times.WARPS[method.grid]())
    return jnp.asarray(method.grid, jnp.float32)


@lru_cache(maxsize=32)
def _program(
    network: Network,
    weak: Network | None,
    told: bool,
    path: str,
    shape: tuple[int, ...],
    method: Method,
    mesh: jax.sharding.Mesh,
):
    """The jitted sampler. Each device integrates its own share, without a word to the others."""

    def draw(params: PyTree, keys: PRNGKey, wanted: _Wanted, weights: Array) -> tuple[Array, Array, Array]:
        guided, rules = _guided(network, weak, told, path, method, params, wanted, weights)
        x = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        if method.solver in ADAPTIVE:
            edges = [t for t in method.interval or () if 0 < t < 1]
            ts = jnp.array([0.0, *edges, 1.0])
            tolerance = method.tolerance
            pair = solvers.PAIRS[method.solver]
            s = solvers.solve_adaptive(guided, x, ts, rtol=tolerance, atol=tolerance, tableau=pair, per_sample=True)
            middle = (ts[:-1] + ts[1:]) / 2
            n = len(rules.references)
            cost = jnp.sum(s.evaluations * jnp.array([1, 1 + n, n])[jax.vmap(rules.terms)(middle)])
            x, status = s.x, s.status
        else:
            if method.solver in STOCHASTIC:
                noise_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 1)
                solver = solvers.STOCHASTIC[method.solver](paths.PATHS[path](), noise_keys, method.eta)
            else:
                solver = solvers.SOLVERS[method.solver](paths.PATHS[path]())
            ts = _nodes(method)
            cost = guidance.network_evaluations(solver, rules, ts, method.reuse)
            x, status = solvers.solve(solver, guided, x, ts), jnp.int32(solvers.Status.DONE)
        return x, jnp.broadcast_to(status, x.shape[:1]), jnp.broadcast_to(cost, x.shape[:1])

    each, same = PartitionSpec("data"), PartitionSpec()
    return jax.jit(
        jax.shard_map(
            draw,
            mesh=mesh,
            in_specs=(same, each, each, same),
            out_specs=each,
            check_vma=False,
        )
    )


def _condition(cond: str | Sequence[str] | Condition, fields: dict, num: int) -> Condition:
    if not isinstance(cond, Condition):
        cond = prompts.condition([cond] * num if isinstance(cond, str) else cond, fields)
    if _batch(cond) != num and fields:
        raise UserError(f"got {_batch(cond)} conditions for {num} samples: give one for all, or one for each")
    return cond


def _batch(c: Condition) -> int:
    return len(jax.tree.leaves(c.present)[0]) if jax.tree.leaves(c.present) else 0


def _check(run: Run, wanted: _Wanted, weights: np.ndarray, method: Method, weak: Run | None = None) -> None:
    gamma, away = wanted.gamma, wanted.away
    if method.solver not in SOLVER_NAMES:
        raise UserError(f"unknown solver {method.solver!r}: there are {', '.join(SOLVER_NAMES)}")
    if isinstance(method.grid, str) and method.grid not in times.WARPS:
        raise UserError(f"unknown grid {method.grid!r}: there are {', '.join(sorted(times.WARPS))}, or give its nodes")
    if not isinstance(method.grid, str):
        nodes = np.asarray(method.grid, np.float32)
        if len(nodes) < 2 or nodes[0] != 0 or nodes[-1] != 1 or not (np.diff(nodes) > 0).all():
            raise UserError(f"the nodes of a grid increase from 0 to 1; got {', '.join(f'{t:g}' for t in nodes)}")
    if method.steps < 1 or method.reuse < 1:
        raise UserError(f"steps and reuse must be at least 1; got {method.steps} and {method.reuse}")
    if not (np.isfinite(gamma).all() and np.isfinite(weights).all()):
        raise UserError(f"guidance scales must be finite; got gamma {gamma}, gamma_negative and weights {weights}")
    if method.schedule not in guidance.SCHEDULES:
        raise UserError(f"unknown schedule {method.schedule!r}: there are {', '.join(sorted(guidance.SCHEDULES))}")
    if not 0 <= method.rescale <= 1:
        raise UserError(f"rescale mixes between 0 and 1; got {method.rescale}")
    if not 0 <= method.eta < np.inf:
        raise UserError(f"eta, the strength of the noise, must be 0 or more; got {method.eta}")
    if method.tolerance <= 0:
        raise UserError(f"the tolerance must be positive; got {method.tolerance}")
    if method.interval is not None and not 0 <= method.interval[0] < method.interval[1] <= 1:
        raise UserError(f"interval needs 0 <= start < stop <= 1; got {method.interval}")
    if method.replace_null and len(away) != 1:
        raise UserError(f"replace_null puts one negative condition in the place of ∅; got {len(away)} of them")
    if weak is not None and (weak.info.shape, weak.info.fields, weak.path) != (
        run.info.shape,
        run.info.fields,
        run.path,
    ):
        raise UserError("the weak run must have been trained on data of the same shape and fields, on the same path")
    if run.gammas is not None:
        low, high = run.gammas
        if not ((gamma >= low) & (gamma <= high)).all():
            raise UserError(f"this network was taught γ from {low:g} to {high:g} and is told it; got {gamma}")
        asked = away or wanted.others or weak, method.guidance, method.rescale, method.interval, method.schedule
        if asked[0] or asked[1:] != ("cfg", 0.0, None, "constant"):
            raise UserError(
                "this network is guided by the γ it is told: negatives, intervals and the like need another"
            )
        return
    if run.guided and (gamma > 1).any():
        raise UserError(f"this network is guided already (target model_guidance): use gamma 1; got {gamma.max():g}")
    if not run.has_null and method.guidance != "autoguidance" and (away or (gamma != 1).any() or not _full(wanted.c)):
        raise UserError(
            "this network was trained without null dropout (drop_rate = 0), so it knows no ∅: give every field, "
            "gamma 1 and no negative, or train with drop_rate > 0"
        )
    if method.guidance == "cfg_pp" and (
        method.solver not in ("ddim", "euler") or (method.solver == "euler" and run.path != "linear")
    ):
        raise UserError(f"guidance cfg_pp is a first-order step with a noise of its own: use ddim, not {method.solver}")
    try:
        guided, _ = _guided(
            run.network,
            weak and weak.network,
            False,
            run.path,
            method,
            (run.params, weak and weak.params),
            wanted,
            weights,
        )
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    if method.solver in ADAPTIVE and isinstance(guided, solvers.StatefulVelocity):
        raise UserError(
            f"{method.solver} chooses its steps, and guidance {method.guidance} remembers them or reuses references: "
            "use a solver that takes --steps"
        )


def _full(c: Condition) -> bool:
    return all(np.all(p) for p in jax.tree.leaves(c.present))
