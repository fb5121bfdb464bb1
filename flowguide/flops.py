"""Counts the floating-point operations of a function from its jaxpr."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

# Products of (queries x keys) by the size of a head in cuDNN's attention, which has no jaxpr: two forwards; backwards
# the logits again and the gradients of weights, queries, keys and values (Dao et al. 2022, Algorithm 4).
CUDNN_PRODUCTS = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}


def flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Returns the operations of all matrix products and convolutions; a multiply-add counts as two.

    The body of a scan counts once per iteration (XLA's ``cost_analysis`` counts it once). The body of a while loop,
    whose length is unknown, counts once. A conditional counts as its most expensive branch. The body of a ``shard_map``
    counts once per device. cuDNN's attention counts as its products. Multiplications with a convolution's padding count
    too. Elementwise operations do not count, as they are memory-bound on accelerators; nor do ragged products and
    linear solvers.

    Args:
      function: any JAX function; it is traced but not executed.
      arguments: trees of arrays or of ``jax.ShapeDtypeStruct``.
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _jaxpr_flops(jaxpr: Any) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        # Input dilation inserts zeros, which are not multiplied.
        zeros = math.prod(params["lhs_dilation"])
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // features // zeros
    if name in CUDNN_PRODUCTS:
        batch, queries, heads, size = equation.invars[0].aval.shape
        return CUDNN_PRODUCTS[name] * 2 * batch * queries * equation.invars[1].aval.shape[1] * heads * size
    inner = [_jaxpr_flops(jaxpr) for jaxpr in _inner_jaxprs(params.values())]
    if name == "cond":
        return max(inner, default=0)
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"]) * sum(inner)
    return sum(inner)


def _inner_jaxprs(values: Any) -> Iterator[Any]:
    """Yields all jaxprs, open or closed, among the parameters of an equation."""
    for value in values:
        if hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif isinstance(value, tuple | list):
            yield from _inner_jaxprs(value)
