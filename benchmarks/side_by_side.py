"""What benchmarks/train.py and benchmarks/sample.py share: our networks beside the same networks in PyTorch.

Import it before jax and torch. On a CPU it pins the process to one core, and times are CPU times. On a GPU both compute
in bfloat16 (autocast in PyTorch), and times are wall times.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

ON_GPU = Path("/dev/nvidia0").exists() and os.environ.get("JAX_PLATFORMS") != "cpu"
# Compiled programs are kept for this process alone, so the first compilation is cold and the second is warm.
CACHE = tempfile.TemporaryDirectory(prefix="flowguide-benchmark-")
os.environ |= {"TORCHINDUCTOR_CACHE_DIR": f"{CACHE.name}/torch", "JAX_COMPILATION_CACHE_DIR": f"{CACHE.name}/jax"}
os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory too
if not ON_GPU and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

try:
    import torch  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise SystemExit('PyTorch is missing: pip install -e ".[peers]" adds it') from error
if not ON_GPU:
    torch.set_num_threads(1)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch_networks  # noqa: E402
from absl import flags  # noqa: E402

from flowguide import config as configs  # noqa: E402
from flowguide import kinds  # noqa: E402
from flowguide.condition import given  # noqa: E402
from flowguide.errors import UserError, hint  # noqa: E402
from flowguide.networks import leaves_by_path  # noqa: E402
from flowguide.networks.dit import SIZES  # noqa: E402
from flowguide.schema import Batch, DataInfo, Label, Vectors  # noqa: E402
from flowguide.training.assembly import Assembly, assemble  # noqa: E402

CASES_FLAG = flags.DEFINE_list("cases", None, "networks to time; by default those for this device")
ROUNDS = flags.DEFINE_integer("rounds", 15, "timed runs of each contestant; the least time counts")
COMPILE = flags.DEFINE_bool("compile", True, "also run torch.compile, which compiles for minutes")
JSON = flags.DEFINE_string("json", None, "also write the table to this file")

DEVICE, DTYPE = ("cuda", "bfloat16") if ON_GPU else ("cpu", "float32")
CLASSES = 10
NAN = float("nan")


class Case(NamedTuple):
    """A network, the shape of what it sees, and the batch size."""

    network: dict[str, Any]
    shape: tuple[int, ...]
    batch: int


SMALL_DIT = {"name": "dit", "patch": 2, "width": 192, "depth": 6, "heads": 3}
SMALL_UNET = {"name": "unet", "width": 32, "multipliers": (1, 2, 2), "blocks": 2, "attention": (8,)}
CASES = {
    "tiny": Case({**SMALL_DIT, "width": 48, "depth": 2}, (8, 8, 3), 4),
    "dit16": Case(SMALL_DIT, (16, 16, 3), 32),
    "dit32": Case(SMALL_DIT, (32, 32, 3), 8),
    "unet16": Case(SMALL_UNET, (16, 16, 3), 32),
    "unet32": Case(SMALL_UNET, (32, 32, 3), 16),
    "b2": Case({"name": "dit", "patch": 2, **SIZES["B"]}, (32, 32, 4), 256),
    "l2": Case({"name": "dit", "patch": 2, **SIZES["L"]}, (32, 32, 4), 128),
    "xl2": Case({"name": "dit", "patch": 2, **SIZES["XL"]}, (32, 32, 4), 64),
}
ON_A_GPU, ON_A_CPU = ("b2", "l2", "xl2"), ("dit16", "dit32", "unet16", "unet32")


class Contestant(NamedTuple):
    """A program to time.

    Attributes:
      run: runs it once and waits for the result.
      cold: seconds of the first run, compiling included.
      warm: seconds of the first run when a cache holds the compiled program; NaN if it compiles nothing.
      memory: bytes at the peak; NaN if unknown.
    """

    run: Callable[[], None]
    cold: float
    warm: float = NAN
    memory: float = NAN


def first_run(make: Callable[[], Callable[[], None]]) -> tuple[float, Callable[[], None]]:
    """Makes a program, runs it once, and returns the seconds of both, and the program."""
    started = time.perf_counter()
    run = make()
    run()
    return time.perf_counter() - started, run


def ours_twice(make: Callable[[], Callable[[], None]]) -> Contestant:
    """Makes a program in JAX with a cold and with a warm cache."""
    cold = first_run(make)[0]  # the program goes, and its memory is free for the second
    jax.clear_caches()
    warm, run = first_run(make)
    return Contestant(run, cold, warm)


def torch_twice(make: Callable[[], Callable[[], None]], compiled: bool) -> Contestant:
    """Makes a program in PyTorch, and a second time with a warm cache if it is compiled."""
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    cold, run = first_run(make)
    memory = float(torch.cuda.max_memory_allocated()) if ON_GPU else NAN
    warm = NAN
    if compiled:
        del run  # its memory is free for the second
        torch._dynamo.reset()
        warm, run = first_run(make)
    return Contestant(run, cold, warm, memory)


Contestants: TypeAlias = Callable[[Case, Assembly], Iterable[tuple[str, Contestant]]]


def compare(contestants: Contestants, operations: Callable[[Case, Assembly], float]) -> None:
    """Times the contestants of each case in turn and prints a table.

    Args:
      contestants: (case, our assembly) -> names and contestants. Ratios are to the first one's time.
      operations: (case, our assembly) -> floating-point operations of one run.
    """
    peak, device = measured_peak(), jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}, torch {torch.__version__}, {DTYPE}")
    print(f"the fastest matrix product makes {peak / 1e9:,.0f} GFLOP/s\n")
    head = f"{'case':7}{'':15}{'ms':>10}{'examples/s':>12}{'ratio':>8}{'of peak':>9}{'cold':>9}{'warm':>9}"
    print(f"{head}{'memory':>12}")
    lines = []
    for name, case in cases(ON_A_GPU if ON_GPU else ON_A_CPU).items():
        ours = assembled(case)
        check_same_function(case, ours)
        each = dict(contestants(case, ours))
        least = in_turn({key: contestant.run for key, contestant in each.items()}, ROUNDS.value)
        base = next(iter(least.values()))
        for key, seconds in least.items():
            _, cold, warm, memory = each[key]
            line = {"case": name, "contestant": key, "seconds": seconds, "ratio": seconds / base, "cold": cold}
            line |= {"of_peak": operations(case, ours) / seconds / peak, "warm": warm, "memory": memory}
            lines.append(line)
            print(
                f"{name:7}{key:15}{1e3 * seconds:10.1f}{case.batch / seconds:12.1f}{line['ratio']:8.2f}"
                f"{line['of_peak']:9.1%}{_text(cold, ' s', 1):>9}{_text(warm, ' s', 1):>9}"
                f"{_text(memory / 2**20, ' MiB', 0):>12}",
                flush=True,
            )
    save({"device": device, "peak": peak, "lines": lines})


def cases(default: Sequence[str]) -> dict[str, Case]:
    """Returns the cases that --cases names, or those of ``default``.

    Raises:
      UserError: for a name that is not in ``CASES``.
    """
    names = CASES_FLAG.value or default
    for name in names:
        if name not in CASES:
            raise UserError(f"--cases takes names among {', '.join(CASES)}; got {name!r}{hint(name, CASES)}")
    return {name: CASES[name] for name in names}


def save(found: Mapping[str, Any]) -> None:
    """Writes JSON to the file that --json names, if it names one."""
    if JSON.value:
        Path(JSON.value).write_text(kinds.as_json(dict(found)))


def in_turn(runs: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Runs them in turn and returns the least seconds of each."""
    clock = time.perf_counter if ON_GPU else time.process_time
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            started = clock()
            run()
            least[name] = min(least[name], clock() - started)
    return least


def assembled(case: Case, dtype: str = DTYPE, **settings: Any) -> Assembly:
    """What train.py makes of the case, with other ``settings`` of the config."""
    c = configs.default()
    c.update({"network": {**case.network, "dtype": dtype}, "batch_size": case.batch, **settings})
    info = DataInfo("benchmark", Vectors(case.shape), {"label": Label(tuple(map(str, range(CLASSES))))})
    return assemble(configs.complete(c), info, jax.devices()[:1])


def batch_of(case: Case) -> Batch:
    """Normal numbers with random labels."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(case.batch, *case.shape)).astype(np.float32)
    label = rng.integers(CLASSES, size=case.batch).astype(np.int32)
    return Batch(x, {"label": label}, np.arange(case.batch, dtype=np.int32))


def random_params(ours: Assembly) -> Any:
    """Parameters with which every layer matters; at initialisation the output is 0."""
    rng = np.random.default_rng(1)
    params = jax.device_get(ours.init(ours.init_key).params)
    return jax.tree.map(lambda a: (a + 0.02 * rng.normal(size=a.shape)).astype(np.float32), params)


def torch_network(case: Case, params: Any) -> torch.nn.Module:
    """The network of the case in PyTorch, with our parameters."""
    settings = {k: v for k, v in case.network.items() if k != "name"}
    network = torch_networks.NETWORKS[case.network["name"]](case.shape, CLASSES, **settings)
    torch_networks.load(network, leaves_by_path(params))
    network = network.to(DEVICE)
    return network.to(memory_format=torch.channels_last) if case.network["name"] == "unet" else network


def check_same_function(case: Case, ours: Assembly) -> None:
    """Raises AssertionError unless both networks compute the same velocity from the same parameters."""
    params, batch, t = random_params(ours), batch_of(case), np.linspace(0.1, 0.9, case.batch, dtype=np.float32)
    velocity = jax.jit(ours.model.network.velocity)
    u = np.array(velocity(params, jnp.asarray(t), jnp.asarray(batch.x), given(batch.value)))
    with torch.no_grad(), autocast():
        inputs = (torch.tensor(a, device=DEVICE) for a in (t, batch.x, batch.value["label"].astype(np.int64)))
        theirs = torch_network(case, params)(*inputs).float().cpu().numpy()
    error = np.abs(u - theirs).max() / np.abs(u).max()
    assert error < (5e-2 if ON_GPU else 1e-4), f"the networks differ by {error:.1e}"


def autocast() -> AbstractContextManager[Any]:
    """bfloat16 on a GPU."""
    return torch.autocast(DEVICE, torch.bfloat16) if ON_GPU else nullcontext()


def wait(program: Callable[..., Any], *arguments: Any) -> None:
    """Runs a program in JAX and waits for its result."""
    jax.block_until_ready(program(*arguments))


def synchronize() -> None:
    """Waits for PyTorch's GPU."""
    if ON_GPU:
        torch.cuda.synchronize()


def measured_peak() -> float:
    """Operations per second of the fastest of some large matrix products, by JAX and by PyTorch."""
    best = 0.0
    for n in (4096, 8192) if ON_GPU else (512, 1024):
        a, b = jnp.ones((n, n), DTYPE), torch.ones((n, n), dtype=getattr(torch, DTYPE), device=DEVICE)
        runs = {"jax": partial(wait, jax.jit(jnp.matmul), a, a), "torch": partial(_torch_product, b)}
        best = max(best, 2 * n**3 / min(in_turn(runs, 10).values()))
    return best


def _torch_product(b: torch.Tensor) -> None:
    _ = b @ b
    synchronize()


def _text(value: float, unit: str, digits: int) -> str:
    return "-" if value != value else f"{value:,.{digits}f}{unit}"
