"""Whether a network that flowguide did not make is one, found out by tracing it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flowguide.condition import Condition
from flowguide.errors import UserError, one_line, shown
from flowguide.networks.module import Network
from flowguide.schema import Fields, spec


def check_network(network: Any, shape: Sequence[int], fields: Fields, *, variance: bool = False) -> None:
    """Traces a network; computes nothing.

    Args:
      network: what the user gave.
      shape: of one example.
      fields: of the condition.
      variance: whether it also predicts variances, in as many further channels.

    Raises:
      UserError: if it is no ``Network``, fails, has no float parameters, or its velocity is not float32 of x's shape,
        or of twice as many channels with ``variance``.
    """
    if not isinstance(network, Network):
        raise UserError(
            f"network takes as_network(...) of an NNX module, or Network(init, velocity) of functions; got "
            f"{shown(network)}"
        )
    t, x, c = abstract_inputs(shape, fields, 2)
    params = _traced("init(key)", network.init, jax.eval_shape(lambda: jax.random.key(0)))
    leaves = jax.tree.leaves(params)
    if not leaves or not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise UserError(f"init(key) of the network returns {shown(params)}, expected a nested dict of float32 arrays")
    u = _traced("velocity(params, t, x, c)", network.velocity, params, t, x, c)
    expected = (*x.shape[:-1], x.shape[-1] * 2) if variance else x.shape
    if not isinstance(u, jax.ShapeDtypeStruct) or (u.shape, u.dtype) != (expected, x.dtype):
        got = f"{u.dtype} {u.shape}" if isinstance(u, jax.ShapeDtypeStruct) else shown(u)
        wanted = f"float32 {expected}, as its output has variances" if variance else "the same shape and dtype"
        raise UserError(
            f"velocity(params, t, x, c) of the network returns {got} for x float32 {x.shape}, expected {wanted}: "
            "change its last layer, or cast what it returns"
        )


def abstract_inputs(
    shape: Sequence[int], fields: Fields, batch: int
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct, Condition]:
    """Returns shapes and dtypes of t, x and c, to trace a velocity with."""
    like = partial(jax.ShapeDtypeStruct, (batch,))
    c = Condition({name: spec(field, batch) for name, field in fields.items()}, dict.fromkeys(fields, like(jnp.bool_)))
    return like(jnp.float32), jax.ShapeDtypeStruct((batch, *shape), jnp.float32), c


def _traced(what: str, function: Any, *arguments: Any) -> Any:
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:  # whatever the user's code raises
        raise UserError(
            f"{what} of the network fails ({type(error).__name__}: {one_line(error)}): try it on t (B,), x (B, *D) and "
            "a condition of batch B"
        ) from error
