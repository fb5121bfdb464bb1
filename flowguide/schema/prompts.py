"""Prompts: conditions as text, ``hat=red,glasses=none``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowguide.condition import Condition
from flowguide.errors import UserError, hint, listed, shown
from flowguide.schema.fields import Fields, Known, blank


def parse(prompt: str, fields: Fields) -> dict[str, np.ndarray]:
    """Returns the value of each field that a prompt names; the fields it leaves out are ∅.

    A prompt is ``name=value`` pairs, separated by commas. A label's value is its name or number; a vector's is numbers
    separated by spaces; a caption's is words. If there is one field, or one besides ``known``, the value alone is
    enough.

    Raises:
      UserError: for an unknown field or value; lists the known ones.
    """
    found: dict[str, np.ndarray] = {}
    # A comma starts a new field only if a name and "=" follow, so that captions may have commas. A name of a column may
    # have spaces in it; any other word may be a name that is misspelt.
    names = "|".join(map(re.escape, fields))
    for part in re.split(rf",(?=\s*(?:\w+|{names})\s*=)", prompt) if prompt.strip() else []:
        name, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals:
            name, text = _only(part.strip(), fields), part.strip()
        check_name(name, fields)
        if name in found:
            raise UserError(f"field {name!r} is given twice in {shown(prompt)}: give it once")
        found[name] = fields[name].parse(name, text)
    return found


def condition(prompts: Sequence[str], fields: Fields) -> Condition:
    """Returns the condition of a batch, one prompt an example, as NumPy arrays.

    Raises:
      UserError: as ``parse``.
    """
    parsed = [parse(prompt, fields) for prompt in prompts]
    value = {name: np.stack([p.get(name, blank(field)) for p in parsed]) for name, field in fields.items()}
    present = {name: np.array([name in p for p in parsed]) for name in fields}
    return Condition(value, present)


def describe(value: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray], fields: Fields, i: int) -> str:
    """Returns example ``i`` of a condition as a prompt; leaves vectors out."""
    texts = {name: field.text(value[name][i]) for name, field in fields.items() if present[name][i]}
    return ",".join(f"{name}={text}" for name, text in texts.items() if text is not None)


def check_name(name: Any, fields: Fields) -> None:
    """Raises ``UserError`` if there is no such field."""
    if not fields:
        raise UserError(f"got a condition on {name!r}, and the data have no fields: leave it out")
    if name not in fields:
        raise UserError(f"unknown field {shown(name)}{hint(str(name), fields)}: there are {listed(fields)}")


def _only(got: str, fields: Fields) -> str:
    """The name of the one field, for a value without a name."""
    if not fields:
        raise UserError(f"got {shown(got)}, and the data have no fields: leave the condition out")
    names = [name for name, field in fields.items() if not isinstance(field, Known)] or list(fields)
    if len(names) > 1:
        raise UserError(f"got {shown(got)}, expected name=value with a name of {listed(fields)}")
    return names[0]
