"""What a solver costs beside the bare network: ours, diffrax, torch's and a scan of forward passes, run in turn.

python benchmarks/solvers.py        (needs the extra diffrax; with the extra peers, torch's solvers beside them)

The same velocity (a residual perceptron on 768 numbers), the same number of evaluations. Each line gives the least CPU
time of the process over the rounds, as a ratio to the bare scan's; tracing (to a jaxpr) and compiling are timed apart.
Below: the evaluations of the adaptive Dormand-Prince pair at equal error, on an exact guided mixture in float64.
"""

import time
from collections.abc import Callable
from typing import Any, TypeAlias

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import peers

from flowguide import analytic, guidance, paths, solvers, times
from flowguide.condition import given
from flowguide.typing import Velocity

Run: TypeAlias = Callable[[jax.Array], jax.Array]

SIZE, WIDTH, STEPS, ROUNDS = 768, 512, 24, 15


def network_layers() -> tuple[jax.Array, ...]:
    shapes = [(SIZE, WIDTH), *[(WIDTH, WIDTH)] * 4, (WIDTH, SIZE)]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return tuple(jax.random.normal(k, shape) / shape[0] ** 0.5 for k, shape in zip(keys, shapes, strict=True))


def network(layers: tuple[jax.Array, ...]) -> Velocity:
    inlet, *hidden, outlet = layers

    def velocity(t: jax.Array, x: jax.Array) -> jax.Array:
        h = x @ inlet + t
        for w in hidden:
            h = h + jax.nn.silu(h @ w)
        return h @ outlet

    return velocity


def contestants(velocity: Velocity) -> dict[str, Run]:
    ts = times.grid(STEPS)

    def bare(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, t: (x + velocity(t, x) / STEPS, None), x, ts[:-1])[0]

    def field(t: Any, x: Any, args: Any) -> Any:
        return velocity(t, x)

    def theirs(solver: diffrax.AbstractSolver[Any]) -> Run:
        def run(x: jax.Array) -> jax.Array:
            steps = diffrax.StepTo(ts if isinstance(solver, diffrax.Euler) else ts[::2])
            term = diffrax.ODETerm(field)
            ys = diffrax.diffeqsolve(term, solver, 0.0, 1.0, None, x, stepsize_controller=steps).ys
            return ys[0]  # pyright: ignore[reportOptionalSubscript]

        return run

    return {
        "bare scan of forward passes": bare,
        "flowguide euler": lambda x: solvers.solve(solvers.euler(), velocity, x, ts),
        "flowguide ab2": lambda x: solvers.solve(solvers.ab2(), velocity, x, ts),
        "flowguide unipc2": lambda x: solvers.solve(solvers.unipc2(paths.linear()), velocity, x, ts),
        "flowguide heun, half the steps": lambda x: solvers.solve(solvers.heun(), velocity, x, ts[::2]),
        "diffrax Euler": theirs(diffrax.Euler()),
        "diffrax Heun, half the steps": theirs(diffrax.Heun()),
    }


def fixed_steps(batch: int) -> None:
    x = jax.random.normal(jax.random.key(1), (batch, SIZE))
    layers = network_layers()
    compiled, traced, least = {}, {}, {}
    for name, run in contestants(network(layers)).items():
        started, samples = 0.0, []
        for _ in range(3):
            started = time.perf_counter()
            jaxpr = jax.jit(lambda x, run=run: run(x)).trace(x)
            samples.append(time.perf_counter() - started)
        traced[name] = min(samples)
        compiled[name] = jaxpr.lower().compile()
        jax.block_until_ready(compiled[name](x))
    compiled |= peers.torch_solvers(tuple(np.asarray(w) for w in layers), STEPS)
    for _ in range(ROUNDS):
        for name, program in compiled.items():
            started = time.process_time()
            jax.block_until_ready(program(np.asarray(x) if "torch" in name or "flow_m" in name else x))
            least[name] = min(least.get(name, np.inf), time.process_time() - started)
    base = least["bare scan of forward passes"]
    print(f"\nbatch {batch}, {STEPS} evaluations: CPU time of a run, its ratio to the bare scan, and time to trace")
    for name, seconds in least.items():
        trace = f"{1e3 * traced[name]:9.1f} ms" if name in traced else "        -"
        print(f"  {name:34}{1e3 * seconds:9.2f} ms{seconds / base:8.3f} ×{trace}")


def adaptive() -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        law = analytic.mixture(jnp.ones(4) / 4, rng.normal(size=(4, 2)) * 1.5, jnp.full(4, 0.05), jnp.arange(4) % 2)
        velocity, c = analytic.velocity(law, paths.linear()), given(jnp.zeros(64, int))
        guided = guidance.guide(velocity, c, guidance.classifier_free(velocity, c, 3.0))
        x = jax.random.normal(jax.random.key(0), (64, 2))
        exact = solvers.solve(solvers.rk4(), guided, x, times.grid(1000).astype(float))
        print("\nadaptive Dormand-Prince: tolerance, root mean square error, evaluations")
        curves = []
        for tolerance in 10.0 ** -np.arange(2.0, 8.5, 0.5):
            ours = solvers.solve_adaptive(guided, x, jnp.array([0.0, 1.0]), rtol=tolerance, atol=tolerance)
            control = diffrax.PIDController(rtol=tolerance, atol=tolerance)
            term = solvers.as_diffrax(guided)
            theirs = diffrax.diffeqsolve(term, diffrax.Dopri5(), 0.0, 1.0, None, x, stepsize_controller=control)
            error = [float(jnp.sqrt(jnp.mean((y - exact) ** 2))) for y in (ours.x, theirs.ys[0])]  # pyright: ignore
            cost = [int(ours.evaluations.sum()), 6 * int(theirs.stats["num_steps"]) + 2]
            curves.append((error, cost))
            print(f"  {tolerance:7.0e}   flowguide {error[0]:.2e} {cost[0]:5d}     diffrax {error[1]:.2e} {cost[1]:5d}")
        # Evaluations at equal error: both curves of log evaluations over log error, without the jumps of whole steps.
        fits = [np.polyfit(np.log([e[i] for e, _ in curves]), np.log([c[i] for _, c in curves]), 2) for i in (0, 1)]
        print("  at equal error, by a quadratic through each curve: evaluations of flowguide / diffrax")
        for e in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
            own, other = (np.exp(np.polyval(fit, np.log(e))) for fit in fits)
            print(f"  {e:7.0e}   {own:6.0f} / {other:6.0f} = {own / other:.3f}")


if __name__ == "__main__":
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, diffrax {diffrax.__version__}")
    for size in (256, 16):
        fixed_steps(size)
    adaptive()
