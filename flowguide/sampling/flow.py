"""The sampler "flow": the guided flow, or SDE, itself."""

from __future__ import annotations

from flowguide import solvers
from flowguide.paths import Path
from flowguide.sampling.config import SOLVER_NAMES, STOCHASTIC, SamplerConfig
from flowguide.sampling.sampler import Sampler, nothing_to_check, stochastic
from flowguide.typing import PRNGKey


def _solver(config: SamplerConfig, path: Path, keys: PRNGKey) -> solvers.Solver:
    if config.solver in STOCHASTIC:
        return stochastic(config, path, keys)
    return solvers.SOLVERS[str(config.solver)](path)


FLOW = Sampler(
    SOLVER_NAMES,
    lambda config, model: {"solver": "heun", "eta": 1.0},
    nothing_to_check,
    nothing_to_check,
    _solver,
)
