"""Samplers as they were published with released weights: data alone, with the source of each number.

γ is the scale of (1 − γ)·u(x, ∅) + γ·u(x, c), which these sources use too. SiT, DiT and LightningDiT guide the first 3
channels of their latents, whatever their number; that is how their numbers were measured.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flowguide import chain
from flowguide.errors import UserError, hint
from flowguide.sampling.config import SamplerConfig


class Recipe(NamedTuple):
    """A published sampler.

    Attributes:
      config: how to guide and integrate.
      gamma: guidance scale γ.
      source: of the numbers.
    """

    config: SamplerConfig
    gamma: float
    source: str


def respaced(steps: int, links: chain.Chain | None = None) -> tuple[float, ...]:
    """Returns the grid of ``steps`` equally spaced steps of a chain: a node for each, from the noisiest, and t = 1.

    The first node is 0 instead of the time of the noisiest step: the solver "ddpm" takes x there for that step's.
    """
    every = chain.times(links or chain.linear())
    kept = np.round(np.linspace(0, len(every) - 1, steps)).astype(int)[::-1]
    return (0.0, *every[kept[1:]].tolist(), 1.0)


# JiT guides for t > 0.1, and 0.1 is a node of its grid; our intervals include their ends.
AFTER = float(np.nextafter(np.float32(0.1), np.float32(1)))

RECIPES: dict[str, Recipe] = {
    "sit-ode": Recipe(
        SamplerConfig("dopri5", tolerance=1e-3, absolute_tolerance=1e-6, channels=3),
        1.5,
        "SiT (Ma et al. 2024, arXiv 2401.08740), sample_ddp.py ODE: dopri5, rtol 1e-3, atol 1e-6; cfg-scale 1.5",
    ),
    "sit-sde": Recipe(
        SamplerConfig(
            "euler_maruyama", steps=250, diffusion="sigma", eta=1.0, last_step=0.04, last_kind="mean", channels=3
        ),
        1.5,
        "SiT (Ma et al. 2024), sample_ddp.py SDE: Euler-Maruyama of 250 steps, diffusion sigma of norm 1, last step "
        "Mean of size 0.04; cfg-scale 1.5",
    ),
    "dit-ddpm": Recipe(
        SamplerConfig("ddpm", grid=respaced(250), channels=3),
        1.5,
        "DiT (Peebles & Xie 2023, arXiv 2212.09748), sample_ddp.py: DDPM of 250 of 1000 steps with learned variances; "
        "cfg-scale 1.5",
    ),
    "jit-heun": Recipe(
        SamplerConfig("heun_edm", steps=50, interval=(AFTER, 1.0)),
        3.0,
        "JiT-B/16 (Li & He 2025, arXiv 2511.13720): Heun of 50 steps, the last Euler's; guided for t in (0.1, 1), "
        "γ 3.0 (L/16: 2.4, H/16: 2.2)",
    ),
    "lightningdit": Recipe(
        SamplerConfig("euler", steps=249, grid="shift:s=3.3333333", interval=(0.125, 1.0), channels=3),
        6.7,
        "LightningDiT-XL/1 (Yao et al. 2025, arXiv 2501.01423): Euler on 250 nodes, shifted by t' = 0.3t/(1 − 0.7t); "
        "guided from t = 0.125 on, γ 6.7 (64 epochs: 10)",
    ),
}


def recipe(name: str) -> Recipe:
    """Returns a published sampler by name: ``sample(model, gamma=r.gamma, config=r.config)``.

    Raises:
      UserError: for an unknown name.
    """
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r:.100}{hint(name, RECIPES)}: there are {', '.join(RECIPES)}")
    return RECIPES[name]
