"""What pairing noise with data does to a conditional flow, on a law that is known.

python benchmarks/couplings.py

A mixture of three classes in two dimensions; the same small network is trained with each coupling. For each: how far
the noise that training gives a class lies from what sampling draws, |E[x0|c]| (0 if the coupling leaves it alone); the
sliced W1 distance of 4,000 samples of each class from exact ones, by 4 steps of Euler's method and by 100; and the cost
of a training step. The last line is the distance of exact samples from other exact ones. Five minutes on 2 CPU cores.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flowguide import analytic, losses, networks, paths, solvers, times
from flowguide.condition import Condition, bind, given
from flowguide.couplings import Coupling
from flowguide.schema import Label
from flowguide.training import transport

STEPS, BATCH, NUM = 2000, 256, 4000
COUPLINGS = {
    "independent": {},
    "assigned": {},
    "assigned, condition_weight=100": {"condition_weight": 100.0},
    "sinkhorn": {},
    "sinkhorn, condition_weight=100": {"condition_weight": 100.0},
}
LAW = analytic.mixture(
    jnp.ones(6) / 6,
    [[2.0, 0.0], [1.5, 1.5], [-1.0, 1.7], [-2.0, 0.5], [-1.0, -1.7], [0.7, -1.9]],
    jnp.full(6, 0.05),
    jnp.arange(6) // 2,
)
FIELDS = {"side": Label(("east", "west", "south"))}


def draw(key: jax.Array, num: int, label: int | None = None) -> tuple[jax.Array, Condition]:
    which, data = jax.random.split(key)
    c = given({"side": jax.random.randint(which, (num,), 0, 3) if label is None else jnp.full(num, label)})
    return analytic.sample(data, LAW, c), c


def train(coupling: Coupling) -> tuple[networks.Network, networks.Params, float]:
    network = networks.as_network(lambda rngs: networks.MLP((2,), FIELDS, width=128, depth=3, rngs=rngs))
    recipe = losses.Recipe(paths.linear(), times.uniform(), coupling)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, STEPS))

    @partial(jax.jit, donate_argnums=0)
    def step(state: tuple[networks.Params, Any], i: jax.Array) -> tuple[Any, Any]:
        params, inner = state
        x1, c = draw(jax.random.fold_in(jax.random.key(1), i), BATCH)
        index = jnp.arange(BATCH)

        def loss(params: networks.Params) -> jax.Array:
            keys = losses.example_keys(jax.random.key(2), i, index)
            return losses.flow_matching(partial(network.velocity, params), recipe, keys, index, x1, c).mean()

        updates, inner = optimizer.update(jax.grad(loss)(params), inner)
        return optax.apply_updates(params, updates), inner

    params = network.init(jax.random.key(0))
    state = step((params, optimizer.init(params)), jnp.int32(0))
    started = time.process_time()
    for i in range(1, STEPS):
        state = step(state, jnp.int32(i))
    jax.block_until_ready(state)
    return network, state[0], (time.process_time() - started) / STEPS


def skew(coupling: Coupling) -> float:
    """|E[x0|c]|, averaged over the classes."""
    couple, total = jax.jit(coupling), np.zeros((3, 2))
    for i in range(100):
        key = jax.random.key(100 + i)
        x1, c = draw(key, BATCH)
        x0 = couple(jax.random.split(key, BATCH), jax.random.normal(jax.random.fold_in(key, 1), x1.shape), x1, c)
        total += np.array(
            [np.where((c.value["side"] == k)[:, None], x0, 0).sum(0) / (c.value["side"] == k).sum() for k in range(3)]
        )
    return float(np.linalg.norm(total / 100, axis=1).mean())


def sliced(a: jax.Array | np.ndarray, b: jax.Array | np.ndarray) -> float:
    angle = np.linspace(0, np.pi, 64, endpoint=False)
    directions = np.stack([np.cos(angle), np.sin(angle)])
    return float(np.abs(np.sort(np.asarray(a) @ directions, 0) - np.sort(np.asarray(b) @ directions, 0)).mean())


def distance(network: networks.Network, params: networks.Params, steps: int) -> float:
    total = 0.0
    for label in range(3):
        exact, c = draw(jax.random.key(10 + label), NUM, label)
        u = bind(partial(network.velocity, params), c)
        x0 = jax.random.normal(jax.random.key(20 + label), exact.shape)
        total += sliced(jax.jit(lambda x, u=u: solvers.solve(solvers.euler(), u, x, times.grid(steps)))(x0), exact) / 3
    return total


if __name__ == "__main__":
    print(f"{'coupling':34}{'|E[x0|c]|':>10}{'W1, 4 steps':>13}{'W1, 100 steps':>15}{'ms a step':>11}")
    for name, settings in COUPLINGS.items():
        coupling = transport.COUPLINGS[name.split(",")[0]](**settings)
        network, params, seconds = train(coupling)
        few, many = (distance(network, params, steps) for steps in (4, 100))
        print(f"{name:34}{skew(coupling):10.3f}{few:13.3f}{many:15.3f}{1e3 * seconds:11.1f}", flush=True)
    floor = np.mean(
        [sliced(draw(jax.random.key(k), NUM, k)[0], draw(jax.random.key(50 + k), NUM, k)[0]) for k in (0, 1, 2)]
    )
    print(f"{'exact samples':34}{'':10}{floor:13.3f}{floor:15.3f}")
