"""Whether a network that flowguide did not make is one, found out by tracing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flowguide.condition import Condition
from flowguide.errors import UserError, one_line, shown
from flowguide.networks.module import Network
from flowguide.schema import Fields, spec


def check_network(network: Any, shape: Sequence[int], fields: Fields) -> None:
    """Traces a network; computes nothing.

    Args:
      network: what the user gave.
      shape: of one example.
      fields: of the condition.

    Raises:
      UserError: if it is no ``Network``, fails, has no float parameters, or its velocity is not float32 of x's shape.
    """
    if not isinstance(network, Network):
        raise UserError(
            f"network takes as_network(...) of an NNX module, or Network(init, velocity) of functions; got "
            f"{shown(network)}"
        )
    like, batch = jax.ShapeDtypeStruct, 2
    x, present = like((batch, *shape), jnp.float32), like((batch,), jnp.bool_)
    c = Condition({name: spec(field, batch) for name, field in fields.items()}, dict.fromkeys(fields, present))
    params = _traced("init(key)", network.init, jax.eval_shape(lambda: jax.random.key(0)))
    leaves = jax.tree.leaves(params)
    if not leaves or not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise UserError(f"init(key) of the network returns {shown(params)}, expected a nested dict of float32 arrays")
    u = _traced("velocity(params, t, x, c)", network.velocity, params, like((batch,), jnp.float32), x, c)
    if not isinstance(u, like) or (u.shape, u.dtype) != (x.shape, x.dtype):
        got = f"{u.dtype} {u.shape}" if isinstance(u, like) else shown(u)
        raise UserError(
            f"velocity(params, t, x, c) of the network returns {got} for x float32 {x.shape}, expected the same shape "
            "and dtype: change its last layer, or cast what it returns"
        )


def _traced(what: str, function: Any, *arguments: Any) -> Any:
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:  # whatever the user's code raises
        raise UserError(
            f"{what} of the network fails ({type(error).__name__}: {one_line(error)}): try it on t (B,), x (B, *D) and "
            "a condition of batch B"
        ) from error
