"""How long a training run waits for a checkpoint, beside Orbax as it comes.

python benchmarks/saves.py

A DiT of 28 narrow blocks, its average and the state of Adam, whole on each of eight virtual devices. For both, in
turns: how long the first call of `save` takes, the shortest of four later ones, and how long until all is on the disk.
Ours compares the devices and hashes every leaf as well; the last line is that part alone. A minute on 2 CPU cores.
"""

import os

# Before JAX is imported.
os.environ.update(JAX_PLATFORMS="cpu", NPROC="16", XLA_FLAGS="--xla_force_host_platform_device_count=8")

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
import orbax.checkpoint as ocp
from absl import logging

from flowguide import checkpoint, networks
from flowguide.hashes import leaf_hashes
from flowguide.networks import DiT
from flowguide.schema import Label
from flowguide.training.parallel import data_parallel, replicas_agree
from flowguide.training.step import TrainState, init_state

ROUNDS = 5


class Nowhere:
    """A place in no data."""

    def get_state(self) -> dict[str, Any]:
        return {}


def state() -> TrainState:
    def make(rngs):
        return DiT((16, 16, 3), {"label": Label(("0", "1"))}, patch=2, width=128, depth=28, heads=4, rngs=rngs)

    init = partial(init_state, networks.as_network(make), optax.adam(1e-3))
    return init(jax.random.key(0), data_parallel(jax.devices()).shardings)


def stepped(state: TrainState, number: int) -> TrainState:
    return state._replace(step=jax.device_put(jax.numpy.int32(number), state.step.sharding))


def timed(save, finish) -> tuple[float, float]:
    started = time.perf_counter()
    save()
    returned = time.perf_counter()
    finish()
    return returned - started, time.perf_counter() - started


def main() -> None:
    """Prints the table."""
    logging.set_verbosity(logging.ERROR)  # Orbax warns of every change of the handler
    whole = state()
    leaves = jax.tree.leaves(whole)
    print(f"{len(leaves)} leaves, {sum(a.nbytes for a in leaves) / 2**20:.0f} MiB, on {len(jax.devices())} devices")

    def theirs(to: ocp.CheckpointManager, s: TrainState) -> None:
        to.save(int(s.step), args=ocp.args.StandardSave(s))

    def ours(to: ocp.CheckpointManager, s: TrainState) -> None:
        assert replicas_agree(s)
        checkpoint.save(to, s, Nowhere(), {})  # pyright: ignore[reportArgumentType]

    def checks(_: None, s: TrainState) -> None:
        assert replicas_agree(s)
        leaf_hashes(s)

    found = {}
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        plain = ocp.type_handlers.ArrayHandler()
        mine = checkpoint.manager(Path(b))
        thin = ocp.type_handlers.get_type_handler(jax.Array)
        others = ocp.CheckpointManager(a, options=ocp.CheckpointManagerOptions(max_to_keep=2))
        for number in range(1, ROUNDS + 1):
            s = stepped(whole, number)
            for name, save, to, handler in (
                ("Orbax as it comes", theirs, others, plain),
                ("flowguide", ours, mine, thin),
                ("of it the checks", checks, None, thin),
            ):
                ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
                finish = to.wait_until_finished if to else lambda: None
                found.setdefault(name, []).append(timed(partial(save, to, s), finish))
        others.close()
        mine.close()

    print(f"{'':20}{'first call':>12}{'later':>8}{'on the disk':>14}   seconds")
    for name, times in found.items():
        later = [min(column) for column in zip(*times[1:], strict=True)]
        print(f"{name:20}{times[0][0]:12.2f}{later[0]:8.2f}{later[1]:14.2f}")
    least = {name: min(t for t, _ in times[1:]) for name, times in found.items()}
    print(f"the run waits {least['flowguide'] / least['Orbax as it comes']:.2f} times as long as with Orbax alone")


if __name__ == "__main__":
    main()
