"""Data: any TFDS data set as a resumable stream of batches, without TensorFlow. Importing it registers our own sets.

```python
dataset = open_dataset("avatars", "train")
for batch in batches(dataset, batch_size=128, seed=0):
    batch.x, batch.value
```
"""

from flowguide.data.builders import OURS
from flowguide.data.dataset import Batch, Dataset, describe_dataset, open_dataset
from flowguide.data.errors import DataError
from flowguide.data.info import DataInfo, info_from_json, info_to_json
from flowguide.data.pixels import to_image, to_model
from flowguide.data.preparing import prepare
from flowguide.data.stream import batches, check_fingerprint, fingerprint, numbers_of_batch
from flowguide.data.tokens import encode, vocabulary

__all__ = [
    "OURS",
    "Batch",
    "DataError",
    "DataInfo",
    "Dataset",
    "batches",
    "check_fingerprint",
    "describe_dataset",
    "encode",
    "fingerprint",
    "info_from_json",
    "info_to_json",
    "numbers_of_batch",
    "open_dataset",
    "prepare",
    "to_image",
    "to_model",
    "vocabulary",
]
