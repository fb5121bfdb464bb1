"""The solvers and schedulers of other packages, behind one signature; needs the extra peers."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np

try:
    import diffusers  # pyright: ignore[reportMissingImports]
    import flow_matching.solver  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    import torchdiffeq  # pyright: ignore[reportMissingImports]
except ImportError:
    diffusers = torch = flow_matching = torchdiffeq = cast(Any, None)

MISSING = 'without the peers: pip install -e ".[peers]" adds them'


def schedulers() -> dict[str, Callable[[int], Any]]:
    """Diffusers' schedulers for flow matching, each made for a number of evaluations, with their own grids."""
    if diffusers is None:
        print(MISSING)
        return {}
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}

    def of(kind: Any, evaluations: int, per_step: int = 1, **settings: Any) -> Any:
        scheduler = kind(**settings)
        scheduler.set_timesteps((evaluations + per_step - 1) // per_step)
        return scheduler

    return {
        "diffusers FlowMatchEuler": partial(of, diffusers.FlowMatchEulerDiscreteScheduler),
        "diffusers FlowMatchHeun": partial(of, diffusers.FlowMatchHeunDiscreteScheduler, per_step=2),
        "diffusers DPM-Solver++(2M)": partial(of, diffusers.DPMSolverMultistepScheduler, **flow),
        "diffusers UniPC": partial(of, diffusers.UniPCMultistepScheduler, **flow),
    }


def integrate(scheduler: Any, velocity: Callable[[float, np.ndarray], np.ndarray], x0: np.ndarray) -> np.ndarray:
    """Where the scheduler ends. Its time is σ = 1 − t and its velocity −u; each of its steps costs one evaluation."""
    assert torch is not None
    x = torch.tensor(x0)
    for sigma, step in zip(scheduler.sigmas.tolist(), scheduler.timesteps, strict=False):
        out = torch.tensor(-velocity(1 - sigma, x.numpy()))
        x = scheduler.step(out, step, x).prev_sample.to(x.dtype)
    return x.numpy()


def torch_solvers(layers: tuple[np.ndarray, ...], steps: int) -> dict[str, Callable[[np.ndarray], Any]]:
    """Euler's method in torch, with the network of ``benchmarks/solvers.py``."""
    if torch is None:
        print(MISSING)
        return {}
    inlet, *hidden, outlet = (torch.tensor(np.asarray(w)) for w in layers)

    class Network(torch.nn.Module):
        def forward(self, x: Any, t: Any) -> Any:
            h = x @ inlet + t
            for w in hidden:
                h = h + torch.nn.functional.silu(h @ w)
            return h @ outlet

    network, ts = Network(), torch.linspace(0, 1, steps + 1)
    solver = flow_matching.solver.ODESolver(network)

    def loop(x: Any) -> Any:
        for t in ts[:-1]:
            x = x + network(x, t) / steps
        return x

    def with_torchdiffeq(x: Any) -> Any:
        return torchdiffeq.odeint(lambda t, x: network(x, t), x, ts, method="euler")[-1]

    def with_flow_matching(x: Any) -> Any:
        return solver.sample(x, step_size=None, method="euler", time_grid=ts)

    def run(method: Callable[[Any], Any], x: np.ndarray) -> Any:
        with torch.no_grad():
            return method(torch.tensor(x))

    return {
        "torch, bare loop": partial(run, loop),
        "torchdiffeq euler": partial(run, with_torchdiffeq),
        "flow_matching euler": partial(run, with_flow_matching),
    }
