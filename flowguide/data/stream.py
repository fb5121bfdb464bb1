"""The stream of batches: reshuffled each epoch, split among processes, and resumable at the exact example."""

from __future__ import annotations

import sys
from typing import Any

import grain
import numpy as np

from flowguide.data.dataset import Dataset
from flowguide.data.order import shuffled
from flowguide.errors import DataError
from flowguide.schema import Batch


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
) -> grain.DatasetIterator[Batch]:
    """Returns an iterator of ``Batch``; ``grain.checkpoint.CheckpointSave`` saves its position.

    A single global stream of examples, reshuffled for each (seed, epoch), is cut into batches that processes 0, 1, ...
    take in turn. So in each step the processes hold disjoint examples; together and in order, they are exactly those of
    a single process whose batch is ``process_count`` times as large. Batches may cross into the next epoch.

    Args:
      dataset: from ``open_dataset``.
      batch_size: examples per batch *of this process*.
      seed: seed of the order.
      shuffle: False for the order on disk.
      epochs: number of passes over the data; None repeats forever.
      process_index: index of this process.
      process_count: number of processes.
      drop_remainder: whether to drop, at the end of the last epoch, a smaller last batch and batches too few for all
        processes. Otherwise no example is dropped, and some processes may get one batch less.
      threads: number of prefetching threads; by default 1 for data in memory, 16 for data on disk.

    Raises:
      DataError: if a size is invalid, or there is not a single batch.
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
    """Returns the indices, as ``dataset.read`` takes them, of one batch of a single process's shuffled stream."""
    return shuffled(dataset.size, _order_seed(seed), batch * batch_size, (batch + 1) * batch_size).tolist()


def fingerprint(dataset: Dataset, batch_size: int, seed: int, *, shuffle: bool = True) -> dict[str, Any]:
    """Returns the settings that give a position in the stream its meaning; JSON-serializable.

    Grain restores a position into any pipeline without complaint. So store the fingerprint with the position, and check
    it on restore. ``batch_size`` is that of all processes together: their number changes neither stream nor position.
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
    """Checks that two fingerprints are equal.

    Raises:
      DataError: if they differ; it names the first differing key.
    """
    for key in now | stored:
        if stored.get(key) != now.get(key):
            raise DataError(
                f"got data with {key}={now.get(key)!r}, expected {stored.get(key)!r} as when the position was saved: "
                "restore that setting, or start a new run"
            )


def _order_seed(seed: int) -> int:
    """Returns a scrambled seed. Epoch e uses seed + e, so unscrambled neighbouring seeds would share epochs."""
    if seed < 0:
        raise DataError(f"got seed={seed}, expected 0 or more")
    return int(np.random.SeedSequence(seed).generate_state(1)[0])
