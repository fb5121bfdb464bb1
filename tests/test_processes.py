"""Several processes on one machine, real train.py and sample.py: one run, one set of samples, one end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from flowguide import checkpoint, processes, sampling
from flowguide.errors import UserError
from flowguide.training import loop
from tests.support.runs import ROOT, small

BOUND = 60  # seconds for the others to end, on a loaded machine; the heartbeat is 20
STEPS = 80


def changes():
    posthoc = {"every": 10, "widths": (0.05, 0.1), "keep": 64}
    return {
        "steps": STEPS,
        "decay": "none",
        "eval_every": 40,
        "coupling": {"name": "independent"},
        "posthoc": posthoc,
    }


@pytest.fixture(scope="module")
def config(data_dir, tmp_path_factory):
    """The config of ``small`` as a file."""
    file = tmp_path_factory.mktemp("config") / "config.py"
    file.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict("
        f"{small(data_dir, **changes()).to_dict()!r})\n"
    )
    return file


def launch(name, *arguments, devices=4, own=((), ()), slurm=False):
    """Two processes of a script, on one machine, which are told of each other or know from SLURM's environment.

    ``own`` are arguments for each.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [f"--coordinator=localhost:{port}", "--num_processes=2", "--process_id={}"]
    job = {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "NPROC": "16"}
    return [
        subprocess.Popen(
            [sys.executable, name, *arguments, *own[i], *([] if slurm else [flag.format(i) for flag in flags])],
            cwd=ROOT,
            env=env | (job | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} if slurm else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]


def finish(pair, bound=600):
    """Exit codes and outputs."""
    outputs = [process.communicate(timeout=bound)[0] for process in pair]
    return [process.returncode for process in pair], outputs


def wait_for_a_new_checkpoint(workdir, pair):
    before = set(checkpoint.folder(workdir).glob("[0-9]*"))
    while not {p for p in checkpoint.folder(workdir).glob("[0-9]*") if p.name.isdigit()} - before:
        assert all(process.poll() is None for process in pair), finish(pair)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "sample", "evaluate"])
def test_a_command_joins_the_others_before_jax_looks_for_devices(name, config, tmp_path):
    """JAX refuses afterwards; a check of the flags that computes something is enough for that."""
    program = (
        "import sys\nfrom jax._src.xla_bridge import backends_are_initialized\nfrom flowguide import cli, processes\n\n"
        "def start(*_):\n    print(backends_are_initialized())\n    sys.exit(0)\n\n"
        "processes.start = start\ncli.main(sys.argv[1:])\n"
    )
    arguments = [f"--config={config}"] if name == "train" else ["--gamma=2", "--guidance=apg"]
    arguments += ["--cond=1"] * (name == "sample")
    command = [sys.executable, "-c", program, name, f"--workdir={tmp_path}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr


def test_a_sum_over_processes_keeps_float64(monkeypatch):
    """In more than one piece, of numbers that float32 cannot hold."""
    own, other = np.random.default_rng(0).standard_normal((2, 500, 600)) + 1e9
    assert processes.total(own) is own
    parts = iter(np.array_split(other.ravel(), -(-other.nbytes // 2**20)))
    monkeypatch.setattr(processes, "is_distributed", lambda: True)
    monkeypatch.setattr(
        processes.multihost_utils, "process_allgather", lambda a: np.stack([a, next(parts).view(np.uint8)])
    )
    np.testing.assert_array_equal(processes.total(own), own + other)


@pytest.mark.slow
def test_moments_of_two_processes_are_those_of_all():
    program = """
import sys, numpy as np
from flowguide import processes
from flowguide.metrics import combine, moments
processes.start(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
x = np.random.default_rng(0).standard_normal((30, 400)) + 1e6
own = moments([x[:10], x[10:12]] if processes.is_main_process() else [x[12:]])
found, whole = combine(own, processes.total), moments([x])
assert found.count == 30
np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-12)
np.testing.assert_allclose(found.scatter, whole.scatter, atol=1e-6)
print("equal")
"""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(port), str(i)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    codes, outputs = finish(pair, BOUND)
    assert codes == [0, 0], outputs
    assert all(output.endswith("equal\n") for output in outputs)


@pytest.mark.slow
def test_two_processes_are_one_run_through_faults(config, data_dir, tmp_path):
    """Killed, preempted, its newest checkpoint damaged, its layout changed: the end is that of one process."""
    expected = loop.train(small(data_dir, **changes()), tmp_path / "one")
    workdir = tmp_path / "two"
    train = ("train.py", f"--config={config}", f"--workdir={workdir}")

    pair = launch(*train)
    wait_for_a_new_checkpoint(workdir, pair)
    pair[1].kill()
    started = time.monotonic()
    codes, outputs = finish(pair, BOUND)
    assert time.monotonic() - started < BOUND
    assert codes[1] == -9
    assert codes[0] not in (0, -9)
    # Which of these is a race: JAX's heartbeat ends the process, a collective fails, or its library aborts.
    ends = ("another task died", "another one ended first", "gloo::EnforceNotMet")
    assert any(end in outputs[0] for end in ends), outputs[0]
    assert "8 x cpu in 2 processes; from step 0" in outputs[0]
    assert "x cpu" not in outputs[1]  # one of them tells

    pair = launch(*train, "--config.layout.name=fsdp")
    wait_for_a_new_checkpoint(workdir, pair)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):  # more than one changes nothing
        pair[1].send_signal(number)
        time.sleep(0.2)
    codes, outputs = finish(pair)
    assert codes == [0, 0], outputs
    assert "the same command resumes from there" in outputs[0]
    steps = sorted(int(p.name) for p in checkpoint.folder(workdir).iterdir())
    assert steps[-1] < STEPS

    for file in (checkpoint.folder(workdir) / str(steps[-1]) / "params").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    codes, outputs = finish(launch(*train))
    assert codes == [0, 0], outputs
    assert f"checkpoints/{steps[-1]} is damaged" in outputs[0]
    assert (workdir / "broken" / str(steps[-1])).is_dir()
    assert f"from step {steps[-2]} to {STEPS}" in outputs[0]

    one, two = (sampling.load(folder) for folder in (tmp_path / "one", workdir))
    assert two.step == STEPS
    for a, b, c in zip(*map(jax.tree.leaves, (expected.ema, one.params, two.params)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(b, c, rtol=1e-4, atol=2e-6)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    scores = [line["val_loss"] for line in lines if "val_loss" in line and line["step"] == STEPS]
    truth = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    assert scores == pytest.approx([line["val_loss"] for line in truth if "val_loss" in line][-1:], rel=1e-5)

    out, one, two = (tmp_path / "samples", *(sampling.load(f, ema=0.08) for f in (tmp_path / "one", workdir)))
    for a, b in zip(*map(jax.tree.leaves, (one.params, two.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.params, expected.ema)
    assert max(jax.tree.leaves(moved)) > 1e-3  # another average than that of the checkpoint
    drawn = finish(
        launch("sample.py", f"--workdir={workdir}", "--ema=0.08", "--cond=1", "--num=21", "--save=npz", f"--out={out}")
    )
    assert drawn[0] == [0, 0], drawn
    x = np.load(out / "samples.npz")["x"]
    np.testing.assert_allclose(x, sampling.sample(two, "1", num=21, gamma=2.0).x, rtol=1e-5, atol=1e-5)
    assert "21 samples" in drawn[1][0]
    assert "samples" not in drawn[1][1]


@pytest.mark.slow
def test_two_processes_evaluate_as_one(data_dir, tmp_path):
    """One of them is killed on the way; two go on where they were, and one finishes nothing else."""
    workdir = tmp_path / "run"
    loop.train(small(data_dir), workdir)
    flags = ("-m", "flowguide", "evaluate", f"--workdir={workdir}", "--gamma=1,3", "--steps=3", "--num=1100")
    alone = [sys.executable, *flags, f"--out={tmp_path / 'one'}"]
    pair = launch(*flags, f"--out={tmp_path / 'two'}")
    chunks = tmp_path / "two" / "chunks"
    while len(list(chunks.rglob("0*.npz"))) < 2:
        assert all(process.poll() is None for process in pair), finish(pair)
        time.sleep(0.02)
    pair[1].kill()
    assert finish(pair, BOUND)[0][0] != 0
    kept = {file: file.stat().st_mtime_ns for file in chunks.rglob("0*.npz")}
    codes, outputs = finish(launch(*flags, f"--out={tmp_path / 'two'}"))
    assert codes == [0, 0], outputs
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert len(list(chunks.rglob("0*.npz"))) == 6
    assert "held-out real" in outputs[0]
    assert "held-out real" not in outputs[1]

    done = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    for a, b in zip((one["held_out"], *one["rows"]), (two["held_out"], *two["rows"]), strict=True):
        for name in ("frechet_distance", "recall", "joint_adherence", "inception_score", "sliced_wasserstein"):
            assert a["metrics"][name] == pytest.approx(b["metrics"][name], rel=1e-3, abs=2e-3), name


@pytest.mark.slow
@pytest.mark.parametrize("what", ["config", "folder", "command"])
def test_processes_that_differ_are_refused(config, tmp_path, what):
    a, b = f"--workdir={tmp_path}/a", f"--workdir={tmp_path}/b"
    name, own, message = {
        "config": ("train.py", ((a,), (a, "--config.lr=0.1")), "process 1 has another config than process 0"),
        "folder": ("train.py", ((a,), (b,)), "that their machines share"),
        "command": ("sample.py", ((a,), (a, "--seed=1")), "process 1 has another command than process 0"),
    }[what]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "info.json").write_text("{}")  # of a run, but not of this one
    given = [] if name == "sample.py" else [f"--config={config}"]
    codes, outputs = finish(launch(name, *given, devices=1, own=own, slurm=what == "folder"), BOUND)
    for code, output in zip(codes, outputs, strict=True):
        assert code == 2, output
        assert message in output
    assert not list(tmp_path.glob("a/*.json"))
    assert not (tmp_path / "a" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("error", ["OSError", "ArithmeticError"])
def test_one_that_fails_ends_and_so_do_the_others(config, tmp_path, monkeypatch, error):
    """With an error of its own, in the loop, while the others wait for it in the next step."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    failing = tmp_path / "failing.py"
    failing.write_text(
        config.read_text() + "\n\nimport sys\nfrom flowguide.training.logs import Log\n\n\ndef tick(self, loss):\n"
        f"    if '--process_id=1' in sys.argv:\n        raise {error}('the disk of this host is gone')\n\n\n"
        "Log.tick = tick\n"
    )
    pair = launch("train.py", f"--config={failing}", f"--workdir={tmp_path}/a", devices=1)
    codes, outputs = finish(pair, 2 * BOUND)
    assert "the disk of this host is gone" in outputs[1]
    assert codes[0] not in (0, 2)
    if error == "OSError":  # then what it has in memory is saved by itself
        assert codes[1] == 2
        assert "the state of step 2 was saved to" in outputs[1]
        (rescued,) = tmp_path.glob("flowguide-rescued-*")
        assert sampling.load(rescued).step == 2
    else:
        assert codes[1] == 1
        assert "process 1 of 2 ends, and with it the others" in outputs[1]


COORDINATES = {
    "no index": (("localhost:1", 2, None), "--num_processes=N and --process_id=0 to N - 1; got 2 and None"),
    "an index too large": (("localhost:1", 2, 2), "got 2 and 2"),
    "no address": ((None, 2, 0), "need --coordinator=HOST:PORT"),
    "alone with others": (("none", 2, 0), "need --coordinator=HOST:PORT"),
}


@pytest.mark.parametrize("name", COORDINATES)
def test_half_a_coordinator_is_refused(name):
    arguments, message = COORDINATES[name]
    with pytest.raises(UserError, match=message):
        processes.start(*arguments)


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, "SLURM"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({}, None),
    ],
)
def test_one_of_several_does_not_run_alone_unasked(environment, launcher, monkeypatch):
    """Where a launcher has started several and JAX cannot make out the rest, each would train the same run."""

    def initialize(*args, **options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(processes.jax.distributed, "initialize", initialize)
    for name in ("SLURM_PROCID", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if launcher is None:
        processes.start()
    else:
        with pytest.raises(UserError, match=f"{launcher}.*has started this process as one of several"):
            processes.start()
        processes.start("none")
