"""Posteriors of simulators, by ``flowguide.fit``, against the reference posteriors of the benchmark sbibm.

pip install --no-deps sbibm
python benchmarks/simulators.py --minutes=3

Five tasks of Lueckmann et al. 2021 (arXiv 2101.04653, Appendix T): simulators and priors are written here in NumPy,
observations and reference samples are read from the files of the package sbibm, which itself is not imported. Each
task: 10,000 simulations, one fit with the defaults, 10,000 samples of the posterior of each observation, of which those
outside a bounded prior are drawn again.
C2ST is the accuracy of a classifier of those and the reference: ½ is perfect, and chance moves it by about .005.
"""

import argparse
import importlib.util
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import flowguide as fg
from flowguide.metrics import c2st
from flowguide.model import Given

SIMULATIONS, SAMPLES = 10_000, 10_000


class Task(NamedTuple):
    """A prior, a simulator, and the C2ST to reach."""

    prior: Callable[[np.random.Generator, int], np.ndarray]  # rng, N -> θ (N, d)
    simulate: Callable[[np.random.Generator, np.ndarray], np.ndarray]  # rng, θ (N, d) -> x (N, k)
    target: float
    bound: float = math.inf  # the prior is 0 beyond it


def uniform(bound: float, size: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda rng, num: rng.uniform(-bound, bound, (num, size))


def normal(covariance: np.ndarray) -> Callable[[np.random.Generator, int], np.ndarray]:
    factor = np.linalg.cholesky(covariance)
    return lambda rng, num: rng.normal(size=(num, len(factor))) @ factor.T


def two_moons(rng: np.random.Generator, theta: np.ndarray) -> np.ndarray:
    """T.8: x on a crescent of radius .1 that |θ1 + θ2| and θ2 − θ1 shift."""
    angle, radius = rng.uniform(-math.pi / 2, math.pi / 2, len(theta)), rng.normal(0.1, 0.01, len(theta))
    crescent = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], 1)
    return crescent + np.stack([-np.abs(theta.sum(1)), theta[:, 1] - theta[:, 0]], 1) / math.sqrt(2)


def gaussian_linear(rng: np.random.Generator, theta: np.ndarray) -> np.ndarray:
    """T.1: x ~ N(θ, 0.1·I), with the prior N(0, 0.1·I)."""
    return theta + rng.normal(0, math.sqrt(0.1), theta.shape)


def gaussian_mixture(rng: np.random.Generator, theta: np.ndarray) -> np.ndarray:
    """T.7: x ~ ½·N(θ, I) + ½·N(θ, 0.01·I)."""
    return theta + rng.choice([1.0, 0.1], (len(theta), 1)) * rng.normal(size=theta.shape)


def slcp(rng: np.random.Generator, theta: np.ndarray) -> np.ndarray:
    """T.3: four points of a Gaussian in the plane, with mean (θ1, θ2), deviations θ3², θ4², correlation tanh θ5."""
    s1, s2, rho = theta[:, 2] ** 2, theta[:, 3] ** 2, np.tanh(theta[:, 4])
    z = rng.normal(size=(len(theta), 4, 2))
    first = theta[:, 0, None] + s1[:, None] * z[..., 0]
    second = theta[:, 1, None] + s2[:, None] * (rho[:, None] * z[..., 0] + np.sqrt(1 - rho**2)[:, None] * z[..., 1])
    return np.stack([first, second], -1).reshape(len(theta), 8)


def glm_design() -> np.ndarray:
    """T.5: ones, and nine delays of a fixed white noise: float64 (100, 10)."""
    noise = np.random.RandomState(42).randn(100)  # the task's own
    delayed = [np.concatenate([np.zeros(j), noise[: 100 - j]]) for j in range(9)]
    return np.stack([np.ones(100), *delayed], 1)


def bernoulli_glm(rng: np.random.Generator, theta: np.ndarray) -> np.ndarray:
    """T.5: the sufficient statistics Vᵀy of 100 spikes y with probabilities logit⁻¹(Vθ)."""
    design = glm_design()
    spikes = rng.uniform(size=(len(theta), 100)) < 1 / (1 + np.exp(-theta @ design.T))
    return spikes @ design


def glm_covariance() -> np.ndarray:
    """T.5: precision ½ of the offset, and of a filter whose second differences are small."""
    d = np.eye(9) - np.eye(9, k=-1)
    f = d @ d + np.diag(np.sqrt(np.arange(9) / 9))
    precision = np.zeros((10, 10))
    precision[0, 0], precision[1:, 1:] = 0.5, f.T @ f
    return np.linalg.inv(precision)


TASKS = {
    "two_moons": Task(uniform(1.0, 2), two_moons, 0.58, 1.0),
    "gaussian_linear": Task(normal(0.1 * np.eye(10)), gaussian_linear, 0.56),
    "gaussian_mixture": Task(uniform(10.0, 2), gaussian_mixture, 0.60, 10.0),
    "slcp": Task(uniform(3.0, 5), slcp, 0.85, 3.0),
    "bernoulli_glm": Task(normal(glm_covariance()), bernoulli_glm, 0.65),
}


def simulations(task: Task, seed: int, num: int = SIMULATIONS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    theta = task.prior(rng, num)
    return theta.astype(np.float32), task.simulate(rng, theta).astype(np.float32)


def read(name: str, number: int, file: str) -> np.ndarray:
    """Reads a table of the package sbibm, without importing it: float32 (N, columns)."""
    found = importlib.util.find_spec("sbibm")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the observations are in the package sbibm: pip install --no-deps sbibm")
    folder = Path(found.submodule_search_locations[0]) / "tasks" / name / "files" / f"num_observation_{number}"
    return np.loadtxt(folder / file, np.float32, delimiter=",", skiprows=1, ndmin=2)


def within(posterior: Given, bound: float, seed: int) -> np.ndarray:
    """Draws from a posterior, without what lies outside the prior: float32 (SAMPLES, d)."""
    kept: list[np.ndarray] = []
    while sum(map(len, kept)) < SAMPLES:
        drawn = posterior.sample(SAMPLES, seed=seed + len(kept))
        kept.append(drawn[(np.abs(drawn) <= bound).all(1)])
    return np.concatenate(kept)[:SAMPLES]


def run(name: str, seed: int, minutes: float, observations: Sequence[int]) -> tuple[list[float], float, float]:
    """Fits one task; returns C2ST by observation, and the seconds that fit and sampling took."""
    theta, x = simulations(TASKS[name], seed)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as workdir:
        model = fg.fit(theta, {"x": x}, workdir=workdir, minutes=minutes)
    fitted = time.perf_counter()
    posteriors = [model.given(x=read(name, i, "observation.csv")[0]) for i in observations]
    drawn = [within(posterior, TASKS[name].bound, seed) for posterior in posteriors]
    sampled = time.perf_counter()
    references = [read(name, i, "reference_posterior_samples.csv.bz2")[:SAMPLES] for i in observations]
    scores = [c2st(reference, x, jobs=2) for reference, x in zip(references, drawn, strict=True)]
    return scores, fitted - started, sampled - fitted


def fmpe(name: str, seed: int, observations: Sequence[int]) -> list[float]:
    """The same by the FMPE of the package sbi, with its defaults."""
    import torch  # pyright: ignore[reportMissingImports]
    from sbi.inference import FMPE  # pyright: ignore[reportMissingImports]

    theta, x = (torch.as_tensor(a) for a in simulations(TASKS[name], seed))
    torch.manual_seed(seed)
    inference = FMPE()
    inference.append_simulations(theta, x).train()
    posterior = inference.build_posterior()
    scores = []
    for i in observations:
        drawn = posterior.sample((SAMPLES,), x=torch.as_tensor(read(name, i, "observation.csv"))).numpy()
        scores.append(c2st(read(name, i, "reference_posterior_samples.csv.bz2")[:SAMPLES], drawn, jobs=2))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS), help="names, separated by commas")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each fit")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds: of the simulations, fit and samples")
    parser.add_argument("--observations", type=int, default=5, help="number of them, at most 10; C2ST takes minutes")
    options = parser.parse_args()
    observations = range(1, options.observations + 1)
    names = options.tasks.split(",")
    if unknown := set(names) - set(TASKS):
        parser.error(f"unknown tasks {', '.join(sorted(unknown))}: there are {', '.join(TASKS)}")
    read(names[0], 1, "observation.csv")  # missing files are found now
    peer = importlib.util.find_spec("sbi") is not None
    print("| task | C2ST | of each observation | target | fit | samples | FMPE of sbi |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in names:
        runs = [run(name, seed, options.minutes, observations) for seed in range(options.seeds)]
        scores = np.array([scores for scores, *_ in runs])
        fit, sampling = np.mean([times for _, *times in runs], axis=0)
        other = np.array([fmpe(name, seed, observations) for seed in range(options.seeds)]) if peer else None
        print(
            f"| {name} | {scores.mean():.3f} ± {scores.std():.3f} | {', '.join(f'{s:.3f}' for s in scores.mean(0))} "
            f"| {TASKS[name].target:.2f}{'' if scores.mean() <= TASKS[name].target else ' missed'} | {fit:.0f} s "
            f"| {sampling:.0f} s | {'sbi is not installed' if other is None else f'{other.mean():.3f}'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
