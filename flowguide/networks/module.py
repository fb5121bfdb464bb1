"""The one seam between Flax NNX and everything else: outside of it, parameters are plain nested dicts."""

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


def _without_blocks(perturbation: Perturbation) -> Apply:
    raise TypeError(f"this network has no blocks (no `attends`) to perturb; got {perturbation}")


class Network(NamedTuple):
    """A velocity network as pure functions.

    Attributes:
      init: key -> params, nested dicts with string keys and float32 leaves; one jitted program.
      velocity: (params, t (B,), x (B, *D), c of batch B) -> u(t, x, c), float32 (B, *D).
      perturbed: perturbation -> the velocity of the weakened twin, a function of the same arguments and the same
        params; ``velocity`` itself where the perturbation takes nothing. Raises TypeError for a network without
        blocks, and ValueError for a perturbation that does not fit (see ``perturbation.treatments``).
    """

    init: Callable[[PRNGKey], Params]
    velocity: Apply
    perturbed: Callable[[Perturbation], Apply] = _without_blocks


def as_network(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """The pure functions of the module that ``make`` builds; nothing is computed until ``init`` is called.

    Args:
      make: rngs -> a module whose call is (t, x, c) -> u. All its state must be ``nnx.Param``. One that can be
        perturbed also takes the keyword ``perturbation``, and has a tuple ``attends`` that tells for each block
        whether it has attention. One that scans over layers names the parts that hold their stacked parameters in
        ``stacked``, and calls ``layers.gathered`` on those of a layer.

    Raises:
      TypeError: if the module keeps other state (running statistics, a stream of random numbers): such a
        velocity would not be a function of its arguments.
    """
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    attends: tuple[bool, ...] | None = getattr(module, "attends", None)
    graphdef, state = nnx.split(module)
    variables = nnx.to_flat_state(state)
    other = ["/".join(map(str, path)) for path, variable in variables if not isinstance(variable, nnx.Param)]
    if other:
        raise TypeError(f"a velocity network may hold nnx.Param only; got other variables at {other}")
    stacked: tuple[str, ...] = getattr(module, "stacked", ())
    # Lists of modules have integers in their paths. Checkpoints want strings, so Params has only those.
    paths = [path for path, _ in variables]

    @jax.jit
    def init(key: PRNGKey) -> Params:
        params: Params = {}
        for path, variable in nnx.to_flat_state(nnx.state(make(nnx.Rngs(key)))):
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
        takes_nothing = set(treatments(perturbation, attends)) <= {PLAIN}
        return velocity if takes_nothing else function(perturbation=perturbation)

    return Network(init, velocity, perturbed)


def count_parameters(params: Params) -> int:
    """The number of scalars in ``params``, which may be abstract (``jax.eval_shape`` of an ``init``)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _look_up(params: Params, path: tuple[Any, ...]) -> Array:
    node: Any = params
    for key in path:
        node = node[str(key)]
    return node
