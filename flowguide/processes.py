"""Multi-process runs, with one process per host or device: JAX's multi-controller runtime.

All processes run the same script with the same arguments. The main process writes everything that is not an array.
Orbax writes and reads arrays that are sharded over processes; each process handles its own shards.
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

from flowguide.errors import UserError, one_line
from flowguide.hashes import json_hash
from flowguide.typing import PyTree

# Seconds: for all processes to start; without a heartbeat until a process counts as dead; and that a process which
# ends waits for the others.
JOIN, HEARTBEAT, SHUTDOWN = 300, 20, 10

# For each launcher, whether the environment says that it started this process as one of several.
LAUNCHERS: dict[str, Callable[[Mapping[str, str]], bool]] = {
    "SLURM": lambda env: "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", 1)) > 1,
    "Open MPI": lambda env: int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1,
    "Kubernetes (an indexed job)": lambda env: "JOB_COMPLETION_INDEX" in env,
}


def start(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Joins the other processes. Call it before anything asks JAX for its devices.

    Args:
      coordinator: ``HOST:PORT`` of process 0; requires ``count`` and ``index``. None detects a TPU pod, SLURM,
        Kubernetes or Open MPI, and runs a single process if there is none. "none" always runs a single process.
      count: number of processes.
      index: index of this process, from 0.

    Raises:
      UserError: if only some of the arguments are given, the other processes cannot be reached, or a launcher started
        several processes but does not provide enough information to join them.
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
    # Printed before the call: on a timeout JAX aborts the process with no more than an exit code.
    message = f"process {index} of {count} joins the others at {coordinator}; all must start within {JOIN} s"
    print(message, file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(coordinator, count, index, initialization_timeout=JOIN, **limits)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"process {index} of {count} cannot join the others at {coordinator} ({one_line(error)}): start all "
            f"within {JOIN} s, with the same address of process 0 and a free port"
        ) from error


def _detect(limits: dict[str, Any]) -> None:
    launchers = [name for name, present in LAUNCHERS.items() if present(os.environ)]
    try:
        jax.distributed.initialize(**limits)
    except (ValueError, RuntimeError) as error:  # raised if nothing is detected
        if launchers:
            raise UserError(
                f"{launchers[0]} has started this process as one of several, but it cannot join them "
                f"({one_line(error)}): give each --coordinator=HOST:PORT --num_processes=N --process_id=K, or "
                "--coordinator=none to run alone"
            ) from error


def is_distributed() -> bool:
    """Returns whether there are several processes."""
    return jax.process_count() > 1


def is_main_process() -> bool:
    """Returns whether this is process 0, which writes what only one process may write."""
    return jax.process_index() == 0


def wait(place: str) -> None:
    """Blocks until all processes have reached this point of the program."""
    if is_distributed():
        multihost_utils.sync_global_devices(place)


def all_true(flag: bool) -> bool:
    """Returns whether ``flag`` is true in every process. Collective: every process must call it."""
    return bool(np.all(multihost_utils.process_allgather(np.asarray(flag)))) if is_distributed() else flag


def broadcast_from_main(value: Any) -> np.ndarray:
    """Returns process 0's value, bit for bit; a number or an array, of the same shape in every process."""
    a = np.asarray(value)
    if not is_distributed():
        return a
    # As bytes, because JAX would cast float64 to float32.
    bits = multihost_utils.broadcast_one_to_all(np.frombuffer(a.tobytes(), np.uint8))
    return np.frombuffer(np.asarray(bits).tobytes(), a.dtype).reshape(a.shape)


def total(a: np.ndarray) -> np.ndarray:
    """Returns the sum of the processes' float64 arrays of one shape, the same bits in each. Collective."""
    if not is_distributed():
        return a
    # In pieces, because every device holds the pieces of all processes; as bytes, as in ``broadcast_from_main``.
    pieces = np.array_split(np.ravel(a), -(-a.nbytes // 2**20))
    gathered = (multihost_utils.process_allgather(np.frombuffer(piece.tobytes(), np.uint8)) for piece in pieces)
    sums = [np.ascontiguousarray(rows).view(np.float64).sum(0) for rows in map(np.asarray, gathered)]
    return np.concatenate(sums).reshape(a.shape)


def check_same(what: str, value: Any) -> None:
    """Checks that every process has the same ``value``, which must be JSON-serializable.

    Raises:
      UserError: in every process, if the values differ.
    """
    if is_distributed():
        hashes = np.asarray(multihost_utils.process_allgather(np.asarray(json_hash(value), np.uint32)))
        if (different := np.flatnonzero(hashes != hashes[0])).size:
            raise UserError(
                f"process {different[0]} has another {what} than process 0: start all processes with the same command, "
                "in folders with the same content"
            )


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Shards a tree; the result may share its memory.

    Args:
      tree: NumPy or JAX arrays, complete in every process or already sharded.
      shardings: a tree of shardings, or one for all leaves.
    """

    def place(a: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if sharding.is_fully_addressable or (isinstance(a, jax.Array) and not a.is_fully_addressable):
            return jax.device_put(a, sharding)
        return jax.make_array_from_callback(a.shape, sharding, np.asarray(a).__getitem__)

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(partial(place, sharding=shardings), tree)
    return jax.tree.map(place, tree, shardings)


def gather(a: jax.Array) -> np.ndarray:
    """Returns the whole array, in every process."""
    return np.asarray(a if a.is_fully_addressable else multihost_utils.process_allgather(a, tiled=True))
