"""What a run tells of its devices, and by whom."""

import json
import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from flowguide.training.logs import Log, bytes_on, device_memory
from flowguide.training.parallel import data_parallel, fsdp, lay_out


def test_memory_of_a_device_that_says_and_of_one_that_does_not():
    stats = {"bytes_in_use": 3, "peak_bytes_in_use": 5, "num_allocs": 7}
    assert device_memory(SimpleNamespace(memory_stats=lambda: stats)) == {"memory_in_use": 3, "memory_peak": 5}
    assert device_memory(SimpleNamespace(memory_stats=lambda: None)) == {}


def test_bytes_on_a_device_are_those_of_its_parts():
    tree = {"a": jnp.zeros((16, 8)), "b": jnp.zeros(3, jnp.bfloat16)}
    whole = lay_out(tree, data_parallel(jax.devices()))
    split = lay_out(tree, fsdp(jax.devices(), min_size=8))
    assert bytes_on(jax.devices()[3], whole) == 16 * 8 * 4 + 3 * 2
    assert bytes_on(jax.devices()[3], split) == 16 * 8 * 4 // 8 + 3 * 2


def test_one_process_writes(tmp_path, capsys):
    for silent in (True, False):
        workdir = tmp_path / str(silent)
        workdir.mkdir()
        with Log(workdir, 0, 2, 8, silent=silent) as log:
            log.say("a line")
            log.tick(0.5)
            log.scalars(1, {"loss": 0.5})
            log.picture(1, "samples", np.zeros((4, 4, 3), np.uint8))
            log.picture(1, "samples", None)
        told = capsys.readouterr()
        assert ("a line" in told.out + told.err) != silent
        assert bool(list(workdir.iterdir())) != silent
    (line,) = (tmp_path / "False" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] == 0.5


def test_a_full_disk_does_not_hang_who_writes_to_tensorboard(tmp_path):
    """No file of this process may grow beyond 4,000 bytes; its lines go nowhere, its pictures have no room."""
    program = (
        "import pathlib, sys, time; from flowguide.training.logs import Log\n"
        "with Log(pathlib.Path(sys.argv[1]), 0, 9, 8) as log:\n"
        "    for step in range(500): log.scalars(step, {'a': 1.0, 'b': 2.0}); time.sleep(0.002)\n"
        "print('done')"
    )
    (tmp_path / "metrics.jsonl").symlink_to(os.devnull)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert "nothing more is written for TensorBoard" in done.stderr
