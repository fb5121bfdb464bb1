"""How to sample: the settings of a sampler."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from flowguide import guidance, solvers, times
from flowguide.networks.perturbation import Perturbation
from flowguide.typing import Array

ADAPTIVE = tuple(sorted(solvers.EMBEDDED_TABLEAUX))
STOCHASTIC = tuple(sorted(solvers.STOCHASTIC))
DDPM = "ddpm"  # for networks that predict variances
SOLVER_NAMES = (*sorted(solvers.SOLVERS), *STOCHASTIC, DDPM, *ADAPTIVE)


class SamplerConfig(NamedTuple):
    """How to guide and integrate; hashable, one compiled program each. None takes the default of the sampler.

    Attributes:
      solver: one of ``SOLVER_NAMES``; those in ``ADAPTIVE`` choose their own steps.
      steps: of a grid given by name; adaptive solvers do not read it.
      grid: of deterministic and stochastic solvers: the name of a warp (``times.WARPS``), with its settings if they are
        not the defaults, "shift:s=2"; or the nodes themselves, increasing from 0 to 1, which then also set the number
        of steps. ``fit_grid`` finds good ones.
      guidance: one of ``guidance.methods.METHODS``.
      settings: of that method, pairs of name and number.
      schedule: guidance schedule γ(t), one of ``guidance.SCHEDULES``.
      interval: times between which guidance acts; None for all.
      replace_null: whether the negative condition takes the place of ∅.
      rescale: strength φ of the rescaling of Lin et al. 2024.
      perturbation: of the network that guidance "perturbed" moves away from.
      reuse: steps for which differences to the references are kept, see ``guidance.guide``.
      tolerance: relative and absolute, of adaptive solvers.
      eta: strength η of the noise of stochastic solvers: 0 none, 1 memoryless.
      passes: "together" or "apart", see ``guidance.guide``.
      sampler: "flow", the guided flow or SDE; "pc", the same with Langevin steps in between
        (``tilted.predictor_corrector``); or "fkc", weighted particles of the γ-powered law
        (``tilted.feynman_kac``), for ``sample_particles``.
      corrections: Langevin steps after each step of the sampler "pc".
      particles: number of particles K of each law, for the sampler "fkc".
      proposal: γ of the guided process that proposes particles; None for that of the law.
      threshold: effective sample size, as a share of K, below which particles are resampled.
      clip: see ``tilted.feynman_kac``.
      until: see ``tilted.feynman_kac``. Its default depends on the size of an example.
      jacobian_from: for what was measured, see ``guidance.with_measurement``; 1 never differentiates the network.
      channels: guidance acts on the first so many channels, and the others keep the conditional velocity
        (``guidance.first_channels``); None for all.
      absolute_tolerance: if it is another than ``tolerance``.
      diffusion: of the solver "euler_maruyama", one of ``solvers.DIFFUSIONS``, of which η is the scale; None for
        "memoryless".
      last_step: size of the last step of a grid given by name, whose other steps then cover [0, 1 − last_step].
      last_kind: what the last step of "euler_maruyama" returns, see ``solvers.euler_maruyama``.
    """

    solver: str | None = None
    steps: int = 25
    grid: str | tuple[float, ...] = "uniform"
    guidance: str = "cfg"
    settings: tuple[tuple[str, float], ...] = ()
    schedule: str = "constant"
    interval: tuple[float, float] | None = None
    replace_null: bool = False
    rescale: float = 0.0
    perturbation: Perturbation = Perturbation()
    reuse: int = 1
    tolerance: float = 1e-4
    eta: float | None = None
    passes: guidance.Passes = "together"
    sampler: str = "flow"
    corrections: int = 2
    particles: int = 64
    proposal: float | None = None
    threshold: float = 0.5
    clip: float | None = None
    until: float | None = None
    jacobian_from: float = 0.02
    channels: int | None = None
    absolute_tolerance: float | None = None
    diffusion: str | None = None
    last_step: float | None = None
    last_kind: str = "data"


DEFAULT = SamplerConfig()


def nodes(config: SamplerConfig) -> Array:
    """Returns the grid of a config whose solver takes one."""
    if isinstance(config.grid, str):
        warp = times.named(config.grid)
        if config.last_step is None:
            return times.grid(config.steps, warp)
        before = times.grid(config.steps - 1, warp)
        return jnp.append((1 - config.last_step) * before, 1.0)
    return jnp.asarray(config.grid, jnp.float32)
