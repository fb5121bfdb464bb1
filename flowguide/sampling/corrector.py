"""The sampler "pc": the guided flow with Langevin steps on the guided score after each of its steps."""

from __future__ import annotations

from flowguide import solvers, tilted
from flowguide.paths import Path
from flowguide.sampling.config import SamplerConfig
from flowguide.sampling.sampler import Sampler, nothing_to_check
from flowguide.typing import PRNGKey


def _solver(config: SamplerConfig, path: Path, keys: PRNGKey) -> solvers.Solver:
    predictor = solvers.SOLVERS[str(config.solver)](path)
    return tilted.predictor_corrector(path, keys, config.corrections, predictor=predictor)


PREDICTOR_CORRECTOR = Sampler(
    ("ddim", "euler", "heun", "midpoint", "ralston", "rk4"),
    lambda config, model: {"solver": "ddim", "eta": 1.0},
    nothing_to_check,
    nothing_to_check,
    _solver,
)
