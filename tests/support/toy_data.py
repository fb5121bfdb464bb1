"""Made-up data for the made-up model."""

import numpy as np

from flowguide.build import Splits
from flowguide.data import Dataset
from flowguide.schema import Batch
from tests.support.toy import MODEL


def dataset(split, size, seed, info=MODEL.info):
    """Examples whose mean says their hat, and whose spread their beard."""
    rng = np.random.default_rng(seed)
    value = {name: rng.integers(0, 2, size).astype(np.int32) for name in info.fields}
    shift = 3.0 * value["hat"].reshape(-1, *(1,) * len(info.examples.stored_shape)) if "hat" in value else 0.0
    x = (rng.normal(size=(size, *info.examples.stored_shape)) + shift).astype(info.examples.dtype)
    return Dataset(info, split, "1", size, True, lambda i: Batch(x[i], {name: v[i] for name, v in value.items()}))


def data_of(info=MODEL.info, train=60, test=24):
    return Splits(dataset("train", train, 0, info), dataset("test", test, 1, info))
