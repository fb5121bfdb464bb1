"""What a stranger installs: the wheel and the sdist, each in an empty environment, trained and sampled from there."""

import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest

from tests.support.runs import ROOT

pytestmark = pytest.mark.slow

SETTINGS = "--config.network.width=16 --config.network.depth=1 --config.network.refine=0 --config.steps=4 "
SETTINGS += "--config.warmup=1 --config.batch_size=8 --config.eval_examples=8 --config.preview.num=2"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel, made from the sdist as pip would, and the sdist."""
    place = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(place), str(ROOT)], check=True, capture_output=True)
    (wheel,), (sdist,) = place.glob("*.whl"), place.glob("*.tar.gz")
    return wheel, sdist


def environment(place):
    """An empty environment: its folder of commands."""
    venv.create(place, with_pip=True)
    return place / "bin"


def run(*command, cwd):
    """Runs a command far away from the repository."""
    return subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)


def install(commands, *what):
    done = run(commands / "python", "-m", "pip", "install", "--quiet", *what, cwd="/")
    assert done.returncode == 0, done.stderr


def test_the_archives_hold_what_they_should(built):
    wheel, sdist = built
    names = zipfile.ZipFile(wheel).namelist()
    assert {"flowguide/configs/avatars.py", "flowguide/data/files/avatars16.npz", "flowguide/py.typed"} <= set(names)
    assert {f"flowguide/page/{name}" for name in ("template.html", "page.css", "page.js")} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "train.py"))]
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"train.py", "configs/avatars.py", "tests/conftest.py", "docs/index.md", "README.md", "LICENSE"} <= inside


def test_the_core_needs_jax_and_numpy_alone(built, tmp_path):
    commands = environment(tmp_path / "core")
    install(commands, built[0])
    listed = run(commands / "python", "-m", "pip", "list", "--format=freeze", cwd=tmp_path).stdout.lower()
    assert "jax==" in listed
    assert not [name for name in ("flax", "optax", "orbax", "tensorflow", "matplotlib") if name in listed]
    code = "import flowguide, jax.numpy as jnp; s = flowguide.solvers; "
    code += "print(s.solve(s.heun(), lambda t, x: -x, jnp.ones((1, 2)), flowguide.times.grid(50))[0, 0])"
    done = run(commands / "python", "-c", code, cwd=tmp_path)
    assert abs(float(done.stdout) - 0.36788) < 1e-3, done.stderr
    refused = run(commands / "flowguide", "train", "--config=avatars", cwd=tmp_path)
    assert refused.returncode == 2
    assert 'pip install "flowguide[train]"' in refused.stderr


def test_wheel_and_sdist_train_and_sample(built, tmp_path):
    wheel, sdist = built
    commands = environment(tmp_path / "whole")
    for name, what in (
        ("wheel", [f"flowguide[train] @ file://{wheel}"]),
        ("sdist", ["--force-reinstall", "--no-deps", str(sdist)]),
    ):
        install(commands, *what)
        runs = tmp_path / name
        data = ["--config.data.data_dir=" + str(tmp_path / "data")]
        train = run(
            commands / "flowguide",
            "train",
            "--config=avatars",
            f"--workdir={runs}",
            *SETTINGS.split(),
            *data,
            cwd=tmp_path,
        )
        assert train.returncode == 0, train.stderr
        sample = run(
            commands / "flowguide",
            "sample",
            f"--workdir={runs}",
            "--cond=hat=red",
            "--num=2",
            "--steps=2",
            cwd=tmp_path,
        )
        assert sample.returncode == 0, sample.stderr
        assert (runs / "samples" / "grid.png").exists()
    assert run(commands / "flowguide", "--version", cwd=tmp_path).stdout.strip()
