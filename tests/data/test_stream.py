"""The order of examples: a function of seed and epoch, shared out exactly, resumed exactly."""

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from flowguide.data import Dataset, batches, check_fingerprint, fingerprint, open_dataset
from flowguide.errors import DataError
from flowguide.schema import Batch, DataInfo, Vectors


def numbers(size=10, in_memory=True):
    """A data set whose examples are their own numbers."""
    info = DataInfo("numbers", Vectors(()), {})
    return Dataset(info, "train", "1.0.0", size, in_memory, lambda i: Batch(np.asarray(i), {}))


def take(iterator, count):
    return [next(iterator).x.tolist() for _ in range(count)]


def flat(rows):
    return [i for row in rows for i in row]


def test_seed_and_epoch_set_the_order():
    epochs = [flat(take(batches(numbers(), 5, seed), 6)) for seed in (0, 0, 1)]
    first, again, other = ([e[:10], e[10:20], e[20:]] for e in epochs)
    assert first == again
    assert all(sorted(epoch) == list(range(10)) for epoch in first)
    orders = first + other  # Grain's own reseeding would give seed 0, epoch 1 the order of seed 1, epoch 0
    assert len({tuple(order) for order in orders}) == len(orders)


@pytest.mark.parametrize("threads", [0, 1, 8])
def test_reading_ahead_does_not_change_the_order(threads):
    assert take(batches(numbers(100), 7, 3, threads=threads), 40) == take(batches(numbers(100), 7, 3), 40)


@pytest.mark.parametrize("count", [2, 5])
def test_processes_share_out_the_stream_of_a_single_one(count):
    alone = take(batches(numbers(40), 2 * count, 7), 12)
    shards = [take(batches(numbers(40), 2, 7, process_index=k, process_count=count), 12) for k in range(count)]
    assert [flat(parts) for parts in zip(*shards, strict=True)] == alone
    epoch = [flat(shard[: 40 // (2 * count)]) for shard in shards]
    assert sorted(flat(epoch)) == list(range(40))  # disjoint, and nothing left out


def test_the_order_on_disk():
    assert flat(take(batches(numbers(), 5, 0, shuffle=False), 4)) == [*range(10), *range(10)]


def test_ends():
    assert [b.x.size for b in batches(numbers(), 4, 0, epochs=1)] == [4, 4]
    rest = [b.x for b in batches(numbers(), 4, 0, epochs=1, drop_remainder=False)]
    assert [x.size for x in rest] == [4, 4, 2]
    assert sorted(np.concatenate(rest)) == list(range(10))
    lengths = [len(list(batches(numbers(), 2, 0, epochs=1, process_index=k, process_count=2))) for k in range(2)]
    assert lengths == [2, 2]  # of 5 batches: all processes must step equally often
    every = {"epochs": 1, "process_count": 3, "drop_remainder": False}
    parts = [b.x for k in range(3) for b in batches(numbers(), 3, 0, process_index=k, **every)]
    assert sorted(np.concatenate(parts)) == list(range(10))


def test_state_resumes_to_the_batch():
    stream = batches(numbers(), 3, 5)
    take(stream, 7)
    state = stream.get_state()
    expected = take(stream, 9)
    other = batches(numbers(), 3, 5)
    other.set_state(state)
    assert take(other, 9) == expected


@pytest.mark.thorough
@pytest.mark.parametrize("memory_limit", [0, 2**29])
def test_resume_through_orbax_is_bit_for_bit(data_dir, tmp_path, memory_limit):
    dataset = open_dataset("digits", data_dir=data_dir, memory_limit=memory_limit)
    assert dataset.in_memory == (memory_limit > 0)
    stream = batches(dataset, 128, 1)
    for _ in range(15):  # into the second epoch
        next(stream)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        saved = ocp.args.Composite(
            params=ocp.args.StandardSave({"w": np.ones(3)}), data=grain.checkpoint.CheckpointSave(stream)
        )
        manager.save(15, args=saved)
        manager.wait_until_finished()
        expected = [next(stream) for _ in range(12)]
    fresh = batches(dataset, 128, 1)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.restore(15, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh)))
    for batch in expected:
        resumed = next(fresh)
        np.testing.assert_array_equal(resumed.x, batch.x)
        np.testing.assert_array_equal(resumed.value["label"], batch.value["label"])


def test_a_position_of_other_data_is_noticed():
    stored = fingerprint(numbers(), 4, 0)
    check_fingerprint(stored, fingerprint(numbers(), 4, 0))
    for name, now in {
        "seed": fingerprint(numbers(), 4, 1),
        "batch_size": fingerprint(numbers(), 5, 0),
        "shuffle": fingerprint(numbers(), 4, 0, shuffle=False),
        "size": fingerprint(numbers(11), 4, 0),
    }.items():
        with pytest.raises(DataError, match=f"got data with {name}="):
            check_fingerprint(stored, now)
    with pytest.raises(DataError, match="got data with seed=0, expected None"):
        check_fingerprint({k: v for k, v in stored.items() if k != "seed"}, stored)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"process_index": 2, "process_count": 2}, "process_index=2"),
        ({"seed": -1}, "seed=-1"),
        ({"batch_size": 11, "epochs": 1}, "lower it"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(DataError, match=message):
        batches(numbers(), **({"batch_size": 2, "seed": 0} | settings))


def test_batches_are_never_views_of_the_data(data_dir):
    dataset = open_dataset("digits", data_dir=data_dir)
    batch = dataset.read(np.arange(4))
    before = batch.x.copy()
    batch.x[:] = 7
    np.testing.assert_array_equal(dataset.read(np.arange(4)).x, before)
