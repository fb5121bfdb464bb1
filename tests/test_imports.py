"""What an import needs: the core rooms jax and numpy alone, sampling no data room."""

import subprocess
import sys

import numpy as np
import pytest

from tests.support.packages import HEAVY, OF_TRAINING, without
from tests.support.runs import ROOT

CORE = [
    "typing",
    "condition",
    "errors",
    "paths",
    "chain",
    "couplings",
    "times",
    "solvers",
    "guidance",
    "analytic",
    "losses",
    "likelihood",
    "tilted",
    "schema",
]


def python(code):
    """Runs code in a process of its own and returns what it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_core_rooms_import_only_jax_and_numpy():
    code = f"import importlib\nfor room in {CORE!r}: importlib.import_module('flowguide.' + room)\n"
    code += f"print([name for name in {HEAVY!r} if sys.modules.get(name)])"
    assert python(without(HEAVY) + code) == "[]"


def test_rooms_are_imported_when_they_are_used():
    code = "import flowguide\nassert not [m for m in sys.modules if m.startswith('flowguide.')]\n"
    code += "print(flowguide.solvers.heun().nodes, {'solvers', 'schema', 'sampling'} <= set(dir(flowguide)))"
    assert python(without(HEAVY) + code) == "(0.0, 1.0) True"


@pytest.mark.thorough
def test_sampling_needs_no_data_room_and_no_figures(digits, tmp_path):
    """A run is loaded and sampled from where neither data nor figures nor logs can be."""
    code = f"""
import numpy as np
import pytest
from flowguide.sampling import SamplerConfig, load, sample
model = load({str(digits)!r})
x = sample(model, "3", num=2, config=SamplerConfig("euler", 2)).x
np.save({str(tmp_path / "x.npy")!r}, x)
print([name for name in sys.modules if name == "flowguide.data" or name.startswith("flowguide.data.")])
"""
    assert python(without(OF_TRAINING) + code) == "[]"
    x = np.load(tmp_path / "x.npy")
    assert (x.shape, x.dtype) == ((2, 8, 8, 1), np.uint8)
