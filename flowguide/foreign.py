"""Code outside of flowguide that a config, a run or a command names: ``package.module:name``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from flowguide.errors import UserError


def is_foreign(name: str) -> bool:
    """Returns whether a name is that of code outside of flowguide, ``package.module:Class``."""
    return ":" in name


def imported(what: str, name: str, kind: str = "Class") -> Callable[..., Any]:
    """Imports the class or function that a name stands for.

    Args:
      what: the name is of, for messages: "network".
      name: ``package.module:Class``.
      kind: "Class" or "function", for messages.

    Raises:
      UserError: if there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{what} {name!r:.100} cannot be imported ({error}): give package.module:{kind} of a package that Python "
            "finds from here"
        ) from error
    if not callable(found):
        raise UserError(f"{what} {name!r:.100} is of type {type(found).__name__}: give package.module:{kind}")
    return found
