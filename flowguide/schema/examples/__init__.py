"""Kinds of example. A new kind is one file here, a line in ``EXAMPLES``, and how the data room reads it.

The reader is registered in ``flowguide.data.readers.READERS``.
"""

from __future__ import annotations

from typing import Any

from flowguide.kinds import tuples
from flowguide.schema.examples.example import Examples, example_spec, mirrored_where
from flowguide.schema.examples.images import Images, to_floats, to_pixels
from flowguide.schema.examples.latents import Latents, as_stored
from flowguide.schema.examples.records import Records
from flowguide.schema.examples.vectors import Vectors

EXAMPLES: dict[str, type[Examples]] = {examples.kind: examples for examples in (Images, Vectors, Records, Latents)}


def examples_to_json(examples: Examples) -> dict[str, Any]:
    """Returns a kind of example as JSON; ``examples_from_json`` rebuilds it exactly."""
    return {"kind": examples.kind, **examples.to_json()}


def examples_from_json(content: dict[str, Any]) -> Examples:
    """Rebuilds a kind of example.

    Raises:
      KeyError, TypeError, ValueError: for an unknown kind or settings that cannot be.
    """
    if content["kind"] not in EXAMPLES:
        raise ValueError(f"kind is {content['kind']!r:.60}, not {' or '.join(EXAMPLES)}")
    settings = {name: tuples(v) for name, v in content.items() if name != "kind"}
    return EXAMPLES[content["kind"]].from_json(settings)


__all__ = [
    "EXAMPLES",
    "Examples",
    "Images",
    "Latents",
    "Records",
    "Vectors",
    "as_stored",
    "example_spec",
    "examples_from_json",
    "examples_to_json",
    "mirrored_where",
    "to_floats",
    "to_pixels",
]
