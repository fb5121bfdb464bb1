"""What guidance costs: an interval without its masked half, doubled calls, reuse; run in turn beside the plain solve.

python benchmarks/guidance.py [--batch=16] [--rounds=10]

A DiT (width 192, depth 2, 16x16 pixels in 64 patches), Euler's method, 20 steps, guided in the middle. Each line gives
the least CPU time of the process over the rounds, its ratio to the unguided solve, and what the evaluations alone would
make of it. The masked form is what other packages do: both passes at every step, and a ``where``.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from flowguide import guidance, networks, solvers, times
from flowguide.condition import bind, given, null
from flowguide.schema import Label

BATCH = flags.DEFINE_integer("batch", 16, "samples")
ROUNDS = flags.DEFINE_integer("rounds", 10, "of all lines")
STEPS, INTERVAL, GAMMA = 20, (0.3, 0.67), 3.0


def main(_: list[str]) -> None:
    fields = {"kind": Label(tuple("abcdefghij"))}
    network = networks.as_network(
        lambda rngs: networks.DiT((16, 16, 1), fields, width=192, depth=2, heads=3, patch=2, rngs=rngs)
    )
    params = network.init(jax.random.key(0))
    # Its last layers start at zero: with other numbers the fields differ, and the outputs can be compared.
    params = jax.tree.map(lambda p: p + 0.02 * jax.random.normal(jax.random.key(1), p.shape), params)
    velocity = partial(network.velocity, params)
    x = jax.random.normal(jax.random.key(2), (BATCH.value, 16, 16, 1))
    c, ts, solver = given({"kind": jnp.arange(BATCH.value) % 10}), times.grid(STEPS), solvers.euler()
    whole = guidance.classifier_free(velocity, c, GAMMA)
    part = guidance.classifier_free(velocity, c, GAMMA, interval=INTERVAL)

    def masked(t: jax.Array, x: jax.Array) -> jax.Array:
        v, ref = bind(velocity, c)(t, x), bind(velocity, null(c))(t, x)
        return jnp.where((t >= INTERVAL[0]) & (t <= INTERVAL[1]), (1 - GAMMA) * ref + GAMMA * v, v)

    def counted(g: guidance.Guidance, reuse: int = 1) -> float:
        return float(guidance.network_evaluations(solver, g, ts, reuse)) / STEPS

    lines = {
        "unguided": (bind(velocity, c), 1.0),
        "interval, two calls": (guidance.guide(velocity, c, part, "apart"), counted(part)),
        "interval, one doubled call": (guidance.guide(velocity, c, part, "together"), counted(part)),
        "interval, masked": (masked, 2.0),
        "everywhere, two calls": (guidance.guide(velocity, c, whole, "apart"), counted(whole)),
        "everywhere, one doubled call": (guidance.guide(velocity, c, whole, "together"), counted(whole)),
        "everywhere, reused 4 steps": (guidance.guide(velocity, c, whole, "apart", 4), counted(whole, 4)),
    }
    programs = {
        name: jax.jit(lambda x, u=u: solvers.solve(solver, u, x, ts)).lower(x).compile()
        for name, (u, _) in lines.items()
    }
    ends = {name: np.asarray(program(x)) for name, program in programs.items()}
    least = dict.fromkeys(programs, np.inf)
    for _round in range(ROUNDS.value):
        for name, program in programs.items():
            started = time.process_time()
            jax.block_until_ready(program(x))
            least[name] = min(least[name], time.process_time() - started)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, batch {BATCH.value}")
    print(f"{'':32}{'CPU ms':>9}{'ratio':>8}{'evaluations':>13}{'ratio / evaluations':>21}")
    for name, seconds in least.items():
        ratio, cost = seconds / least["unguided"], lines[name][1]
        print(f"{name:32}{1e3 * seconds:9.1f}{ratio:8.3f}{cost:13.3f}{ratio / cost:21.3f}")
    difference = max(
        np.abs(ends[f"interval, {how}"] - ends["interval, masked"]).max() for how in ("two calls", "one doubled call")
    )
    print(f"largest difference of the intervals' outputs from the masked form's: {difference:.1e}")


if __name__ == "__main__":
    app.run(main)
