"""Thousands of random settings, prompts, commands and damaged files: each is used or refused; none is a traceback.

Every case follows from its kind and number alone: ``KINDS[kind](np.random.default_rng(number), places)`` repeats it.
"""

import contextlib
import json
import struct
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from flowguide import build, config, model, sampling, schema
from flowguide.data import idx, open_dataset, prepare
from flowguide.data.pixels import decode, encode_png
from flowguide.errors import UserError
from flowguide.schema import DataInfo, Images, Label, Tokens, Vector, info_from_json, info_to_json
from flowguide.schema.fields import value as value_of
from flowguide.training import loop
from tests.support.runs import ROOT, small

FIELDS = {
    "hat": Label(("none", "red", "dark blue")),
    "pose": Vector(2),
    "caption": Tokens(4, ("", "a", "happy", "red", "face")),
}
INFO = DataInfo("toy", Images((4, 4, 1)), FIELDS)

# What someone, a script or a bad disk may leave in the place of a value.
ODD = [None, True, False, "", "a", "nan", "\ud800", "\0", "../..", [], {}, [[]], {"name": "x"}, {"a": {"b": []}}]
ODD += [0, 1, -1, 3, 10**6, 2**31, 2**64, 10**400, 0.0, -0.5, 1e-320, 1e39, 1e308, float("nan"), float("inf")]
ODD += [[None], b"a", {1, 2}]
WORDS = ["hat", "pose", "caption", "red", "dark blue", "happy", "none", "=", ",", ":", " ", "  ", "\n", "\0", "\ud800"]
WORDS += ["0", "1", "2", "-1", "1e39", "nan", "inf", "9" * 5000, "²", "٣", "1_0", "x" * 300, "hat=red", "pose=1 2"]


class Places(NamedTuple):
    """Folders that a case may damage, and mends."""

    run: Path
    data: Path
    scratch: Path


def pick(random, of):
    return of[random.integers(len(of))]


def damaged(random, content):
    """A file whose bits, bytes or end are not what they were."""
    content = bytearray(content)
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(len(content) + 1))
        match random.integers(5):
            case 0 if content:
                content[at % len(content)] ^= 1 << random.integers(8)
            case 1:
                content = content[:at]
            case 2:
                del content[at : at + random.integers(1, 20)]
            case 3:
                content[at:at] = random.bytes(random.integers(1, 20))
            case 4:
                content[at:at] = str(pick(random, ODD)).encode(errors="replace")
    return bytes(content)


@contextlib.contextmanager
def instead(file, content):
    """``content`` in the place of a file, a folder where it is None; afterwards the file is back."""
    aside = file.with_name(file.name + ".aside")
    file.rename(aside)
    try:
        file.mkdir() if content is None else file.write_bytes(content)
        yield
    finally:
        file.rmdir() if content is None else file.unlink()
        aside.rename(file)


def change(random, tree):
    """A tree of dicts in which one value is another, missing, or beside one more."""
    place = tree
    while True:
        name = pick(random, list(place)) if place else ""
        if not isinstance(place.get(name), dict) or random.random() < 0.2:
            break
        place = place[name]
    match random.integers(6):
        case 0:
            place.pop(name, None)
        case 1:
            place[str(pick(random, ODD))] = pick(random, ODD)
        case _:
            place[name] = pick(random, ODD)


def prompt(random, places):
    text = "".join(pick(random, WORDS) for _ in range(random.integers(8)))
    fields = pick(
        random, [FIELDS, {"hat": FIELDS["hat"]}, {"pose": FIELDS["pose"]}, {"caption": FIELDS["caption"]}, {}]
    )
    schema.condition([text], fields)


def value(random, places):
    name = pick(random, list(FIELDS))
    given = pick(
        random, [*ODD, np.float64(1e39), np.array([1.0, np.nan]), np.arange(4), np.array("a"), np.zeros((2, 2))]
    )
    value_of(name, given, FIELDS[name])


def settings(random, places):
    """A config in memory, with its choices."""
    tree = config.default().to_dict()
    for name in config.CHOICES:
        known = {"network": ("mlp", "unet", "dit", "os:path", "a:b"), "times": ("karras", "sway"), "ema": ("power",)}
        known |= {"coupling": ("assigned",), "target": ("model_guidance", "guidance_free", "distilled")}
        known |= {"weight": ("min_snr",), "layout": ("fsdp",), "path": ("vp", "trig")}
        known |= {"optimizer": ("lion", "muon", "sgd"), "output": ("x1", "epsilon")}
        if random.random() < 0.3:
            tree[name] = {"name": pick(random, known[name])}
    own = ["width", "heads", "patch", "dtype", "attention", "rho", "k", "std", "gamma", "low", "gamma_range", "limit"]
    own += ["beta_min", "beta", "b1", "momentum", "nesterov"]
    for _ in range(random.integers(1, 3)):
        if random.random() < 0.4:
            tree[pick(random, config.CHOICES)][pick(random, own)] = pick(random, ODD)
        else:
            change(random, tree)
    try:
        c = ConfigDict(tree)
    except Exception:
        return  # it is no ConfigDict, so no config that our code could be given
    config.check_types(c)
    config.complete(c)
    config.check_numbers(c, 1)
    build.recipe(c)
    build.average(c)
    build.optimizer(c)
    build.layout(c, jax.devices()[:1])
    model.from_config(c, INFO)


def config_file(random, places):
    """config.json beside a run: other values, or other bytes."""
    json_file(random, places, "config.json")


def info_file(random, places):
    """info.json beside a run."""
    json_file(random, places, "info.json")


def json_file(random, places, name):
    file = places.run / name
    content = json.loads(file.read_text())
    change(random, content)
    try:
        text = json.dumps(content).encode()
    except TypeError:
        return
    with instead(file, pick(random, [text, damaged(random, file.read_bytes()), None])):
        sampling.load(places.run)


def info_json(random, places):
    """A description of data with every type of field."""
    content = json.loads(json.dumps(info_to_json(INFO)))
    change(random, content)
    info_from_json(content)


def checkpoint_file(random, places):
    """Any file of a checkpoint."""
    files = [file for file in sorted((places.run / "checkpoints").rglob("*")) if file.is_file()]
    file = pick(random, files)
    with instead(file, pick(random, [damaged(random, file.read_bytes()), b"", None])):
        sampling.load(places.run)


def data_file(random, places):
    """Any file of a prepared data set but its records, which are hashed."""
    files = [f for f in sorted(places.data.glob("digits/*/*")) if "array_record" not in f.name]
    file = pick(random, files)
    with instead(file, pick(random, [damaged(random, file.read_bytes()), damaged(random, file.read_bytes()), None])):
        open_dataset("digits", "test", data_dir=places.data, memory_limit=0).read(np.arange(3))


def image(random, places):
    shape = (8, 8, pick(random, [1, 3, 4]))
    content = encode_png(random.integers(0, 256, shape, np.uint8)).getvalue()
    decode(damaged(random, content), shape, resize=bool(random.integers(2)))


def idx_file(random, places):
    array = random.integers(0, 256, (3, 28, 28), np.uint8)
    content = struct.pack(">BBBB3I", 0, 0, 8, 3, *array.shape) + array.tobytes()
    (places.scratch / "file").write_bytes(damaged(random, content))
    idx.read(places.scratch / "file", "mnist")


FLAGS = {  # of each script
    "sample.py": "cond negative gamma guidance compose perturb interval grid sampler solver steps eta tolerance seed "
    "num step out export weak schedule until clip",
    "train.py": "config config.lr config.steps config.times config.times.name config.data.name config.data.split "
    "config.drop_field_rate config.preview.gammas config.network.width config.seed config. workdir stop_after x "
    "config.path config.path.name config.path.beta_min config.optimizer.name config.optimizer config.network.name",
}

# Of 2,000 cases, how many of each kind; what reads a whole checkpoint takes longest.
KINDS = {
    prompt: 400,
    value: 200,
    settings: 400,
    info_json: 200,
    image: 200,
    idx_file: 100,
    data_file: 150,
    config_file: 100,
    info_file: 100,
    checkpoint_file: 50,
}
COMMANDS = 50  # of each script, in one process


OF_A_RUN = (config_file, info_file, checkpoint_file)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders, with a prepared data set and without a run."""
    run, data, scratch = (tmp_path_factory.mktemp(name) for name in ("run", "data", "scratch"))
    prepare("digits", data)
    return Places(run, data, scratch)


def check(chosen, places):
    """Runs cases; those that end in anything but success or a ``UserError`` of one line are shown."""
    bad, refused = [], 0
    for kind, number in chosen:
        try:
            kind(np.random.default_rng(number), places)
        except UserError:
            refused += 1
        except Exception:
            bad.append(f"{kind.__name__} {number}: {''.join(traceback.format_exc().splitlines(True)[-5:])}")
    assert not bad, f"{len(bad)} of {len(chosen)}:\n" + "\n".join(bad[:20])
    assert 0.2 * len(chosen) < refused < len(chosen)


def arguments(random, name):
    """Flags of a script with odd values, of a run or a data set that is not there."""
    texts = (
        [str(v) for v in ODD] + WORDS + ["heun", "dopri5", "renoise", "fkc", "skip=nan", "0,1", "3:1,4:nan", "cfg_pp"]
    )
    flags = FLAGS[name].split()
    chosen = [f"--{pick(random, flags)}={pick(random, texts)}" for _ in range(random.integers(1, 4))]
    return [a.encode(errors="ignore").decode().replace("\0", "") for a in chosen]


def test_a_hundred_odd_inputs_are_used_or_refused(places):
    kinds = [kind for kind in KINDS if kind not in OF_A_RUN]
    check([(kind, number) for kind in kinds for number in range(KINDS[kind] // 16)], places)


@pytest.mark.slow
def test_two_thousand_odd_inputs_are_used_or_refused(places, data_dir):
    loop.train(small(data_dir, steps=2, warmup=1), places.run)
    check([(kind, number) for kind, count in KINDS.items() for number in range(count)], places)


RUN_ALL = """
import importlib, json, sys, traceback
from flowguide.cli import command
name = sys.argv[1]
asked = importlib.import_module("flowguide.cli." + name.removesuffix(".py")).COMMAND
if name == "train.py":
    asked = asked._replace(main=lambda values: None)
for arguments in json.load(sys.stdin):
    try:
        command.run(asked, name, arguments)
    except SystemExit:
        pass
    except BaseException:
        print("bad", arguments, traceback.format_exc()[-600:])
    print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAGS)
def test_odd_commands_are_one_line(name):
    first = ["--workdir=nowhere", *["--config=points"] * (name == "train.py")]
    asked = [[*first, *arguments(np.random.default_rng(i), name)] for i in range(COMMANDS)]
    command = [sys.executable, "-c", RUN_ALL, name]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(asked), capture_output=True, text=True, check=True)
    told = done.stdout.splitlines()
    assert told == ["done"] * len(asked), done.stdout[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert all(line.startswith(f"{name}: error: ") for line in lines), done.stderr[-3000:]
    assert len(lines) > len(asked) / 2
