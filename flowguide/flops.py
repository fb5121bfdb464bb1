"""How many floating-point operations a function does, counted in what JAX traces of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def flops(function: Callable, *arguments: Any) -> int:
    """Operations of all matrix products and convolutions, a multiplication and an addition counting as two.

    The body of a scan counts as often as it runs (in XLA's own ``cost_analysis`` it counts once), that of a while loop,
    whose length is not known, once, and of the branches of a conditional the dearest. What runs on each device of a
    ``shard_map`` counts for each of them, and what a convolution multiplies with its padding counts too. Elementwise
    operations are left out, as memory bounds them on accelerators, and so are products of ragged arrays and solvers.

    Args:
      function: any function of JAX; nothing of it is computed.
      arguments: trees of arrays or of ``jax.ShapeDtypeStruct``.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        # Between the elements of an input that is spread out are zeros, which no one multiplies.
        zeros = math.prod(params["lhs_dilation"])
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // features // zeros
    inner = [_of_jaxpr(jaxpr) for jaxpr in _jaxprs(params.values())]
    if name == "cond":
        return max(inner, default=0)
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"]) * sum(inner)
    return sum(inner)


def _jaxprs(values: Any) -> Iterator[Any]:
    """All that are among the parameters of an equation, open or closed."""
    for value in values:
        if hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)
