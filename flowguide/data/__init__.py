"""Reads any TFDS data set as a resumable stream of batches, without TensorFlow. Importing it registers our own sets.

```python
dataset = open_dataset("avatars", "train")
for batch in batches(dataset, batch_size=128, seed=0):
    batch.x, batch.value
```
"""

from flowguide.data.builders import OURS
from flowguide.data.dataset import Dataset, describe_dataset, open_dataset
from flowguide.data.embedding import embed
from flowguide.data.encoding import encode
from flowguide.data.files import is_path, open_path, tables_of
from flowguide.data.importing import import_path
from flowguide.data.preparing import prepare
from flowguide.data.stream import batches, check_fingerprint, fingerprint, numbers_of_batch
from flowguide.data.tables import Table, describe_table, of_arrays, open_table

__all__ = [
    "OURS",
    "Dataset",
    "Table",
    "batches",
    "check_fingerprint",
    "describe_dataset",
    "describe_table",
    "embed",
    "encode",
    "fingerprint",
    "import_path",
    "is_path",
    "numbers_of_batch",
    "of_arrays",
    "open_dataset",
    "open_path",
    "open_table",
    "prepare",
    "tables_of",
]
