"""The order of examples: Grain's own shuffle, at a cost that does not grow as a set gets small."""

import grain
import numpy as np
import pytest

from flowguide.data import Dataset, batches, order
from flowguide.data.stream import numbers_of_batch
from flowguide.schema import Batch, DataInfo, Vectors

SIZES = (1, 2, 3, 10, 142, 1797, 50_000, 2**16, 70_000, 300_000, 5_000_000, 2**33)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1])
def test_places_have_the_examples_that_grain_puts_there(size, seed):
    """Across the boundary of two epochs, and for small sets of many."""
    theirs = grain.MapDataset.range(size).shuffle(seed).repeat()
    start = max(2 * size - 17, 0)
    ours = order.shuffled(size, seed, start, start + 40)
    assert ours.dtype == np.int64
    assert ours.tolist() == [theirs[i] for i in range(start, start + 40)]


@pytest.mark.parametrize("size", [2**16, 2**16 + 1, 2**18 + 1])
def test_an_epoch_has_every_example_once(size):
    np.testing.assert_array_equal(np.sort(order.shuffled(size, 3, size, 2 * size)), np.arange(size))


def test_a_position_saved_by_the_pipeline_of_grain_goes_on():
    """What runs were before: Grain's range, shuffle, repeat, batch and map, resumed by the stream as it is now."""
    data = Dataset(DataInfo("numbers", Vectors(()), {}), "train", "1", 100, True, lambda i: Batch(np.asarray(i), {}))
    seed = int(np.random.SeedSequence(4).generate_state(1)[0])
    theirs = grain.MapDataset.range(100).shuffle(seed).repeat().batch(24)[1 : 2**40 : 2]
    theirs = iter(theirs.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
    for _ in range(7):
        next(theirs)
    ours = batches(data, 24, 4, process_index=1, process_count=2)
    ours.set_state(theirs.get_state())
    for number in range(7, 12):
        expected = np.asarray(next(theirs)).tolist()
        assert next(ours).x.tolist() == expected == numbers_of_batch(data, 24, 4, 2 * number + 1)


@pytest.mark.parametrize(("size", "batch_size"), [(10, 512), (142, 512), (1000, 64)])
def test_an_epoch_is_enciphered_once_whatever_the_batch(size, batch_size, monkeypatch):
    """A set of 10 took 65,536 numbers an epoch too, but one by one: 20 ms, and 50 of them a batch of 512."""
    real, calls = order._encipher, []

    def count(keys, half, x):
        calls.append(x.size)
        return real(keys, half, x)

    monkeypatch.setattr(order, "_encipher", count)
    order._epoch.cache_clear()
    data = Dataset(DataInfo("numbers", Vectors(()), {}), "train", "1", size, True, lambda i: Batch(np.asarray(i), {}))
    stream = batches(data, batch_size, 0, threads=0)
    for _ in range(20):
        next(stream)
    epochs = -(-20 * batch_size // size)
    assert calls == [order.SMALL] * epochs


def test_a_large_set_is_enciphered_where_it_is_read(monkeypatch):
    real, calls = order._encipher, []

    def count(keys, half, x):
        calls.append(x.size)
        return real(keys, half, x)

    monkeypatch.setattr(order, "_encipher", count)
    order.shuffled(2**22, 0, 5, 1005)
    assert calls == [1000]
