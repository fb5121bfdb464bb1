"""The stream of batches: shuffled anew each epoch, shared out to processes, resumable to the very example."""

from __future__ import annotations

import sys
from typing import Any

import grain
import numpy as np

from flowguide.data.dataset import Batch, Dataset
from flowguide.data.errors import DataError
from flowguide.data.order import shuffled


def batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    *,
    shuffle: bool = True,
    epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    drop_remainder: bool = True,
    threads: int | None = None,
) -> grain.DatasetIterator:
    """An iterator of ``Batch``, whose position ``grain.checkpoint.CheckpointSave`` keeps.

    There is one global stream of examples, an order of its own for each (seed, epoch), cut into batches that process
    0, 1, ... take in turn. So in each step the processes hold disjoint examples, together and in order the very ones
    that a single process would with a batch ``process_count`` times as large. Batches may reach into the next epoch.

    Args:
      dataset: from ``open_dataset``.
      batch_size: examples a batch *of this process*.
      seed: of the order.
      shuffle: False for the order on disk.
      epochs: how often to go through the data; None for ever.
      process_index: which process this is.
      process_count: how many there are.
      drop_remainder: leave out, at the end of the last epoch, a last smaller batch, and batches too few for all
        processes. Where it is False no example is left out, and some processes may get a batch less.
      threads: how many read ahead; without it 1 for a data set in memory, 16 for one on disk.

    Raises:
      DataError: for sizes that cannot be, or where not a single batch would come out.
    """
    if batch_size < 1:
        raise DataError(f"got batch_size={batch_size}, expected at least 1")
    if not 0 <= process_index < process_count:
        raise DataError(f"got process_index={process_index}, expected 0 to process_count - 1 = {process_count - 1}")
    order_seed = _order_seed(seed)
    last = sys.maxsize if epochs is None else epochs * dataset.size
    count = last // batch_size if drop_remainder else -(-last // batch_size)
    if drop_remainder:
        count -= count % process_count

    def read(batch: int) -> Batch:
        start, stop = batch * batch_size, min((batch + 1) * batch_size, last)
        if shuffle:
            return dataset.read(shuffled(dataset.size, order_seed, start, stop))
        return dataset.read(np.arange(start, stop) % dataset.size)

    mine = grain.MapDataset.range(process_index, count, process_count).map(read)
    if len(mine) == 0:
        raise DataError(
            f"got batch_size={batch_size} x {process_count} processes for {dataset.size} examples, "
            "expected at most the size of the data: lower it"
        )
    threads = (1 if dataset.in_memory else 16) if threads is None else threads
    return iter(mine.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4, threads))))


def numbers_of_batch(dataset: Dataset, batch_size: int, seed: int, batch: int) -> list[int]:
    """The examples, by their numbers for ``dataset.read``, of one batch of the shuffled stream of a single process."""
    return shuffled(dataset.size, _order_seed(seed), batch * batch_size, (batch + 1) * batch_size).tolist()


def fingerprint(dataset: Dataset, batch_size: int, seed: int, *, shuffle: bool = True) -> dict[str, Any]:
    """What a position in the stream is worth nothing without; JSON-able.

    Grain restores a position into any pipeline without complaint, so this is to be kept beside it and compared. The
    ``batch_size`` is that of all processes together: how many share it changes neither the stream nor the position.
    """
    return {
        "name": dataset.info.name,
        "version": dataset.version,
        "split": dataset.split,
        "size": dataset.size,
        "shape": list(dataset.info.shape),
        "fields": sorted(dataset.info.fields),
        "shuffle": shuffle,
        "seed": seed,
        "batch_size": batch_size,
    }


def check_fingerprint(stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Compares two fingerprints.

    Raises:
      DataError: where they differ; it names the first key that does.
    """
    for key in now | stored:
        if stored.get(key) != now.get(key):
            raise DataError(
                f"got data with {key}={now.get(key)!r}, expected {stored.get(key)!r} as when the position was saved: "
                "restore that setting, or start a new run"
            )


def _order_seed(seed: int) -> int:
    """Epoch e is shuffled by seed + e: scattered, neighbouring seeds do not share epochs."""
    if seed < 0:
        raise DataError(f"got seed={seed}, expected 0 or more")
    return int(np.random.SeedSequence(seed).generate_state(1)[0])
