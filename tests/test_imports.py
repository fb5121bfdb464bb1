"""The importer's door: solvers, guidance and the other core rooms need nothing but jax and numpy."""

import subprocess
import sys

CORE = [
    "typing",
    "condition",
    "paths",
    "couplings",
    "times",
    "solvers",
    "guidance",
    "analytic",
    "losses",
    "likelihood",
    "tilted",
]
HEAVY = ["flax", "optax", "orbax", "grain", "tensorflow", "tensorflow_datasets", "ml_collections", "absl", "chex"]
HEAVY += ["diffrax", "matplotlib", "PIL", "sklearn", "scipy.stats", "tqdm"]


def test_core_rooms_import_only_jax_and_numpy():
    code = "import importlib, sys\n"
    # A name that is None in sys.modules cannot be imported: an environment without these packages.
    code += f"sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
    code += f"for room in {CORE!r}: importlib.import_module('flowguide.' + room)\n"
    code += f"print([name for name in {HEAVY!r} if sys.modules.get(name)])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "[]"
