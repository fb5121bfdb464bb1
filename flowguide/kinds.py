"""Types of settings: settings come from files that anyone may have edited, and are compared with annotations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

_ONE = {float: "a number", int: "a whole number", bool: "True or False", str: "text"}
_MANY = {float: "numbers", int: "whole numbers", str: "texts"}


def parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function by name, with their annotations as types where these can be told."""
    try:
        signature = inspect.signature(make, eval_str=True)
    except NameError:  # annotated with what is imported for type checkers alone
        signature = inspect.signature(make)
    return dict(signature.parameters)


def kind_of(default: Any) -> Any:
    """The type of a setting with this default; those of a sequence are all alike, and texts where it is empty."""
    if isinstance(default, tuple):
        return Sequence[type(default[0])] if default else Sequence[str]
    return type(default)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type: a whole number is a number, a list is a tuple, True is neither.

    A type that is unknown here fits everything.
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
    """A type as a message names it."""
    inner = get_args(kind)
    if inner and inner[0] in _MANY:
        return (f"{len(inner)} " if get_origin(kind) is tuple else "") + _MANY[inner[0]]
    return _ONE.get(kind) or f"what fits {str(kind).replace('collections.abc.', '')}"
