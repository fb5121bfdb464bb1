"""What a model must know about its data, and its JSON."""

from __future__ import annotations

import math
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
      DataError: where a key is missing, a field is of no known type, or a value is not of its type or size.
    """
    try:
        fields = {name: _field_from_json(field) for name, field in content["fields"].items()}
        info = DataInfo(content["name"], tuple(content["shape"]), content["kind"], fields)
        _check(isinstance(info.name, str), "name", info.name, "a text")
        _check(info.kind in ("image", "points"), "kind", info.kind, "image or points")
        sized = all(_whole(n, 1) for n in info.shape) and math.prod(info.shape) < 2**31
        _check(sized, "shape", info.shape, "whole numbers of 1 or more, of a product below 2^31")
        _check(len(info.shape) == 3 or info.kind != "image", "shape", info.shape, "height, width, channels")
        return info
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"got {content!r:.200}, expected what info_to_json wrote ({type(error).__name__}: {error}): "
            "restore the file from the run that wrote it"
        ) from error


def _field_to_json(field: Field) -> dict[str, Any]:
    (kind,) = (kind for kind, cls in _KINDS.items() if isinstance(field, cls))
    return {"type": kind, **field._asdict()}


def _field_from_json(content: dict[str, Any]) -> Field:
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items() if k != "type"}
    for name, value in settings.items():
        if name in ("values", "words"):
            _check(isinstance(value, tuple) and all(isinstance(v, str) for v in value), name, value, "a list of texts")
        else:
            _check(_whole(value, 0 if name == "length" else 1), name, value, "a whole number, below 2^31")
    return _KINDS[content["type"]](**settings)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31


def _check(fine: bool, what: str, got: Any, expected: str) -> None:
    if not fine:
        raise ValueError(f"{what} is {got!r:.60}, not {expected}")
