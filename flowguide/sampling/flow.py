"""The sampler "flow": the guided flow, or SDE, itself."""

from __future__ import annotations

from flowguide import solvers
from flowguide.errors import UserError
from flowguide.model import Model
from flowguide.paths import Path
from flowguide.sampling.config import DDPM, SOLVER_NAMES, STOCHASTIC, SamplerConfig
from flowguide.sampling.request import SampleRequest
from flowguide.sampling.sampler import Sampler, nothing_to_check, stochastic
from flowguide.typing import PRNGKey


def _solver(config: SamplerConfig, path: Path, keys: PRNGKey) -> solvers.Solver:
    if config.solver in STOCHASTIC:
        return stochastic(config, path, keys)
    return solvers.SOLVERS[str(config.solver)](path)


def _check_model(model: Model, request: SampleRequest, config: SamplerConfig) -> None:
    if config.solver != DDPM:
        return
    if model.network.ancestral is None:
        raise UserError(
            "solver 'ddpm' draws with predicted variances, and this network has none (output epsilon with "
            "learned_variance): use 'renoise', whose eta 1 is DDPM with its smaller variance"
        )
    if request.measured is not None or config.guidance in ("autoguidance", "perturbed"):
        what = "what was measured" if request.measured is not None else f"guidance {config.guidance!r}"
        raise UserError(f"solver 'ddpm' takes no velocity without variances, as of {what}: use 'renoise'")


FLOW = Sampler(
    SOLVER_NAMES,
    lambda config, model: {"solver": "heun", "eta": 1.0},
    nothing_to_check,
    _check_model,
    _solver,
)
