"""Types shared by all packages of flowguide.

The protocols have positional-only arguments: any function or lambda of as many arguments matches, whatever their names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import jax

if TYPE_CHECKING:
    from flowguide.condition import Condition

Array: TypeAlias = jax.Array
PRNGKey: TypeAlias = jax.Array
PyTree: TypeAlias = Any
Device: TypeAlias = Any  # a jax.Device, which type checkers see as a variable


class Velocity(Protocol):
    """A velocity u(t, x) = dx/dt: t () or ``(B,)``, x ``(B, *D)`` -> ``(B, *D)``."""

    def __call__(self, t: Array, x: Array, /) -> Array: ...


class TreeVelocity(Protocol):
    """A velocity of any tree of arrays, which the solvers take too: t (), x -> dx/dt of the structure of x."""

    def __call__(self, t: Array, x: PyTree, /) -> PyTree: ...


class CondVelocity(Protocol):
    """A conditional velocity u(t, x, c): t ``(B,)``, x ``(B, *D)``, c of batch B -> ``(B, *D)``."""

    def __call__(self, t: Array, x: Array, c: Condition, /) -> Array: ...


class Rule(Protocol):
    """A guidance rule: t (), conditional velocity v at x, references (a tuple of velocities like v) -> guided v."""

    def __call__(self, t: Array, x: Array, v: Array, refs: tuple[Array, ...], /) -> Array: ...


class Schedule(Protocol):
    """A guidance schedule γ(t): t () or ``(B,)`` -> (), or ``(B,)`` if each sample has its own scale."""

    def __call__(self, t: Array, /) -> Array: ...
