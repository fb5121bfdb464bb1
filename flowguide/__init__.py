"""flowguide: conditional flow matching and guided sampling in JAX.

The rooms are imported when they are first used: ``flowguide.solvers.heun`` needs no more than
``import flowguide``, and neither Flax nor any data library.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0"

_ROOMS = (
    "analytic",
    "condition",
    "config",
    "couplings",
    "data",
    "errors",
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
)


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
