"""All that a GPU is needed for, in one run of under ten minutes.

python benchmarks/accelerator.py [--minutes=9] [--cases=b2,l2,xl2] [--json=FILE]

Needs JAX, Flax, Optax and PyTorch; no data set is read. In this order, as far as the minutes last:

1. Correctness: velocity and gradient on this device against the CPU in float32, and bfloat16 against float32.
2. Attention: XLA's and cuDNN's, forward and with gradients, at the sizes of XL/2.
3. Layouts: data_parallel (pmap) and fsdp on one device: the same update, and the time of both.
4. Training: images/s and the share of the measured matmul peak, by attention kernel and remat, beside PyTorch.
5. A profile of a training step: the operations that take longest.
6. Guided sampling beside PyTorch.

On a machine without a GPU it runs tiny networks, which shows that the script works and nothing else.
"""

import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import side_by_side as beside  # first, as it sets the environment

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import sample
import train
from flowguide.cli.command import run_script
from flowguide.condition import given
from flowguide.networks.attention import attend, cudnn_attend, cudnn_refusal
from flowguide.training.assembly import Assembly

MINUTES = flags.DEFINE_float("minutes", 9.0, "stop beginning new parts after this time")
FEW = 5 if beside.ON_GPU else 2
# Largest batches first: one that does not fit is halved.
BATCHES = {"b2": 1024, "l2": 512, "xl2": 512, "tiny": 8}
STARTED = time.monotonic()
FOUND: dict[str, Any] = {}


def main() -> None:
    peak = beside.measured_peak()
    device = jax.devices()[0]
    FOUND.update(device=device.device_kind, peak=peak, jax=jax.__version__)
    print(f"{device.device_kind}, jax {jax.__version__}; the fastest {beside.DTYPE} product: {peak / 1e12:.1f} TFLOP/s")
    names = list(beside.cases(beside.ON_A_GPU if beside.ON_GPU else ("tiny",)))
    parts: list[tuple[str, Callable[[], None]]] = [
        ("correctness", correctness),
        ("attention", attention),
        ("layouts", layouts),
        *[(f"training {name}", partial(training, name, peak)) for name in reversed(names)],
        ("profile", partial(profile, names[-1])),
        *[(f"sampling {name}", partial(sampling, name, peak)) for name in reversed(names)],
    ]
    for title, part in parts:
        spent = (time.monotonic() - STARTED) / 60
        if spent > MINUTES.value:
            print(f"\n{title}: left out, {spent:.1f} minutes are over")
            continue
        print(f"\n{title} (after {spent:.1f} minutes)", flush=True)
        try:
            part()
        except Exception as error:  # the other parts are still worth their time
            print(f"  FAILED: {type(error).__name__}: {str(error)[:600]}", flush=True)
            FOUND.setdefault("failed", []).append(title)
        beside.save(FOUND)
    print(f"\nfailed: {', '.join(FOUND.get('failed', [])) or 'nothing'}")


def note(title: str, text: str, **numbers: Any) -> None:
    """Prints a line and keeps its numbers."""
    print(f"  {title:44}{text}", flush=True)
    FOUND[title] = numbers


def correctness() -> None:
    """The small networks on this device and on the CPU."""
    cpu = jax.devices("cpu")[0]
    for name in ("dit16", "unet16") if beside.ON_GPU else ("tiny",):
        case = beside.CASES[name]
        ours, batch = beside.assembled(case, "float32"), beside.batch_of(case)
        params, t = beside.random_params(ours), np.linspace(0.05, 0.95, case.batch, dtype=np.float32)
        u = {d: velocity_on(d, ours, params, t, batch) for d in (cpu, jax.devices()[0])}
        with jax.default_matmul_precision("highest"):
            exact = velocity_on(jax.devices()[0], ours, params, t, batch)
        half = velocity_on(jax.devices()[0], beside.assembled(case, "bfloat16"), params, t, batch)
        for title, got in (("float32", u[jax.devices()[0]]), ("float32, highest precision", exact), ("bfloat16", half)):
            error = relative(got, u[cpu])
            note(f"{name}, velocity in {title}", f"differs from the CPU by {error:.1e} of its RMS", error=error)
        gradients = [gradient_on(d, ours, params, batch) for d in (cpu, jax.devices()[0])]
        errors = jax.tree.map(relative, gradients[1], gradients[0])
        worst = max(jax.tree.leaves(errors))
        note(f"{name}, gradient in float32", f"differs by at most {worst:.1e} of a leaf's RMS", error=worst)


def velocity_on(device: Any, ours: Assembly, params: Any, t: np.ndarray, batch: Any) -> np.ndarray:
    with jax.default_device(device):
        inputs = jax.device_put((params, t, batch.x, given(batch.value)), device)
        return np.array(jax.jit(ours.model.network.velocity)(*inputs))


def gradient_on(device: Any, ours: Assembly, params: Any, batch: Any) -> Any:
    """Of the training loss, with the same draws on every device."""
    with jax.default_device(device):
        params, batch = jax.device_put((params, batch), device)
        return jax.device_get(jax.jit(jax.grad(lambda p, b: ours.validation_loss(p, jnp.int32(0), b)))(params, batch))


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2) / max(np.mean(b**2), 1e-30)))


def attention() -> None:
    """Kernels at the sizes of XL/2: 256 tokens, 16 heads of 72."""
    shape, dtype = ((64, 256, 16, 72), jnp.bfloat16) if beside.ON_GPU else ((2, 16, 2, 8), jnp.float32)
    q, k, v = jax.random.normal(jax.random.key(0), (3, *shape)).astype(dtype)
    refusal = cudnn_refusal(shape, shape, str(q.dtype), False)
    note("cuDNN's attention", refusal or "runs", refusal=refusal)
    kernels = {"xla": attend} if refusal else {"xla": attend, "cudnn": cudnn_attend}
    runs, outputs = {}, {}
    for name, kernel in kernels.items():
        forward = jax.jit(kernel)
        both = jax.jit(jax.grad(lambda q, k, v, f=kernel: jnp.sum(jnp.sin(f(q, k, v).astype(jnp.float32))), (0, 1, 2)))
        for title, program in (("forward", forward), ("gradients", both)):
            outputs[name, title] = jax.block_until_ready(program(q, k, v))
            runs[f"{name}, {title}"] = partial(beside.wait, program, q, k, v)
    for title, seconds in beside.in_turn(runs, 4 * FEW).items():
        note(f"attention {title}", f"{1e3 * seconds:8.2f} ms", seconds=seconds)
    if not refusal:
        for title in ("forward", "gradients"):
            one, other = (jax.tree.leaves(outputs[name, title]) for name in kernels)
            error = max(
                relative(np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in zip(one, other, strict=True)
            )
            note(f"attention {title}, cuDNN against XLA", f"differs by {error:.1e}", error=error)


def layouts() -> None:
    """pmap and FSDP on one device."""
    case = beside.CASES["dit16" if beside.ON_GPU else "tiny"]
    batch, after, runs = beside.batch_of(case), {}, {}
    for name in ("data_parallel", "fsdp"):
        ours = beside.assembled(case, "float32", layout={"name": name})
        runs[name], state = train.stepping(ours, batch)
        for _ in range(3):
            runs[name]()
        after[name] = jax.device_get(state().params)
    errors = jax.tree.map(relative, after["fsdp"], after["data_parallel"])
    worst = max(jax.tree.leaves(errors))
    note("parameters after three steps", f"fsdp differs from data_parallel by at most {worst:.1e}", error=worst)
    for name, seconds in beside.in_turn(runs, 2 * FEW).items():
        note(f"step, {name}", f"{1e3 * seconds:8.2f} ms", seconds=seconds)


def training(name: str, peak: float) -> None:
    """Our step by kernel and remat, each at the largest batch that fits; then PyTorch's at the batch of the fastest."""
    case = beside.CASES[name]
    best = (0.0, case)
    for kernel, remat in itertools.product(("xla", "cudnn") if beside.ON_GPU else ("xla",), (False, True)):
        network = {**case.network, "attention": kernel, "remat": remat}
        tried = largest(case._replace(network=network, batch=BATCHES[name]))
        if tried is None:
            note(f"{name}, attention {kernel}, remat {remat}", "does not fit")
            continue
        fitting, contestant = tried
        seconds = beside.in_turn({"ours": contestant.run}, FEW)["ours"]
        report(f"{name}, attention {kernel}, remat {remat}", fitting, seconds, operations(fitting), peak, contestant)
        best = max(best, (fitting.batch / seconds, fitting), key=lambda pair: pair[0])
        del tried, contestant  # their memory is free for the next
    case = case._replace(batch=best[1].batch)
    for compiled in (False, True) if beside.COMPILE.value else (False,):
        title = f"{name}, {'torch.compile' if compiled else 'torch eager'}"
        contestant = train.torch_step(case, beside.assembled(case), compiled)
        seconds = beside.in_turn({"torch": contestant.run}, FEW)["torch"]
        report(title, case, seconds, operations(case), peak, contestant)


def largest(case: beside.Case) -> tuple[beside.Case, beside.Contestant] | None:
    """Returns our step at the largest batch, halved until it fits; None if not even an eighth does."""
    for batch in (case.batch >> halvings for halvings in range(4)):
        smaller = case._replace(batch=batch)
        try:
            return smaller, train.our_step(smaller, beside.assembled(smaller))
        except Exception as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
    return None


def operations(case: beside.Case) -> float:
    """Operations of a step, without what remat computes again."""
    plain = case._replace(network={**case.network, "remat": False, "attention": "xla"})
    return train.operations(plain, beside.assembled(plain))


def report(
    title: str, case: beside.Case, seconds: float, operations: float, peak: float, contestant: beside.Contestant
) -> None:
    """One line of a table."""
    rate, share = case.batch / seconds, operations / seconds / peak
    note(
        title,
        f"batch {case.batch:5}{rate:10.1f} images/s{share:8.1%} of peak{contestant.memory / 2**30:8.1f} GiB   "
        f"compiled in {contestant.cold:.0f} s, {contestant.warm:.0f} s warm",
        rate=rate,
        share=share,
        batch=case.batch,
        memory=contestant.memory,
        cold=contestant.cold,
        warm=contestant.warm,
    )


def profile(name: str) -> None:
    """The operations of three training steps by the time they take on the device."""
    case = beside.CASES[name]
    network = {**case.network, "attention": "cudnn" if beside.ON_GPU else "xla"}
    contestant = train.our_step(case._replace(network=network), beside.assembled(case._replace(network=network)))
    with TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(3):
                contestant.run()
        totals: dict[str, float] = {}
        for file in Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
                if not plane.name.startswith("/device") and beside.ON_GPU:
                    continue
                for line in plane.lines:
                    if line.name not in ("python", "Steps", "XLA Modules"):
                        for event in line.events:
                            totals[event.name] = totals.get(event.name, 0.0) + event.duration_ns
    whole = sum(totals.values())
    for operation, nanoseconds in sorted(totals.items(), key=lambda item: -item[1])[:15]:
        note(operation[:43], f"{1e-6 * nanoseconds / 3:10.2f} ms a step{nanoseconds / whole:8.1%}", ns=nanoseconds)


def sampling(name: str, peak: float) -> None:
    """Guided sampling, ours and PyTorch's."""
    case = beside.CASES[name]
    network = {**case.network, "attention": "cudnn"} if beside.ON_GPU else case.network
    plain, quick = beside.assembled(case), beside.assembled(case._replace(network=network))
    each = {
        f"{name}, sampling, torch eager": sample.torch_draw(case, plain, compiled=False),
        f"{name}, sampling, ours": sample.our_draw(case, quick),
    }
    if beside.COMPILE.value:
        each[f"{name}, sampling, torch.compile"] = sample.torch_draw(case, plain, compiled=True)
    for title, seconds in beside.in_turn({k: c.run for k, c in each.items()}, FEW).items():
        report(title, case, seconds, sample.operations(case, plain), peak, each[title])


if __name__ == "__main__":
    run_script(main)
