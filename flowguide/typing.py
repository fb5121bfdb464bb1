"""Names for the shapes that pass between the rooms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

Array: TypeAlias = jax.Array
PRNGKey: TypeAlias = jax.Array
PyTree: TypeAlias = Any
Device: TypeAlias = Any  # a jax.Device, which type checkers see as a variable

# t () or (B,), x (B, *D) -> (B, *D)
Velocity: TypeAlias = Callable[[Array, Array], Array]
# t (B,), x (B, *D), c Condition of batch B -> (B, *D)
CondVelocity: TypeAlias = Callable[[Array, Array, Any], Array]
# t (), x, v, refs (a tuple of reference velocities, each like v) -> guided v
Rule: TypeAlias = Callable[[Array, Array, Array, tuple[Array, ...]], Array]
# t -> gamma (), or (B,) for a scale of each sample's own
Schedule: TypeAlias = Callable[[Array], Array]
