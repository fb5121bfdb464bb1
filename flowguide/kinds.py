"""Compares settings, which come from files that anyone may have edited, with type annotations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

_SINGULAR = {float: "a number", int: "a whole number", bool: "True or False", str: "text"}
_PLURAL = {float: "numbers", int: "whole numbers", str: "texts"}


def parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a function by name, with annotations evaluated to types if possible."""
    try:
        signature = inspect.signature(make, eval_str=True)
    except NameError:  # an annotation's import is under TYPE_CHECKING
        signature = inspect.signature(make)
    return dict(signature.parameters)


def kind_of(default: Any) -> Any:
    """Returns the type of a setting from its default; for a tuple ``Sequence`` of its first item's type (() of str)."""
    if isinstance(default, tuple):
        return Sequence[type(default[0])] if default else Sequence[str]
    return type(default)


def fits(value: Any, kind: Any) -> bool:
    """Returns whether a value has a type. A whole number is a number and a list is a tuple; True is not a number.

    Every value fits a type that is not handled here.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if kind is NoneType:
        return value is None
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return number and not (isinstance(value, Integral) and abs(int(value)) >= 2**63)
    if kind in (bool, str):
        return isinstance(value, kind)
    if origin not in (tuple, Sequence):
        return True
    if not isinstance(value, list | tuple):
        return False
    if origin is tuple and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(fits, value, inner))
    return all(fits(v, inner[0]) for v in value)


def words(kind: Any) -> str:
    """Returns the name of a type for messages."""
    inner = get_args(kind)
    if inner and inner[0] in _PLURAL:
        return (f"{len(inner)} " if get_origin(kind) is tuple else "") + _PLURAL[inner[0]]
    return _SINGULAR.get(kind) or f"what fits {str(kind).replace('collections.abc.', '')}"


def tuples(value: Any) -> Any:
    """Returns a tree from JSON with tuples where JSON has lists."""
    if isinstance(value, dict):
        return {name: tuples(v) for name, v in value.items()}
    return tuple(tuples(v) for v in value) if isinstance(value, list | tuple) else value
