"""Several processes, one a host or device, that train or sample as one: JAX's multi-controller runtime.

All of them run the same script with the same arguments; one leads, and writes what is not an array. Arrays that are
spread over processes are written and read by Orbax, each process its own part.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from flowguide.errors import UserError
from flowguide.hashes import json_hash
from flowguide.typing import PyTree

# Seconds in which all processes must have started; without a sign of life after which one counts as dead; and for which
# one that ends waits for the others.
JOIN, HEARTBEAT, SHUTDOWN = 300, 20, 10

# By what, in the environment, a process knows that a launcher has started it with others.
LAUNCHERS: dict[str, Callable[[Mapping[str, str]], bool]] = {
    "SLURM": lambda env: "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", 1)) > 1,
    "Open MPI": lambda env: int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1,
    "Kubernetes (an indexed job)": lambda env: "JOB_COMPLETION_INDEX" in env,
}


def start(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Joins the other processes; to be called before anything asks JAX for its devices.

    Args:
      coordinator: ``HOST:PORT`` of process 0, with ``count`` and ``index``. None to detect a TPU pod, SLURM,
        Kubernetes or Open MPI, and to stay alone where there is none of them; "none" to stay alone anyway.
      count: how many processes there are.
      index: which one this is, from 0.

    Raises:
      UserError: if only a part is given, or the others cannot be reached, or a launcher of several processes is
        there but does not tell enough.
    """
    given = [value is not None for value in (count, index)]
    limits: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT, "shutdown_timeout_seconds": SHUTDOWN}
    if coordinator is None or coordinator == "none":
        if any(given):
            raise UserError("--num_processes and --process_id need --coordinator=HOST:PORT, the address of process 0")
        if coordinator is None:
            _detect(limits)
        return
    if not all(given) or not 0 <= (index or 0) < (count or 0):
        raise UserError(
            f"--coordinator={coordinator} needs --num_processes=N and --process_id=0 to N - 1; got {count} and {index}"
        )
    # Said first: JAX itself ends a process that waits in vain, with no more than a code.
    told = f"process {index} of {count} joins the others at {coordinator}; all must have started within {JOIN} s"
    print(told, file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(coordinator, count, index, initialization_timeout=JOIN, **limits)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"process {index} of {count} cannot join the others at {coordinator} ({_line(error)}): start all of them "
            f"within {JOIN} s, with the same address of process 0, at a port that is free"
        ) from error


def _detect(limits: dict[str, Any]) -> None:
    launchers = [name for name, present in LAUNCHERS.items() if present(os.environ)]
    try:
        jax.distributed.initialize(**limits)
    except (ValueError, RuntimeError) as error:  # what it raises where it detects nothing
        if launchers:
            raise UserError(
                f"{launchers[0]} has started this process as one of several, but it cannot join them ({_line(error)}): "
                "give each --coordinator=HOST:PORT --num_processes=N --process_id=K, or --coordinator=none to run alone"
            ) from error


def is_distributed() -> bool:
    """Whether there are others."""
    return jax.process_count() > 1


def is_main_process() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0


def wait(place: str) -> None:
    """Until all processes are at this place of the program."""
    if is_distributed():
        multihost_utils.sync_global_devices(place)


def all_true(flag: bool) -> bool:
    """Whether ``flag`` is true in every process; all must ask."""
    return bool(np.all(multihost_utils.process_allgather(np.asarray(flag)))) if is_distributed() else flag


def broadcast_from_main(value: Any) -> np.ndarray:
    """The value, a number or an array of the same shape in all of them, that process 0 has; to the bit."""
    a = np.asarray(value)
    if not is_distributed():
        return a
    bits = multihost_utils.broadcast_one_to_all(np.frombuffer(a.tobytes(), np.uint8))  # JAX would make float64 float32
    return np.frombuffer(np.asarray(bits).tobytes(), a.dtype).reshape(a.shape)


def check_same(what: str, value: Any) -> None:
    """Sees that every process has the same ``value``, which can be written as JSON.

    Raises:
      UserError: in all of them, if not.
    """
    if is_distributed():
        hashes = np.asarray(multihost_utils.process_allgather(np.asarray(json_hash(value), np.uint32)))
        if (different := np.flatnonzero(hashes != hashes[0])).size:
            raise UserError(
                f"process {different[0]} has another {what} than process 0: start all of them with the same command, "
                "in folders with the same content"
            )


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Lays out a tree that every process has as a whole, or that is spread already; it may take its memory.

    Args:
      tree: of arrays of NumPy or JAX.
      shardings: of the leaves, or one for all of them.
    """

    def place(a: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if sharding.is_fully_addressable or (isinstance(a, jax.Array) and not a.is_fully_addressable):
            return jax.device_put(a, sharding)
        return jax.make_array_from_callback(a.shape, sharding, np.asarray(a).__getitem__)

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(partial(place, sharding=shardings), tree)
    return jax.tree.map(place, tree, shardings)


def gather(a: jax.Array) -> np.ndarray:
    """All of an array, in every process."""
    return np.asarray(a if a.is_fully_addressable else multihost_utils.process_allgather(a, tiled=True))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
