"""What data and conditions are: fields, kinds of example, prompts. Needs only jax and numpy.

Each type knows its own dtype, shape, parsing, JSON and conversions, so that data, networks and sampling need not ask
which types there are.
"""

from flowguide.schema.batch import Batch
from flowguide.schema.conditions import Cond, conditions, negative_list
from flowguide.schema.examples import Examples, Images, Latents, Records, Vectors, example_spec, to_floats, to_pixels
from flowguide.schema.fields import (
    Aligned,
    ClassMap,
    Column,
    Field,
    Fields,
    Known,
    Label,
    Labels,
    Series,
    Tokens,
    Vector,
    blank,
    encode,
    field_of_column,
    parse_row,
    spec,
    stored,
    vocabulary,
)
from flowguide.schema.info import KNOWN, DataInfo, info_from_json, info_to_json, output, with_known
from flowguide.schema.prompts import condition, describe, parse

__all__ = [
    "KNOWN",
    "Aligned",
    "Batch",
    "ClassMap",
    "Column",
    "Cond",
    "DataInfo",
    "Examples",
    "Field",
    "Fields",
    "Images",
    "Known",
    "Label",
    "Labels",
    "Latents",
    "Records",
    "Series",
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
    "output",
    "parse",
    "parse_row",
    "spec",
    "stored",
    "to_floats",
    "to_pixels",
    "vocabulary",
    "with_known",
]
