"""Prompts: conditions as text, ``hat=red,glasses=none``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
            name, text = _only(part.strip(), fields), part.strip()
        check_name(name, fields)
        if name in found:
            raise UserError(f"field {name!r} is given twice in {prompt!r}: give it once")
        found[name] = value(name, text, fields[name])
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


def value(name: str, given: Any, field: Field) -> np.ndarray:
    """One value of a field: from text, as in a prompt, or from a number or an array of the field's shape.

    Raises:
      UserError: for an unknown value, another shape, or numbers that are out of range or not finite.
    """
    if isinstance(given, str | np.str_):
        return _from_text(name, str(given), field)
    like = blank(field)
    try:
        a = np.asarray(given)
    except (ValueError, TypeError):
        a = np.asarray(None)
    whole = np.issubdtype(a.dtype, np.integer)
    if a.shape != like.shape or not (whole or (isinstance(field, Vector) and np.issubdtype(a.dtype, np.floating))):
        raise UserError(f"field {name!r} takes {_takes(field)}; got {given!r}")
    check_range(name, a, field)
    return a.astype(like.dtype)


def check_range(name: str, a: np.ndarray, field: Field) -> None:
    """Raises ``UserError`` where numbers are no values of the field."""
    match field:
        case Label(values=known) | Tokens(words=known):
            if not ((a >= 0) & (a < len(known))).all():
                raise UserError(f"field {name!r} takes {_takes(field)}; got {a[(a < 0) | (a >= len(known))].flat[0]}")
        case Vector():
            if not np.isfinite(_float32(a)).all():
                raise UserError(f"field {name!r} takes {_takes(field)}; got {a}")


def check_name(name: Any, fields: Fields) -> None:
    """Raises ``UserError`` where there is no such field."""
    if not fields:
        raise UserError(f"got a condition on {name!r}, and the data have no fields: leave it out")
    if name not in fields:
        raise UserError(f"unknown field {name!r}{hint(str(name), fields)}: there are {listed(fields)}")


def hint(word: str, known: Iterable[str]) -> str:
    """ ", did you mean 'hat'?" where a known word is near; otherwise empty."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f", did you mean {near[0]!r}?" if near else ""


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names, separated by commas; of very many the first."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _only(got: str, fields: Fields) -> str:
    """The name of the one field, for a value without a name."""
    if not fields:
        raise UserError(f"got {got!r}, and the data have no fields: leave the condition out")
    if len(fields) > 1:
        raise UserError(f"got {got!r}, expected name=value with a name of {listed(fields)}")
    return next(iter(fields))


def _float32(numbers: Any) -> np.ndarray:
    """Numbers as float32, infinite where they are too large for it."""
    with np.errstate(over="ignore"):
        return np.asarray(numbers).astype(np.float32)


def _takes(field: Field) -> str:
    match field:
        case Label(values=values):
            return f"a name or a number from 0 to {len(values) - 1}"
        case Vector(size=size):
            return f"{size} finite numbers"
        case Tokens(length=length, words=words):
            return f"words, or {length} numbers from 0 to {len(words) - 1}"


def _from_text(name: str, text: str, field: Field) -> np.ndarray:
    match field:
        case Label(values=values):
            if text in values:
                return np.array(values.index(text), np.int32)
            # Python does not convert thousands of digits, and no label has ten.
            if text.isdecimal() and len(text) < 10 and int(text) < len(values):
                return np.array(int(text), np.int32)
            raise UserError(f"unknown value {text!r:.100} of {name!r}{hint(text, values)}: there are {listed(values)}")
        case Vector(size=size):
            try:
                numbers = _float32([float(word) for word in text.split()])
            except ValueError:
                raise UserError(f"field {name!r} takes {size} numbers separated by spaces; got {text!r:.100}") from None
            if numbers.size != size or not np.isfinite(numbers).all():
                raise UserError(f"field {name!r} takes {_takes(field)}; got {text!r:.100}")
            return numbers
        case Tokens():
            return encode(text, field)
