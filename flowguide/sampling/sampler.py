"""What a sampler is. Each owns its solvers, its defaults and its checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flowguide import solvers
from flowguide.model import Model
from flowguide.paths import Path
from flowguide.sampling.config import SamplerConfig
from flowguide.sampling.request import SampleRequest
from flowguide.typing import PRNGKey


class Sampler(NamedTuple):
    """A way to sample from a model.

    Attributes:
      solvers: names of the solvers it takes.
      defaults: (config, model or None) -> values of the settings that the config leaves None.
      check: raises UserError for settings of a resolved config that this sampler does not take.
      check_model: raises UserError for a request that this sampler cannot serve with this model.
      solver: (config, path, typed keys ``(B,)``) -> the solver, drawing its noise from the keys. Adaptive solvers are
        not asked for.
    """

    solvers: tuple[str, ...]
    defaults: Callable[[SamplerConfig, Model | None], Mapping[str, Any]]
    check: Callable[[SamplerConfig], None]
    check_model: Callable[[Model, SampleRequest, SamplerConfig], None]
    solver: Callable[[SamplerConfig, Path, PRNGKey], solvers.Solver]


def nothing_to_check(*_: object) -> None:
    """Accepts everything."""


def stochastic(config: SamplerConfig, path: Path, keys: PRNGKey) -> solvers.Solver:
    """Returns the stochastic solver of a config."""
    eta = float(config.eta or 0.0)
    if config.solver == "euler_maruyama" and (config.diffusion or config.last_kind != "data"):
        diffusion = solvers.DIFFUSIONS[config.diffusion or "memoryless"](eta)
        return solvers.euler_maruyama(path, keys, diffusion, last=config.last_kind)  # pyright: ignore[reportArgumentType]
    return solvers.STOCHASTIC[str(config.solver)](path, keys, eta)
