"""Fields: the named parts of a condition. A new field type is one file here, a line in ``FIELDS``, and its embedding.

The embedding is registered in ``flowguide.networks.embed.EMBEDDINGS``.
"""

from __future__ import annotations

from typing import Any

from flowguide.errors import DataError
from flowguide.kinds import tuples
from flowguide.schema.fields.aligned import Aligned
from flowguide.schema.fields.class_map import ClassMap
from flowguide.schema.fields.field import Column, Field, Fields, blank, spec, value
from flowguide.schema.fields.known import Known, parse_row
from flowguide.schema.fields.label import Label
from flowguide.schema.fields.labels import Labels
from flowguide.schema.fields.series import Series
from flowguide.schema.fields.tokens import Tokens, encode, vocabulary
from flowguide.schema.fields.vector import Vector

FIELDS: dict[str, type[Field]] = {
    field.kind: field for field in (Label, Labels, Vector, Tokens, Series, Aligned, ClassMap, Known)
}


def field_of_column(column: Column, known: Field | None = None) -> Field:
    """Returns the field that holds a stored column.

    Args:
      column: of the data set.
      known: the field that a trained model has under this name, if any.

    Raises:
      DataError: if no field type can hold it.
    """
    for field in FIELDS.values():
        if (found := field.of_column(column, known)) is not None:
            return found
    raise DataError(
        f"got field {column.name!r} of dtype {column.dtype} and shape {column.shape}, expected a class label, a text, "
        "numbers, or an image or array on the axes of the example"
    )


def stored(fields: Fields) -> Fields:
    """Returns the fields that a data set stores: all but ``Known``, which training makes from the examples."""
    return {name: field for name, field in fields.items() if not isinstance(field, Known)}


def field_to_json(field: Field) -> dict[str, Any]:
    """Returns a field as JSON; ``field_from_json`` rebuilds it exactly."""
    return {"type": field.kind, **field.to_json()}


def field_from_json(content: dict[str, Any]) -> Field:
    """Rebuilds a field.

    Raises:
      KeyError, TypeError, ValueError: for an unknown type or settings that cannot be.
    """
    settings = {name: tuples(v) for name, v in content.items() if name != "type"}
    return FIELDS[content["type"]].from_json(settings)


__all__ = [
    "FIELDS",
    "Aligned",
    "ClassMap",
    "Column",
    "Field",
    "Fields",
    "Known",
    "Label",
    "Labels",
    "Series",
    "Tokens",
    "Vector",
    "blank",
    "encode",
    "field_from_json",
    "field_of_column",
    "field_to_json",
    "parse_row",
    "spec",
    "stored",
    "value",
    "vocabulary",
]
