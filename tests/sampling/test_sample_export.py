"""An exported sampler draws the same samples, and needs nothing but jax."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from flowguide import sampling
from flowguide.errors import UserError
from tests.support.packages import HEAVY, without
from tests.support.toy import FKC, MODEL, draw

DRAW = """
import numpy as np
from jax import export
sampler = export.deserialize(bytearray(open("sampler", "rb").read()))
for num in (10, 3):
    index, ones = np.arange(num, dtype=np.int32), np.ones(num, np.int32)
    value, present = {"hat": ones, "beard": 0 * ones}, {"hat": ones > 0, "beard": ones < 0}
    np.save(f"{num}.npy", sampler.call(np.uint32(0), index, np.full(num, 2, np.float32), value, present))
"""


@pytest.mark.thorough
@pytest.mark.parametrize("solver", ["ab3", "renoise_2m", "dopri5", "ab3 with icg"])
def test_an_exported_sampler_runs_with_jax_alone(solver, tmp_path):
    options: dict[str, Any] = {
        "negative": ["beard=yes"],
        "gamma_negative": 0.5,
        "config": sampling.SamplerConfig(solver, 6),
    }
    if "icg" in solver:
        options = {"config": sampling.SamplerConfig("ab3", 6, guidance="icg")}
    content = sampling.export(MODEL, platforms=["cpu", "cuda"], **options)
    (tmp_path / "sampler").write_bytes(content)
    expected = draw(**options).x
    command = [sys.executable, "-c", without([*HEAVY, "flowguide"]) + DRAW]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for num in (10, 3):
        np.testing.assert_allclose(np.load(tmp_path / f"{num}.npy"), expected[:num], rtol=1e-5, atol=1e-5)


def test_particles_are_not_exported():
    with pytest.raises(UserError, match="draws particles together"):
        sampling.export(MODEL, config=FKC)
