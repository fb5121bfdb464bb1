"""Compares values with type annotations: settings from files, arguments of functions; and writes their JSON."""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from flowguide.errors import UserError, shown

_Function = TypeVar("_Function", bound=Callable[..., Any])

_SINGULAR = {float: "a number", int: "a whole number", bool: "True or False", str: "text", Path: "a path"}
_PLURAL = {float: "numbers", int: "whole numbers", str: "texts"}


def parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a function, or a class, by name, with annotations evaluated to types if possible."""
    if inspect.isclass(make):
        make = make.__init__
    try:
        signature = inspect.signature(make, eval_str=True)
    except NameError:  # an annotation's import is under TYPE_CHECKING
        signature = inspect.signature(make)
    return dict(signature.parameters)


def checked(function: _Function) -> _Function:
    """Returns the function with a check of its arguments against its annotations, see ``check_values``."""

    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            bound = signature.bind(*arguments, **named).arguments
        except TypeError:  # of arguments that it does not take, which Python says itself
            return function(*arguments, **named)
        check_values(bound, types_of(function))
        return function(*arguments, **named)

    return call  # pyright: ignore[reportReturnType]


@functools.cache
def types_of(make: Callable[..., Any]) -> dict[str, Any]:
    """Returns the types of a function's arguments, or of a NamedTuple's attributes, by name."""
    return get_type_hints(make)


def check_values(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raises ``UserError`` for the first of some named values that is not of its type.

    It looks at numbers, texts, paths, and tuples of those; a 0-d array is a number.
    """
    for name, value in values.items():
        plain = value.item() if hasattr(value, "dtype") and getattr(value, "shape", None) == () else value
        if _is_plain(kinds[name]) and not fits(plain, kinds[name]):
            raise UserError(f"{name} takes {words(kinds[name])}; got {shown(value)}")


def _is_plain(kind: Any) -> bool:
    inner = [one for one in get_args(kind) if one is not Ellipsis]
    return all(map(_is_plain, inner)) if inner else kind in (*_SINGULAR, NoneType)


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
    if kind is Path:  # or an address
        return isinstance(value, os.PathLike)
    if origin not in (tuple, Sequence):
        return True
    if not isinstance(value, list | tuple):
        return False
    if origin is tuple and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(fits, value, inner))
    return all(fits(v, inner[0]) for v in value)


def words(kind: Any) -> str:
    """Returns the name of a type for messages."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join("None" if one is NoneType else words(one) for one in inner)
    if inner and inner[0] in _PLURAL:
        return (f"{len(inner)} " if origin is tuple and inner[-1] is not Ellipsis else "") + _PLURAL[inner[0]]
    return _SINGULAR.get(kind) or f"what fits {str(kind).replace('collections.abc.', '')}"


def tuples(value: Any) -> Any:
    """Returns a tree from JSON with tuples where JSON has lists."""
    if isinstance(value, dict):
        return {name: tuples(v) for name, v in value.items()}
    return tuple(tuples(v) for v in value) if isinstance(value, list | tuple) else value


def as_json(value: Any) -> str:
    """Returns JSON, in which numbers that are not finite become "inf" or "nan": JSON has no such numbers."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(v) for name, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
