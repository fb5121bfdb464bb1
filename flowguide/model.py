"""A model: a velocity network, its parameters, and what guidance it knows.

Training, planning, previews, sampling and export all start from ``from_config``.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from flowguide import build, paths
from flowguide.config import Config, resolve
from flowguide.errors import UserError
from flowguide.networks import Network, as_network
from flowguide.schema import DataInfo
from flowguide.typing import PyTree


class Plain(NamedTuple):
    """The network holds u(t, x, c) and u(t, x, ∅); references guide it."""


class NoNull(NamedTuple):
    """Conditions were never dropped in training: ∅ means nothing."""


class GammaConditioned(NamedTuple):
    """The network takes γ, for which it was trained in [low, high], and is the guided velocity of that γ."""

    low: float
    high: float


class Guided(NamedTuple):
    """The network is the guided velocity of one γ."""

    gamma: float


Guidance: TypeAlias = Plain | NoNull | GammaConditioned | Guided


class Model(NamedTuple):
    """A trained velocity, or one to be trained.

    Attributes:
      info: what the network was trained on.
      network: its pure functions.
      params: averaged parameters; None before training.
      path: the probability path it was trained on.
      guidance: what guidance it knows.
      step: of training, at which the parameters were saved.
    """

    info: DataInfo
    network: Network
    params: PyTree
    path: paths.Path
    guidance: Guidance = Plain()
    step: int = 0


def from_config(config: Config, info: DataInfo) -> Model:
    """Returns the model that a config describes, without parameters.

    For the task "classifier" the network gives logits.

    Args:
      config: complete (``config.complete``).
      info: of the data.

    Raises:
      UserError: for settings that cannot be, or a network that does not take such data.
    """
    target = build.target(config)
    if target.gammas is not None:
        guidance = GammaConditioned(*target.gammas)
    elif target.guided is not None:
        guidance = Guided(target.guided)
    else:
        guidance = Plain() if config.drop_rate > 0 else NoNull()
    return Model(info, _network(config, info), None, build.path(config), guidance)


def _network(config: Config, info: DataInfo) -> Network:
    chosen, fields = resolve("network", config), build.network_fields(config, info)
    try:
        return as_network(lambda rngs: chosen.make(info.shape, fields, **chosen.settings, rngs=rngs))
    except (ValueError, TypeError, ArithmeticError, AssertionError) as error:
        raise UserError(f"{chosen.title} for {info.name} {info.shape}: {error}") from error
