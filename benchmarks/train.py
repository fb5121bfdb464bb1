"""A training step beside PyTorch's: ours as train.py runs it, and the same network and recipe in PyTorch.

python benchmarks/train.py [--cases=dit16,dit32,unet16,unet32] [--rounds=15] [--json=FILE]

Needs the extra peers. Both networks get the same parameters and must compute the same function; then they take turns.
A step draws t, noise and dropped labels, interpolates, differentiates the loss, clips the gradient, and updates AdamW
and the moving average. PyTorch runs it eagerly and with torch.compile, with fused attention, fused AdamW, a foreach
moving average and, for the U-Net, channels_last.
"""

from collections.abc import Callable, Iterator

import side_by_side as beside  # first, as it sets the environment

# isort: split
import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from flowguide.cli.command import run_script
from flowguide.flops import flops
from flowguide.schema import Batch
from flowguide.training.assembly import Assembly
from flowguide.training.parallel import abstract, parallelize
from flowguide.training.step import TrainState


def contestants(case: beside.Case, ours: Assembly) -> Iterator[tuple[str, beside.Contestant]]:
    """PyTorch and flowguide, ready to take a step."""
    yield "torch eager", torch_step(case, ours, compiled=False)
    if beside.COMPILE.value:
        yield "torch.compile", torch_step(case, ours, compiled=True)
    yield "flowguide", our_step(case, ours)


def operations(case: beside.Case, ours: Assembly) -> float:
    """Operations of a step."""
    state = jax.eval_shape(ours.init, ours.init_key)
    return float(flops(ours.step_with(1)(lambda tree: tree), state, beside.batch_of(case)))


def our_step(case: beside.Case, ours: Assembly) -> beside.Contestant:
    """Our step on numbers in the host's memory, as the loop gets them from the data."""
    made = beside.ours_twice(lambda: stepping(ours, beside.batch_of(case))[0])
    like, batch = abstract(jax.eval_shape(ours.init, ours.init_key), ours.layout), beside.batch_of(case)
    program = ours.layout.program(ours.step_with(ours.layout.shares), True)
    memory = program.lower(like, ours.layout.batch(batch), None).compile().memory_analysis()
    return made._replace(memory=memory.temp_size_in_bytes + memory.argument_size_in_bytes)


def stepping(ours: Assembly, batch: Batch) -> tuple[Callable[[], None], Callable[[], TrainState]]:
    """Returns a function that takes a step from where the last one ended, and one that returns the state."""
    step = parallelize(ours.layout, ours.step_with(ours.layout.shares))
    held = [ours.init(ours.init_key, shardings=ours.layout.shardings)]

    def run() -> None:
        held[0], metrics = step(held[0], batch)
        jax.block_until_ready((held[0], metrics))

    return run, lambda: held[0]


def torch_step(case: beside.Case, ours: Assembly, compiled: bool) -> beside.Contestant:
    """The same in PyTorch."""
    batch, params = beside.batch_of(case), beside.random_params(ours)
    x1 = torch.tensor(batch.x, device=beside.DEVICE)
    label = torch.tensor(batch.value["label"].astype(np.int64), device=beside.DEVICE)

    def make() -> Callable[[], None]:
        network = beside.torch_network(case, params)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        weights = list(network.parameters())
        averages = [w.detach().clone() for w in weights]

        def loss() -> torch.Tensor:
            t = torch.sigmoid(torch.randn(case.batch, device=beside.DEVICE))
            x0 = torch.randn_like(x1)
            kept = torch.where(torch.rand(case.batch, device=beside.DEVICE) < 0.1, -1, label)
            at = t[:, None, None, None]
            with beside.autocast():
                u = network(t, (1 - at) * x0 + at * x1, kept)
            return (u.float() - (x1 - x0)).square().mean()

        loss = torch.compile(loss) if compiled else loss

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(averages, weights, 0.001)
            beside.synchronize()

        return run

    return beside.torch_twice(make, compiled)


if __name__ == "__main__":
    run_script(lambda: beside.compare(contestants, operations))
