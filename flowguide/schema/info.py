"""What a model must know about its data, and its JSON."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowguide.condition import Condition
from flowguide.errors import DataError
from flowguide.schema.examples import Examples, Latents, examples_from_json, examples_to_json
from flowguide.schema.fields import Fields, Known, field_from_json, field_to_json

KNOWN = "known"  # name of the field with the known part of an example


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
        """Shape of one example, as a user gets it."""
        return self.examples.shape

    @property
    def model_shape(self) -> tuple[int, ...]:
        """Shape of one example, as the network sees it."""
        return self.examples.model_shape


def with_known(info: DataInfo) -> DataInfo:
    """Returns ``info`` with a field "known", by which a model completes any part of an example from any other.

    Raises:
      DataError: if the data have a field of that name, or the network does not see the parts of examples.
    """
    if isinstance(info.examples, Latents):
        raise DataError(
            f"got the latents of {info.name}, of which no part is known from a part of the image: leave "
            "known out, or train on the images"
        )
    if KNOWN in info.fields:
        raise DataError(f"got a field called {KNOWN!r} in {info.name}, as the known part of the example: rename it")
    return info._replace(fields={**info.fields, KNOWN: Known(info.examples)})


def output(info: DataInfo, x: Any, c: Condition) -> Any:
    """Converts what the network draws to what a user gets, with the known part of each sample as it was given.

    Latents stay latents: ``Model.output`` decodes them.

    Args:
      info: of the model.
      x: drawn under c, ``(B, *D)``, or ``(B, K, *D)`` with K draws for each condition; NumPy or JAX arrays.
      c: the condition, batch ``B``.
    """
    x = info.examples.to_output(x)
    for name, field in info.fields.items():
        if isinstance(field, Known):
            value, present = c.value[name], c.present[name]
            if x.ndim > value.ndim:
                value = value[:, None]
            given = present.reshape(-1, *(1,) * (x.ndim - 1)) & (value == value)  # NaN is not equal to itself
            x = (jnp if isinstance(x, jax.Array) else np).where(given, value, x).astype(x.dtype)
    return x


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
