"""Prompts: conditions as text, ``hat=red,glasses=none``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from flowguide.condition import Condition, Field, Fields, Label, Tokens, Vector
from flowguide.data.tokens import encode
from flowguide.errors import UserError

# A comma starts a new field only if a name and "=" follow, so that captions may have commas.
_SEPARATOR = re.compile(r",(?=\s*\w+\s*=)")


def parse(prompt: str, fields: Fields) -> dict[str, np.ndarray]:
    """The fields that a prompt names, each with its value; what it leaves out is ∅.

    ``name=value`` pairs, separated by commas. A label's value is its name or its number; a vector's is numbers
    separated by spaces; a caption's is words. With a single field the value alone will do.

    Raises:
      UserError: for an unknown field or value, naming those that there are.
    """
    found: dict[str, np.ndarray] = {}
    for part in _SEPARATOR.split(prompt) if prompt.strip() else []:
        name, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals:
            if len(fields) != 1:
                raise UserError(f"got {part.strip()!r}, expected name=value with a name of {_list(fields)}")
            (name,), text = fields, part.strip()
        if name not in fields:
            raise UserError(f"unknown field {name!r}{_hint(name, fields)}: there are {_list(fields)}")
        if name in found:
            raise UserError(f"field {name!r} is given twice in {prompt!r}: give it once")
        found[name] = _value(name, text, fields[name])
    return found


def condition(prompts: Sequence[str], fields: Fields) -> Condition:
    """The condition of a batch, one prompt an example; its arrays are NumPy's.

    Raises:
      UserError: as ``parse``.
    """
    parsed = [parse(prompt, fields) for prompt in prompts]
    value = {
        name: np.stack([p.get(name, np.zeros_like(blank(field))) for p in parsed]) for name, field in fields.items()
    }
    present = {name: np.array([name in p for p in parsed]) for name in fields}
    return Condition(value, present)


def blank(field: Field) -> np.ndarray:
    """A value of the field's shape and type, for where it is absent."""
    match field:
        case Label():
            return np.zeros((), np.int32)
        case Vector(size=size):
            return np.zeros(size, np.float32)
        case Tokens(length=length):
            return np.zeros(length, np.int32)


def describe(value: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray], fields: Fields, i: int) -> str:
    """Example ``i`` of a condition as a prompt; vectors are left out of it."""
    parts = []
    for name, field in fields.items():
        if present[name][i]:
            if isinstance(field, Label):
                parts.append(f"{name}={field.values[int(value[name][i])]}")
            elif isinstance(field, Tokens):
                parts.append(f"{name}=" + " ".join(field.words[int(k)] for k in value[name][i] if k))
    return ",".join(parts)


def _value(name: str, text: str, field: Field) -> np.ndarray:
    match field:
        case Label(values=values):
            if text in values:
                return np.array(values.index(text), np.int32)
            if text.isdecimal() and int(text) < len(values):
                return np.array(int(text), np.int32)
            raise UserError(f"unknown value {text!r} of {name!r}{_hint(text, values)}: there are {_list(values)}")
        case Vector(size=size):
            try:
                numbers = np.array([float(word) for word in text.split()], np.float32)
            except ValueError:
                raise UserError(f"field {name!r} takes {size} numbers separated by spaces; got {text!r}") from None
            if numbers.size != size or not np.isfinite(numbers).all():
                raise UserError(f"field {name!r} takes {size} finite numbers; got {text!r}")
            return numbers
        case Tokens():
            return encode(text, field)


def _hint(word: str, known: Sequence[str] | Fields) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f", did you mean {near[0]!r}?" if near else ""


def _list(names: Sequence[str] | Fields, most: int = 20) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
