"""Converts Flax NNX modules to pure functions. Elsewhere parameters are plain nested dicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
from flax import nnx

from flowguide.chain import Chain
from flowguide.condition import Condition
from flowguide.networks.layers import gathered
from flowguide.networks.perturbation import PLAIN, Perturbation, treatments
from flowguide.typing import Array, PRNGKey

Params: TypeAlias = dict[str, Any]
Apply: TypeAlias = Callable[[Params, Array, Array, Condition], Array]


def _no_blocks(perturbation: Perturbation) -> Apply:
    raise TypeError(f"this network has no blocks (no `attends`) to perturb; got {perturbation}: use another network")


class Ancestral(NamedTuple):
    """What a network knows for ancestral sampling; hashable.

    Attributes:
      chain: that it was trained on.
      velocity: (params, t, x, c) -> u and, as further channels, the range of the variance, float32 (B, *sides, 2C).
    """

    chain: Chain
    velocity: Apply


class Network(NamedTuple):
    """A velocity network as pure functions.

    Attributes:
      init: key -> params, nested dicts with string keys and float32 leaves.
      velocity: (params, t (B,), x (B, *D), c of batch B) -> u(t, x, c), float32 (B, *D).
      perturbed: perturbation -> the velocity of the weakened network, with the same arguments and params; ``velocity``
        itself if the perturbation changes nothing. Raises TypeError for a network without blocks, and ValueError for a
        perturbation that does not fit (see ``perturbation.treatments``).
      ancestral: of networks that also predict variances; None for all others.
    """

    init: Callable[[PRNGKey], Params]
    velocity: Apply
    perturbed: Callable[[Perturbation], Apply] = _no_blocks
    ancestral: Ancestral | None = None


class Pure(NamedTuple):
    """A module as pure functions.

    Attributes:
      init: key -> params, nested dicts with string keys and float32 leaves.
      method: name of a method -> the function (params, *arguments, **options) that it is.
      module: abstract; its parameters are shapes.
    """

    init: Callable[[PRNGKey], Params]
    method: Callable[[str], Callable[..., Any]]
    module: Any


def as_pure(make: Callable[[nnx.Rngs], nnx.Module]) -> Pure:
    """Returns the module that ``make`` builds as pure functions; allocates nothing until ``init`` is called.

    Args:
      make: rngs -> a module, all of whose state must be ``nnx.Param``. To scan over layers, ``stacked`` names the
        submodules whose parameters are stacked, and the scan's body calls ``layers.gathered`` on the parameters of a
        layer.

    Raises:
      TypeError: if the module has other state (running statistics, a stream of random numbers): its methods would not
        be functions of their arguments.
    """

    @jax.jit
    def split(key: PRNGKey) -> tuple[Any, Any]:
        return nnx.split(make(nnx.Rngs(key)))

    # Traced here, once: calls of ``init``, also those for shapes alone, reuse the trace.
    graphdef, state = jax.eval_shape(split, jax.random.key(0))
    module = nnx.merge(graphdef, state)
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

    def method(name: str) -> Callable[..., Any]:
        def function(params: Params, *arguments: Any, **options: Any) -> Any:
            leaves = [(path, leaf(params, path)) for path in paths]
            return getattr(nnx.merge(graphdef, nnx.from_flat_state(leaves)), name)(*arguments, **options)

        return function

    return Pure(init, method, module)


def as_network(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """Returns the network that ``make`` builds as pure functions; allocates nothing until ``init`` is called.

    Args:
      make: as for ``as_pure``; the call of its module is (t, x, c) -> u. To support perturbations, the call also takes
        the keyword ``perturbation``, and the tuple ``attends`` says for each block whether it has attention.

    Raises:
      TypeError: as ``as_pure``.
    """
    pure = as_pure(make)
    attends: tuple[bool, ...] | None = getattr(pure.module, "attends", None)
    velocity = pure.method("__call__")
    if attends is None:
        return Network(pure.init, velocity)

    def perturbed(perturbation: Perturbation) -> Apply:
        changes_nothing = set(treatments(perturbation, attends)) <= {PLAIN}
        return velocity if changes_nothing else partial(velocity, perturbation=perturbation)

    return Network(pure.init, velocity, perturbed)


def leaves_by_path(params: Params) -> dict[str, Any]:
    """Returns the leaves of ``params``, which may be abstract, by their paths, such as "blocks/out/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def count_parameters(params: Params) -> int:
    """Returns the number of scalars in ``params``, which may be abstract (``jax.eval_shape`` of an ``init``)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _look_up(params: Params, path: tuple[Any, ...]) -> Array:
    node: Any = params
    for key in path:
        node = node[str(key)]
    return node
