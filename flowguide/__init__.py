"""flowguide: conditional flow matching and guided sampling in JAX.

``fit`` trains a model on your arrays or files, and ``load`` finds it again. Everything else is in rooms, which are
imported when they are first used: ``flowguide.solvers.heun`` needs no more than
``import flowguide``, and neither Flax nor any data library.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = (
    "analytic",
    "condition",
    "config",
    "convert",
    "couplings",
    "data",
    "errors",
    "evaluation",
    "fitting",
    "guidance",
    "likelihood",
    "losses",
    "metrics",
    "model",
    "networks",
    "paths",
    "pictures",
    "sampling",
    "schema",
    "solvers",
    "targets",
    "tilted",
    "times",
    "training",
    "typing",
    "weights",
)


# The front door: function -> the module it is in.
_DOORS = {"fit": "fitting", "load": "sampling"}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _DOORS:
        return getattr(importlib.import_module(f"{__name__}.{_DOORS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS, *_DOORS])
