"""What a model must know about its data, and its JSON."""

from __future__ import annotations

from typing import Any, NamedTuple

from flowguide.errors import DataError
from flowguide.schema.examples import Examples, examples_from_json, examples_to_json
from flowguide.schema.fields import Fields, field_from_json, field_to_json


class DataInfo(NamedTuple):
    """What is kept beside a trained model, so that sampling never opens the data set.

    Attributes:
      name: of the data set.
      examples: the kind of example, such as ``Images((16, 16, 3))``.
      fields: of the condition, by name.
    """

    name: str
    examples: Examples
    fields: Fields

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.examples.shape


def info_to_json(info: DataInfo) -> dict[str, Any]:
    """Returns ``info`` as a dict that ``json.dump`` takes; ``info_from_json`` rebuilds it exactly."""
    fields = {name: field_to_json(field) for name, field in info.fields.items()}
    return {"name": info.name, **examples_to_json(info.examples), "fields": fields}


def info_from_json(content: dict[str, Any]) -> DataInfo:
    """Rebuilds what ``info_to_json`` returned.

    Raises:
      DataError: if a key is missing, a type or kind is unknown, or a value has a wrong type or size.
    """
    try:
        name, fields = content["name"], content["fields"]
        if not isinstance(name, str):
            raise ValueError(f"name is {name!r:.60}, not a text")
        examples = examples_from_json({k: v for k, v in content.items() if k not in ("name", "fields")})
        return DataInfo(name, examples, {k: field_from_json(field) for k, field in fields.items()})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"got {content!r:.200}, expected what info_to_json wrote ({type(error).__name__}: {error}): "
            "restore the file from the run that wrote it"
        ) from error
