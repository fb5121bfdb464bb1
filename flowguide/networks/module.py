"""Converts Flax NNX modules to pure functions. Elsewhere parameters are plain nested dicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
from flax import nnx

from flowguide.condition import Condition
from flowguide.networks.layers import gathered
from flowguide.networks.perturbation import PLAIN, Perturbation, treatments
from flowguide.typing import Array, PRNGKey

Params: TypeAlias = dict[str, Any]
Apply: TypeAlias = Callable[[Params, Array, Array, Condition], Array]


def _no_blocks(perturbation: Perturbation) -> Apply:
    raise TypeError(f"this network has no blocks (no `attends`) to perturb; got {perturbation}: use another network")


class Network(NamedTuple):
    """A velocity network as pure functions.

    Attributes:
      init: key -> params, nested dicts with string keys and float32 leaves.
      velocity: (params, t (B,), x (B, *D), c of batch B) -> u(t, x, c), float32 (B, *D).
      perturbed: perturbation -> the velocity of the weakened network, with the same arguments and params; ``velocity``
        itself if the perturbation changes nothing. Raises TypeError for a network without blocks, and ValueError for a
        perturbation that does not fit (see ``perturbation.treatments``).
    """

    init: Callable[[PRNGKey], Params]
    velocity: Apply
    perturbed: Callable[[Perturbation], Apply] = _no_blocks


def as_network(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """Returns the module that ``make`` builds as pure functions; allocates nothing until ``init`` is called.

    Args:
      make: rngs -> a module whose call is (t, x, c) -> u. All its state must be ``nnx.Param``. To support
        perturbations, the call also takes the keyword ``perturbation``, and the tuple ``attends`` says for each block
        whether it has attention. To scan over layers, ``stacked`` names the submodules whose parameters are stacked,
        and the scan's body calls ``layers.gathered`` on the parameters of a layer.

    Raises:
      TypeError: if the module has other state (running statistics, a stream of random numbers): its velocity would not
        be a function of its arguments.
    """

    @jax.jit
    def split(key: PRNGKey) -> tuple[Any, Any]:
        return nnx.split(make(nnx.Rngs(key)))

    # Traced here, once: calls of ``init``, also those for shapes alone, reuse the trace.
    graphdef, state = jax.eval_shape(split, jax.random.key(0))
    module = nnx.merge(graphdef, state)
    attends: tuple[bool, ...] | None = getattr(module, "attends", None)
    variables = nnx.to_flat_state(state)
    other = ["/".join(map(str, path)) for path, variable in variables if not isinstance(variable, nnx.Param)]
    if other:
        raise TypeError(f"a velocity network may hold nnx.Param only; got other variables at {other}: remove them")
    stacked: tuple[str, ...] = getattr(module, "stacked", ())
    # Paths through lists of modules contain integers. Checkpoints need strings, so Params has only those.
    paths = [path for path, _ in variables]

    def init(key: PRNGKey) -> Params:
        params: Params = {}
        for path, variable in nnx.to_flat_state(split(key)[1]):
            *parents, leaf = map(str, path)
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = variable[...]
        return params

    def leaf(params: Params, path: tuple[Any, ...]) -> Array:
        found = _look_up(params, path)
        return found if path[0] in stacked else gathered(found)

    def function(**options: Perturbation) -> Apply:
        def velocity(params: Params, t: Array, x: Array, c: Condition) -> Array:
            leaves = [(path, leaf(params, path)) for path in paths]
            return nnx.merge(graphdef, nnx.from_flat_state(leaves))(t, x, c, **options)

        return velocity

    velocity = function()
    if attends is None:
        return Network(init, velocity)

    def perturbed(perturbation: Perturbation) -> Apply:
        changes_nothing = set(treatments(perturbation, attends)) <= {PLAIN}
        return velocity if changes_nothing else function(perturbation=perturbation)

    return Network(init, velocity, perturbed)


def count_parameters(params: Params) -> int:
    """Returns the number of scalars in ``params``, which may be abstract (``jax.eval_shape`` of an ``init``)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _look_up(params: Params, path: tuple[Any, ...]) -> Array:
    node: Any = params
    for key in path:
        node = node[str(key)]
    return node
