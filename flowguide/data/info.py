"""What a model must know about its data, and its JSON."""

from __future__ import annotations

from typing import Any, NamedTuple

from flowguide.condition import Field, Fields, Label, Tokens, Vector
from flowguide.data.errors import DataError

_KINDS: dict[str, type] = {"label": Label, "vector": Vector, "tokens": Tokens}


class DataInfo(NamedTuple):
    """What is kept beside a trained model, so that sampling never has to open the data set.

    Attributes:
      name: the TFDS name.
      shape: shape of one example, e.g. ``(16, 16, 3)`` or ``(2,)``.
      kind: ``"image"`` (uint8 in 0..255, which the model sees as floats in [-1, 1]) or ``"points"`` (float32).
      fields: what the condition of an example is made of.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    fields: Fields


def info_to_json(info: DataInfo) -> dict[str, Any]:
    """``info`` as a dict that ``json.dump`` takes; ``info_from_json`` brings it back exactly."""
    fields = {name: _field_to_json(field) for name, field in info.fields.items()}
    return {"name": info.name, "shape": list(info.shape), "kind": info.kind, "fields": fields}


def info_from_json(content: dict[str, Any]) -> DataInfo:
    """The inverse of ``info_to_json``.

    Raises:
      DataError: where a key is missing or a field is of no known type.
    """
    try:
        fields = {name: _field_from_json(field) for name, field in content["fields"].items()}
        return DataInfo(content["name"], tuple(content["shape"]), content["kind"], fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"got {content!r:.200}, expected what info_to_json wrote ({type(error).__name__}: {error}): "
            "restore the file from the run that wrote it"
        ) from error


def _field_to_json(field: Field) -> dict[str, Any]:
    (kind,) = (kind for kind, cls in _KINDS.items() if isinstance(field, cls))
    return {"type": kind, **field._asdict()}


def _field_from_json(content: dict[str, Any]) -> Field:
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items() if k != "type"}
    return _KINDS[content["type"]](**settings)
