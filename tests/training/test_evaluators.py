"""What is measured and drawn while a run trains; a picture that fails does not end it."""

import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from flowguide import build, checkpoint, evaluation, sampling
from flowguide.data import Dataset
from flowguide.errors import UserError
from flowguide.schema import Batch, DataInfo, Images, Label, Vectors
from flowguide.training import evaluators, loop
from tests.support.runs import small


@pytest.mark.thorough
def test_a_preview_that_fails_does_not_end_the_run(data_dir, tmp_path, monkeypatch, capsys):
    def refuse(*args, **options):
        raise UserError("the samples are not finite")

    monkeypatch.setattr(evaluators.sampling, "sample", refuse)
    config = small(data_dir, steps=3)
    config.preview.every = 2
    assert int(loop.train(config, tmp_path).step) == 3
    assert "no preview at step 2: the samples are not finite" in capsys.readouterr().out


@pytest.mark.thorough
def test_a_picture_that_fails_does_not_end_the_run(data_dir, tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise MemoryError("no room for\nthe figure")

    monkeypatch.setattr(evaluators, "save_figure", fail)
    config = small(data_dir, steps=2)
    config.preview.update({"every": 2, "num": 8, "solver": "euler", "steps": 2})
    assert int(loop.train(config, tmp_path).step) == 2
    assert "no preview at step 2: MemoryError: no room for the figure" in capsys.readouterr().out


EXAMPLES = {
    "scalars": ((), np.float32, True),
    "scalars with an axis, unconditional": ((1,), np.float32, False),
    "volumes": ((3, 4, 4, 1), np.float32, True),
    "float images": ((4, 4, 1), np.float32, True),
    "RGBA, unconditional": ((4, 4, 4), np.uint8, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_every_shape_are_previewed(name, tmp_path, monkeypatch, capsys):
    shape, dtype, conditional = EXAMPLES[name]
    x = (100 * np.random.default_rng(0).random((40, *shape))).astype(dtype)
    fields = {"label": Label(("a", "b"))} if conditional else {}
    info = DataInfo("made_up", Images(shape) if dtype == np.uint8 else Vectors(shape), fields)

    def read(index):
        index = np.asarray(index)
        return Batch(x[index], {"label": (index % 2).astype(np.int32)} if conditional else {})

    data = Dataset(info, "train", "1", len(x), True, read)
    monkeypatch.setattr(build, "dataset", lambda config, split, fields=None: data)
    config = small("", batch_size=8, steps=2, warmup=1, network={"depth": 1, "width": 8})
    config.preview.update({"every": 2, "num": 9, "gammas": (1.0, 2.0), "solver": "euler", "steps": 2})
    real, drawn = evaluators.save_figure, []

    def save_figure(path, cells, *labels):
        drawn.append(cells.shape)
        return real(path, cells, *labels)

    monkeypatch.setattr(evaluators, "save_figure", save_figure)
    loop.train(config, tmp_path)
    assert "no preview" not in capsys.readouterr().out
    assert drawn == [(1, 2 if conditional else 1, 9, *shape)]  # without a condition γ has no meaning
    with Image.open(tmp_path / "previews" / "00000002.png") as picture:
        assert min(picture.size) > 60


@pytest.mark.thorough
def test_an_evaluator_of_ones_own_is_called_when_due(data_dir, tmp_path, monkeypatch):
    """Its scores are logged and kept with a checkpoint, also where there was no validation; it gets the average."""
    seen = {}

    def size(context):
        def evaluate(params, number):
            seen[number] = sum(float(np.square(leaf).sum()) for leaf in jax.tree.leaves(params))
            return evaluators.Evaluation({"size": seen[number]})

        assert context.test.size > context.config.batch_size
        return evaluators.Evaluator("size", 3, evaluate)

    monkeypatch.setattr(sys.modules[__name__], "size_of_average", size, raising=False)
    own = {
        "evaluators": ("validation", f"{__name__}:size_of_average"),
        "checkpoint_every": 3,
        "eval_every": 4,
        "keep": 9,
    }
    state = loop.train(small(data_dir, steps=7, **own), tmp_path)
    assert list(seen) == [3, 6, 7]
    assert seen[7] == pytest.approx(sum(float(np.square(leaf).sum()) for leaf in jax.tree.leaves(state.ema)))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: line["size"] for line in lines if "size" in line} == seen
    assert [line["step"] for line in lines if "val_loss" in line] == [4, 7]
    assert {int(p.name) for p in checkpoint.folder(tmp_path).iterdir()} == {3, 6, 7}
    assert sampling.load(tmp_path, 3).step == 3
    assert int(loop.train(small(data_dir, steps=8, **own), tmp_path).step) == 8
    assert not (tmp_path / "broken").exists()


@pytest.mark.slow
def test_samples_are_measured_as_by_evaluate(data_dir, tmp_path):
    config = small(data_dir, steps=4, checkpoint_every=4)
    config.metrics.update({"every": 2, "num": 40, "gammas": (1.0, 3.0), "solver": "euler", "steps": 2})
    loop.train(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "frechet_distance/gamma_3" in line]
    assert [line["step"] for line in measured] == [2, 4]
    model, sampler = sampling.load(tmp_path), sampling.SamplerConfig(solver="euler", steps=2)
    rows = evaluation.settings(model, (1.0, 3.0), [sampler])
    found = evaluation.evaluate(rows, build.splits(config), tmp_path / "again", num=40)
    assert found is not None
    for row in found.rows:
        for name in ("frechet_distance", "precision", "recall", "joint_adherence"):
            assert measured[1][f"{name}/gamma_{row['gamma']:g}"] == pytest.approx(
                row["metrics"][name], rel=1e-3, abs=1e-6
            )
    assert measured[0]["frechet_distance/gamma_1"] != measured[1]["frechet_distance/gamma_1"]
    assert not (tmp_path / "evaluation" / "training" / "chunks").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluators": ("validation", "preview")}, "unknown evaluator 'preview', did you mean 'previews'"),
        ({"evaluators": ("nowhere:size",)}, "evaluator 'nowhere:size' cannot be imported"),
        ({"metrics.every": 1, "metrics.num": 3}, "at least 10 of each; got num = 3"),
        ({"metrics.every": 1, "metrics.solver": "none"}, "none"),
    ],
)
def test_evaluators_that_cannot_be_are_refused_before_training(changes, message, data_dir, tmp_path):
    config = small(data_dir)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
