"""What a run tells of its devices, and by whom."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from flowguide.training.logs import Log, bytes_on, device_memory
from flowguide.training.spread import data_parallel, fsdp, lay_out


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
