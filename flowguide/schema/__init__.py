"""What data and conditions are: fields, kinds of example, prompts. Needs only jax and numpy.

Each type knows its own dtype, shape, parsing, JSON and conversions, so that data, networks and sampling need not ask
which types there are.
"""

from flowguide.schema.batch import Batch
from flowguide.schema.conditions import Cond, conditions, negative_list
from flowguide.schema.examples import Examples, Images, Vectors, example_spec, to_floats, to_pixels
from flowguide.schema.fields import (
    Column,
    Field,
    Fields,
    Label,
    Tokens,
    Vector,
    blank,
    encode,
    field_of_column,
    spec,
    vocabulary,
)
from flowguide.schema.info import DataInfo, info_from_json, info_to_json
from flowguide.schema.prompts import condition, describe, parse

__all__ = [
    "Batch",
    "Column",
    "Cond",
    "DataInfo",
    "Examples",
    "Field",
    "Fields",
    "Images",
    "Label",
    "Tokens",
    "Vector",
    "Vectors",
    "blank",
    "condition",
    "conditions",
    "describe",
    "encode",
    "example_spec",
    "field_of_column",
    "info_from_json",
    "info_to_json",
    "negative_list",
    "parse",
    "spec",
    "to_floats",
    "to_pixels",
    "vocabulary",
]
