"""The Python blocks of every page run, in order and in one namespace, on small stand-ins for what the page leaves open.

A block that is not run is compiled, and ``COMPILED`` says why. A page that takes more than a dozen
seconds is slow.
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flowguide
from flowguide import analytic, config, model, paths, sampling, solvers, times
from flowguide.networks import Network
from flowguide.schema import Images, Label
from tests.support import toy
from tests.support.pages import PAGES, blocks
from tests.support.runs import ROOT
from tests.support.text_encoders import ngrams

RNG = np.random.default_rng(0)

COMPILED = {
    "Solver = (init, step, nodes)": "signatures, not a program",
    "class Model(NamedTuple):": "signatures; test_the_model_is_as_described compares the fields",
    "load_inception(": "needs the weights of Inception, which are not in the package",
    "load_vae(": "needs an autoencoder's file, which is not in the package; tests/test_autoencoder.py reads such files",
    "class Poses(": "TFDS keeps a builder for good; tests/data and tests/test_extending.py prepare such sets",
}

FACE_FIELDS = {
    "hat": Label(("none", "red", "blue")),
    "glasses": Label(("none", "dark", "light")),
    "beard": Label(("no", "yes")),
}


def _face(params, t, x, c):
    total = sum((jnp.where(c.present[k], c.value[k] + 1.0, 0.0) for k in FACE_FIELDS), jnp.zeros(len(x)))
    return 0.1 * total[:, None, None, None] - x


FACES = toy.MODEL._replace(
    info=toy.MODEL.info._replace(examples=Images((16, 16, 3)), fields=FACE_FIELDS),
    network=toy.NETWORK._replace(velocity=_face),
)
DIGITS = toy.ONE._replace(info=toy.ONE.info._replace(fields={"label": Label(tuple("0123456789"))}))
DIGITS = DIGITS._replace(
    network=Network(
        DIGITS.network.init,
        lambda params, t, x, c: (
            jnp.where(c.present["label"], jnp.sin(c.value["label"] + 1.0), 0)[:, None, None, None] - x
        ),
    )
)
LABELS = np.arange(8, dtype=np.int32) % 3
X0 = jax.random.normal(jax.random.key(0), (8, 2))


def velocity(t, x, c=None):
    """Unconditional as (t, x), conditional as (t, x, c): towards a point on the line of each class."""
    if c is None:
        return jnp.float32(0.5) - x
    centre = jnp.where(c.present, c.value + 1.0, 0.5).astype(x.dtype)
    return centre.reshape(-1, *[1] * (x.ndim - 1)) - x


def arrays() -> dict[str, Any]:
    """What most pages call by name."""
    return {
        **{"jax": jax, "jnp": jnp, "np": np, "paths": paths, "solvers": solvers, "times": times},
        **{"labels": LABELS, "velocity": velocity, "x0": X0, "solve": solvers.solve, "grid": times.grid},
        **{"c": config.default(), "keys": jax.random.split(jax.random.key(0), 8)},
    }


def tiny() -> config.Config:
    """A training of seconds: compilation is most of it."""
    c = config.default()
    c.network = {"name": "mlp", "width": 16, "depth": 1}
    c.update({"steps": 2, "batch_size": 16, "warmup": 1, "eval_examples": 8})
    c.preview.every = 0
    return c


def images(n: int = 64, side: int = 32) -> np.ndarray:
    return RNG.integers(0, 256, (n, side, side, 1), np.uint8)


def fitted() -> dict[str, Any]:
    """A small table with classes, and a model of it."""
    x = RNG.normal(size=(64, 2)).astype(np.float32)
    names = np.array(["class_0", "class_1"])[np.arange(64) % 2]
    return {"model": flowguide.fit(x, names, config=tiny()), "x": x[:4]}


def pets() -> dict[str, Any]:
    """A model of small images with two classes, trained from a file, and what was measured of some."""
    x = images(128)
    np.savez("pets.npz", image=x, label=np.array(["cat", "dog"])[np.arange(128) % 2])
    for name, photo in {"small.png": x[0, ::4, ::4, 0], "blurred.png": x[1, ..., 0]}.items():
        Image.fromarray(photo).save(name)
    half = x[:16].astype(np.float32)
    half[:, 16:] = np.nan
    return {
        "model": flowguide.fit("pets.npz", workdir="runs/pets", config=tiny()),
        "half": half,
        "photo": half[0],
        "small": x[0, ::4, ::4],
        "blurred": x[1],
        "y": x[0, :, :4] * 2.0,
        "function": lambda x: 2 * x[:, :, :4],
    }


def exported() -> dict[str, Any]:
    content = sampling.export(DIGITS, config=sampling.SamplerConfig("euler", 2), platforms=["cpu"])
    with open("digits.hlo", "wb") as file:
        file.write(content)
    return {"labels": LABELS}


def inverse_problem() -> dict[str, Any]:
    x = jax.random.normal(jax.random.key(1), (4, 4, 4, 1))
    known = np.arange(16).reshape(4, 4, 1) % 2 == 0
    c = flowguide.condition.given(LABELS[:4])
    return {"known": known, "photos": x, "noise": x, "x0": x, "c": c, "path": paths.linear()}


def digit_images(n: int) -> Any:
    labels = np.arange(n) % 4
    x = RNG.integers(0, 60, (n, 8, 8, 1), np.uint8)
    x[np.arange(n), labels] += 150  # a bright row
    return type("Real", (), {"x": x, "value": {"digit": labels}})()


@dataclass(frozen=True)
class Page:
    """How the blocks of a page run.

    Attributes:
      given: the names that the page leaves open.
      before: words in a block -> names to set before it.
      edits: text -> what runs in its place: shorter trainings, fewer draws.
      slow: whether it takes more than a dozen seconds.
    """

    given: Callable[[], dict[str, Any]] = arrays
    before: dict[str, Callable[[], dict[str, Any]]] = field(default_factory=dict)
    edits: dict[str, str] = field(default_factory=dict)
    slow: bool = False


TABLE = {
    "README.md": Page(
        lambda: arrays() | {"tiny": tiny(), "images": images(), "labels": np.array(["cat", "dog"])[np.arange(64) % 2]},
        before={"classifier_free": lambda: {"labels": LABELS}},
        edits={"minutes=5": "config=tiny"},
        slow=True,
    ),
    "getting-started.md": Page(),
    "your-data.md": Page(
        lambda: {
            "tiny": tiny(),
            "images": images(),
            "labels": np.array(["cat", "dog"])[np.arange(64) % 2],
            "theta": RNG.normal(size=(64, 2)),
            "observed": np.zeros(3, np.float32),
            "age": RNG.uniform(20, 80, 64),
            "income": RNG.lognormal(10, 1, 64),
            "city": np.array(["Rome", "Oslo"])[np.arange(64) % 2],
            "smoker": np.arange(64) % 3 == 0,
            "pandas": SimpleNamespace(DataFrame=np.asarray),  # not installed
            "captions": [f"{'red' if i % 2 else 'dark'} hat number {i}, with or without glasses" for i in range(64)],
            "encode": ngrams,
        },
        before={
            "Inpaint(half)": pets,
            "log p(x | class_1)": fitted,
            "x=observed": lambda: {"x": RNG.normal(size=(64, 3))},
        },
        edits={
            "minutes=5": "config=tiny",
            'workdir="runs/mine", known=True': 'workdir="runs/known", known=True, config=tiny',
            'workdir="runs/people"': 'workdir="runs/people", config=tiny',
            '"width": 384, "depth": 12': '"width": 24, "depth": 1',
            "20_000": "2",
            'workdir="runs/posterior"': 'workdir="runs/posterior", config=tiny',
            "sample(1000)": "sample(64)",
        },
        slow=True,
    ),
    "inference.md": Page(
        lambda: {
            "tiny": tiny(),
            "prior": lambda n: RNG.normal(size=(n, 2)).astype(np.float32),
            "simulate": lambda theta: (theta + RNG.normal(size=theta.shape)).astype(np.float32),
            "observed": np.zeros(2, np.float32),
            "xs": np.zeros((3, 2), np.float32),
        },
        edits={
            "minutes=5": "config=tiny",
            "10_000": "128",
            "prior(300), 100": "prior(6), 8",
            "sample(1000)": "sample(64)",
        },
        slow=True,
    ),
    "training.md": Page(),
    "sampling.md": Page(
        lambda: (
            arrays()
            | {"sample": sampling.sample, "model": FACES, "digits": DIGITS}
            | {"SamplerConfig": sampling.SamplerConfig, "other": LABELS[::-1], "weak": velocity}
        ),
        before={
            "sample(model, c)": lambda: {"c": flowguide.schema.conditions({"hat": "red"}, FACE_FIELDS, 1)},
            "measured=Inpaint(photo)": pets,
            "sample_particles(": lambda: {"model": DIGITS},
            "progress=True": lambda: {"model": FACES},
            "deserialize": exported,
            "with_measurement": inverse_problem,
            "autoguidance": lambda: {"x0": X0},
        },
        slow=True,
    ),
    "solvers.md": Page(
        lambda: arrays() | {"pilot_noise": X0, "diffrax": pytest.importorskip("diffrax")},
        before={"hutchinson": lambda: {"keys": arrays()["keys"]}},
        edits={"pilot_noise, steps=8": "pilot_noise, steps=3"},
        slow=True,
    ),
    "theory.md": Page(
        lambda: arrays() | {"c": flowguide.condition.given(LABELS)}, edits={"particles=1000": "particles=8"}, slow=True
    ),
    "extending.md": Page(
        lambda: (
            arrays()
            | {"network": lambda params, t, x, c: velocity(t, x, c) * params, "params": jnp.float32(1)}
            | {"step": 3, "index": np.arange(8), "x1": X0}
        ),
        before={"mypackage.nets": lambda: {"c": config.default()}},
        edits={"EMBEDDINGS[Angle] =": "_ ="},
    ),
    "architecture.md": Page(),
    "latents.md": Page(),
    "metrics.md": Page(
        lambda: {
            "real": digit_images(1000),
            "train": digit_images(1000),
            "held_out": digit_images(1000),
            "samples": digit_images(1000).x,
            "condition": flowguide.condition.given({"digit": np.arange(1000) % 4}),
            "my_network": lambda x: x.reshape(len(x), -1)[:, :8] / 255,
        },
        before={'Path("runs/avatars")': pets},
        edits={
            "real.value)": "real.value, steps=60)",
            "runs/avatars": "runs/pets",
            'guidance="apg"': 'guidance="apg", steps=2',
            "features=my_network": "features=my_network, num=32",
        },
        slow=True,
    ),
    "pods.md": Page(),
    "released-weights.md": Page(),
}


def test_every_page_with_code_is_in_the_table():
    assert {page.name for page in PAGES if blocks(page, "python")} == set(TABLE)
    every = "\n".join(block for page in PAGES for block in blocks(page, "python"))
    assert [words for words in COMPILED if words not in every] == []


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if page.slow else []) for name, page in TABLE.items()]
)
def test_the_blocks_of_a_page_run(name, tmp_path, monkeypatch):
    (file,) = (page for page in PAGES if page.name == name)
    page, found = TABLE[name], blocks(file, "python")
    assert [words for words in (*page.before, *page.edits) if not any(words in block for block in found)] == []
    monkeypatch.chdir(tmp_path)
    load = sampling.load
    monkeypatch.setattr(
        sampling, "load", lambda run, **options: FACES if run == "runs/avatars" else load(run, **options)
    )
    names = page.given()
    for number, block in enumerate(found):
        for words, make in page.before.items():
            if words in block:
                names |= make()
        for text, instead in page.edits.items():
            block = block.replace(text, instead)
        program = compile(block, f"{name}, Python block {number}", "exec")
        if not any(words in block for words in COMPILED):
            exec(program, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_compiles(page):
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


def test_the_config_shown_is_the_file():
    shown = ast.parse(blocks(ROOT / "docs" / "training.md", "python")[0])
    file = ast.parse((ROOT / "configs" / "digits.py").read_text())
    assert ast.dump(shown) == ast.dump(ast.Module(file.body[1:], []))  # without its docstring


def test_the_model_is_as_described():
    (block,) = (b for b in blocks(ROOT / "docs" / "architecture.md", "python") if "class Model(" in b)
    fields = [ast.unparse(node.target) for node in ast.walk(ast.parse(block)) if isinstance(node, ast.AnnAssign)]
    assert {*fields, "step"} == set(model.Model._fields)


def test_the_numbers_in_comments():
    """docs/theory.md says what two calls return."""
    assert analytic.guided_moments(3.0, 0.0, 2.0, 0.0, 1.0, eta=1.0).variance == pytest.approx(0.3875, rel=1e-4)
    assert analytic.existence(2.0, 1.0)[0] == pytest.approx(-1)
