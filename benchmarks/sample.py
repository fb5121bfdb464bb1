"""Guided sampling beside PyTorch's: ours as sample.py runs it, and the same loop and network in PyTorch.

python benchmarks/sample.py [--cases=dit16,dit32,unet16,unet32] [--steps=10] [--rounds=15] [--json=FILE]

Needs the extra peers. Both networks get the same parameters and must compute the same function; then they take turns.
Euler steps of classifier-free guidance with γ = 2, both velocities in one call on a doubled batch. "ours, 2 calls"
evaluates them one after the other, which needs less memory.
"""

from collections.abc import Callable, Iterator

import side_by_side as beside  # first, as it sets the environment

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from absl import flags

from flowguide import guidance, sampling
from flowguide.cli.command import run_script
from flowguide.condition import given
from flowguide.flops import flops
from flowguide.training.assembly import Assembly

STEPS = flags.DEFINE_integer("steps", 10, "Euler steps, of two evaluations each")
GAMMA = 2.0


def contestants(case: beside.Case, ours: Assembly) -> Iterator[tuple[str, beside.Contestant]]:
    """PyTorch and flowguide, ready to draw a batch."""
    yield "torch eager", torch_draw(case, ours, compiled=False)
    if beside.COMPILE.value:
        yield "torch.compile", torch_draw(case, ours, compiled=True)
    yield "flowguide", our_draw(case, ours)
    yield "ours, 2 calls", our_draw(case, ours, passes="apart")


def operations(case: beside.Case, ours: Assembly) -> float:
    """Operations of all evaluations."""
    batch = beside.batch_of(case)
    params = jax.eval_shape(ours.init, ours.init_key).params
    t = jnp.zeros(case.batch)
    return 2.0 * STEPS.value * flops(ours.model.network.velocity, params, t, jnp.asarray(batch.x), given(batch.value))


def our_draw(case: beside.Case, ours: Assembly, passes: guidance.Passes = "together") -> beside.Contestant:
    """Our sampler, conversion of the samples included."""
    model = ours.model._replace(params=jax.device_put(beside.random_params(ours)))
    config = sampling.SamplerConfig("euler", STEPS.value, passes=passes)
    label = beside.batch_of(case).value["label"]

    def run() -> None:
        sampling.sample(model, label, gamma=GAMMA, config=config, batch_size=case.batch)

    return beside.ours_twice(lambda: run)


def torch_draw(case: beside.Case, ours: Assembly, compiled: bool) -> beside.Contestant:
    """The same in PyTorch."""
    label = torch.tensor(beside.batch_of(case).value["label"].astype(np.int64), device=beside.DEVICE)
    both = torch.cat([label, torch.full_like(label, -1)])
    params = beside.random_params(ours)

    def make() -> Callable[[], None]:
        network = beside.torch_network(case, params)
        ts = torch.linspace(0, 1, STEPS.value + 1, device=beside.DEVICE)

        def velocity(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            with beside.autocast():
                u, null = network(t.expand(len(both)), torch.cat([x, x]), both).float().chunk(2)
            return (1 - GAMMA) * null + GAMMA * u

        velocity = torch.compile(velocity) if compiled else velocity

        def run() -> None:
            with torch.no_grad():
                x = torch.randn(case.batch, *case.shape, device=beside.DEVICE)
                for t in ts[:-1]:
                    x = x + velocity(t, x) / STEPS.value
                x.cpu()

        return run

    return beside.torch_twice(make, compiled)


if __name__ == "__main__":
    run_script(lambda: beside.compare(contestants, operations))
