"""Evaluations of a made-up model: the numbers are those of samples drawn in one go, whatever happened on the way."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from flowguide import metrics, sampling
from flowguide.build import Splits
from flowguide.data import Dataset
from flowguide.errors import UserError
from flowguide.evaluation import (
    FeatureNetwork,
    evaluate,
    inception,
    judging,
    run,
    save,
    save_figure,
    settings,
    sweep,
    table,
)
from flowguide.metrics import inception as inception_v3
from flowguide.metrics.judge import as_images
from flowguide.schema import Batch, Images, with_known
from tests.support.toy import FREE, MODEL, ONE, SHAPE
from tests.support.toy_data import data_of, dataset

CONFIG = sampling.SamplerConfig(steps=3)
NUM, CHUNK = 40, 16


DATA = data_of()


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(run, "CHUNK", CHUNK)
    monkeypatch.setattr(judging, "STEPS", 30)


def evaluated(folder, models=MODEL, gammas=(1, 2), data=DATA, config=CONFIG, **options):
    found = evaluate(settings(models, gammas, (config,)), data, folder, **{"num": NUM, "batch_size": 8, **options})
    assert found is not None
    return found


def without_clock(found):
    """The JSON of an evaluation but for the seconds."""
    text = json.dumps([found.about, found.held_out, [{**row, "seconds": None} for row in found.rows]])
    return json.loads(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An evaluation that nothing interrupted, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "CHUNK", CHUNK)
        patch.setattr(judging, "STEPS", 30)
        return evaluated(folder), folder


@pytest.fixture
def draws(monkeypatch):
    """(first, num) of every call that draws samples."""
    calls, sample = [], sampling.sample

    def counted(*args, **options):
        calls.append((options["first"], options["num"]))
        return sample(*args, **options)

    monkeypatch.setattr(run.sampling, "sample", counted)
    return calls


def predicted(folder, x):
    """The judge's classes, from its file, with its network written out."""
    stored = np.load(folder / "judge.npz")
    hidden = x.reshape(len(x), -1)
    for layer in ("first", "hidden"):
        hidden = np.maximum(0, hidden @ stored[f"{layer}/0"] + stored[f"{layer}/1"])
    logits = hidden @ stored["heads/0"] + stored["heads/1"]
    return logits[:, :2], logits[:, 2:]


@pytest.mark.thorough
def test_numbers_are_those_of_samples_drawn_in_one_go(whole):
    found, folder = whole
    rows = np.arange(60)
    real = DATA.train.read(rows).x.reshape(60, -1)
    order = np.random.default_rng(0).permutation(24)
    c = {name: v[order[np.arange(NUM) % 24]] for name, v in DATA.test.read(np.arange(24)).value.items()}
    for row, gamma in zip(found.rows, (1.0, 2.0), strict=True):
        drawn = sampling.sample(MODEL, c, gamma=gamma, config=CONFIG)
        x, m = drawn.x.reshape(NUM, -1), row["metrics"]
        assert m["frechet_distance"] == pytest.approx(
            metrics.frechet_distance(metrics.moments([real]), metrics.moments([x])), rel=1e-4
        )
        assert m["sliced_wasserstein"] == pytest.approx(metrics.sliced_wasserstein(real, x), rel=1e-4)
        shuffled = real[np.random.default_rng(0).permutation(60)]
        assert m["kid"] == pytest.approx(metrics.kid(shuffled, x, size=NUM).mean, rel=1e-3)
        assert (m["precision"], m["recall"]) == metrics.precision_recall(real, x)
        assert (m["density"], m["coverage"]) == pytest.approx(metrics.density_coverage(real, x))
        assert m["authenticity"] == metrics.authenticity(real, x)
        logits = dict(zip(("hat", "beard"), predicted(folder, x), strict=True))
        hits = {name: head.argmax(1) == c[name] for name, head in logits.items()}
        assert m["adherence"] == {name: h.mean() for name, h in hits.items()}
        assert m["joint_adherence"] == (hits["hat"] & hits["beard"]).mean()
        assert m["adherence_error"]["hat"] == metrics.standard_error(hits["hat"].mean(), NUM)
        p = {name: np.exp(a) / np.exp(a).sum(1, keepdims=True) for name, a in logits.items()}
        kl = {name: (q * np.log(q / q.mean(0))).sum(1).mean() for name, q in p.items()}
        assert m["inception_scores"] == pytest.approx({name: np.exp(v) for name, v in kl.items()}, rel=1e-4)
        assert m["inception_score"] == pytest.approx(np.mean(list(m["inception_scores"].values())))
        assert row["evaluations"] == drawn.evaluations.mean()
        assert (row["gamma"], row["train_step"], row["last_step_size"]) == (gamma, 7, pytest.approx(1 / 3, abs=1e-6))
    held = DATA.test.read(np.arange(24))
    x = held.x.reshape(24, -1)
    assert found.held_out["num_samples"] == 24
    own = found.held_out["metrics"]
    assert own["frechet_distance"] == pytest.approx(
        metrics.frechet_distance(metrics.moments([real]), metrics.moments([x])), rel=1e-6
    )
    assert own["adherence"]["hat"] == (predicted(folder, x)[0].argmax(1) == held.value["hat"]).mean()
    assert own["adherence"]["hat"] > 0.8  # the judge has learned: hats are 3 standard deviations apart


@pytest.mark.parametrize("survivors", [0, 3, 8])
def test_killed_after_some_files_and_resumed_it_is_the_same(whole, tmp_path, monkeypatch, draws, survivors):
    """The judge, six chunks, and two files of statistics are written; the process dies in writing one of them."""
    write, written = run.kept.write, []

    def dying(file, *args):
        if len(written) == survivors:
            file.with_name(f".{file.name}.new").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(file)
        write(file, *args)

    monkeypatch.setattr(run.kept, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path)
    monkeypatch.setattr(run.kept, "write", write)
    draws.clear()
    assert without_clock(evaluated(tmp_path)) == without_clock(whole[0])
    assert len(draws) == 6 - min(6, max(0, survivors - 1))
    draws.clear()
    assert evaluated(tmp_path).rows == evaluated(tmp_path).rows  # to the clock: nothing is drawn
    assert not draws


def test_what_belongs_to_something_else_is_computed_again(whole, tmp_path, capsys, draws):
    evaluated(tmp_path, gammas=(2,))
    draws.clear()
    capsys.readouterr()
    other = MODEL._replace(params={"w": np.float32(0.9)}, step=8)
    found = evaluated(tmp_path, other, (2,))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert "3 files in" in line
    assert "train_step was 7, is 8" in line or "parameters was" in line
    assert len(draws) == 3
    assert without_clock(found) == without_clock(evaluated(tmp_path / "new", other, (2,)))
    assert found.rows[0]["metrics"] != whole[0].rows[1]["metrics"]

    file = next((tmp_path / "chunks").rglob("*.npz"))
    file.write_bytes(file.read_bytes()[:100])
    draws.clear()
    capsys.readouterr()
    assert without_clock(evaluated(tmp_path, other, (2,))) == without_clock(found)
    assert len(draws) == 1
    assert "1 files in" in (err := capsys.readouterr().err)
    assert "cannot be read" in err

    more = data_of(train=70)
    evaluated(tmp_path, other, (2,), more)
    err = capsys.readouterr().err
    assert "judge.npz: training data was" in err
    assert "the statistics of real examples are computed again" in err


def test_more_samples_and_more_scales_add_to_what_is_there(tmp_path, draws):
    evaluated(tmp_path, gammas=(1,))
    assert draws == [(0, 16), (16, 16), (32, 8)]
    draws.clear()
    found = evaluated(tmp_path, gammas=(1,), num=60)
    assert draws == [(32, 16), (48, 12)]
    assert without_clock(found) == without_clock(evaluated(tmp_path / "new", gammas=(1,), num=60))
    draws.clear()
    fewer = evaluated(tmp_path, gammas=(1,), num=20)
    assert not draws
    np.testing.assert_allclose(
        fewer.rows[0]["metrics"]["frechet_distance"],
        evaluated(tmp_path / "few", gammas=(1,), num=20).rows[0]["metrics"]["frechet_distance"],
        rtol=1e-4,
    )


def test_seeds_give_means_and_spreads(tmp_path):
    both = evaluated(tmp_path, gammas=(2,), seeds=(3, 4)).rows[0]
    each = [evaluated(tmp_path, gammas=(2,), seeds=(seed,)).rows[0]["metrics"] for seed in (3, 4)]
    assert both["each_seed"] == each
    a, b = (m["frechet_distance"] for m in each)
    assert a != b
    assert both["metrics"]["frechet_distance"] == pytest.approx((a + b) / 2)
    assert both["spread"]["frechet_distance"] == pytest.approx(abs(a - b) / np.sqrt(2))
    errors = [m["joint_adherence_error"] for m in each]
    assert both["metrics"]["joint_adherence_error"] == pytest.approx(np.mean(errors) / np.sqrt(2))
    assert "joint_adherence_error" not in both["spread"]


def test_conditions_are_those_of_held_out_examples_each_as_often(tmp_path):
    c = sweep.conditions(DATA.test, 5, 0, 48)
    value = DATA.test.read(np.arange(24)).value
    pairs = sorted(zip(value["hat"], value["beard"], strict=True))
    assert sorted(zip(c.value["hat"][:24], c.value["beard"][:24], strict=True)) == pairs
    np.testing.assert_array_equal(c.value["hat"][24:], c.value["hat"][:24])
    assert all(present.all() for present in c.present.values())
    np.testing.assert_array_equal(sweep.conditions(DATA.test, 5, 7, 9).value["beard"], c.value["beard"][7:16])

    info = with_known(MODEL.info)
    known = sweep.conditions(dataset("test", 24, 1)._replace(info=info), 5, 0, 4)
    assert not known.present["known"].any()
    assert known.value["known"].shape == (4, *SHAPE)


def test_samples_move_away_from_negative_conditions(tmp_path):
    perp = CONFIG._replace(guidance="perp_neg")
    away = [
        *settings(MODEL, (2,), (perp,), negatives=["hat=red,beard=yes", "beard=no"], gamma_negative=0.5),
        *settings(MODEL, (2,), (CONFIG,)),
    ]
    found = evaluate(away, DATA, tmp_path, num=NUM, batch_size=8)
    assert found is not None
    c = sweep.conditions(DATA.test, 0, 0, NUM)
    options = {"num": NUM, "gamma": 2.0, "gamma_negative": 0.5, "config": perp}
    drawn = sampling.sample(MODEL, c, negative=["hat=red,beard=yes", "beard=no"], **options)
    x = drawn.x.reshape(NUM, -1)
    real = DATA.train.read(np.arange(60)).x.reshape(60, -1)
    expected = metrics.frechet_distance(*(metrics.moments([a]) for a in (real, x)))
    own, plain = (row["metrics"] for row in found.rows)
    assert own["frechet_distance"] == pytest.approx(expected, rel=1e-3)
    hat, beard = (logits.argmax(1) for logits in predicted(tmp_path, x))
    assert own["negative_share"] == pytest.approx(np.mean(((hat == 1) & (beard == 1)) | (beard == 0)))
    assert "negative_share" not in plain
    assert "negative_share" not in found.held_out["metrics"]
    row = found.rows[0]
    assert (row["negatives"], row["gamma_negative"]) == (["hat=red,beard=yes", "beard=no"], 0.5)
    assert found.rows[1]["gamma_negative"] is None
    first, second = table.tables(found)[0].rows[1:]
    assert "away from hat=red,beard=yes and beard=no" in first[0]
    heading = table.tables(found)[0].headings.index("negative")
    assert (first[heading], second[heading]) == (f"{own['negative_share']:.3f}", "")


def test_the_other_condition_is_that_of_the_next_example_with_another_one():
    (setting,) = settings(MODEL, (2,), (CONFIG,), negatives=["other"])
    order = np.random.default_rng(3).permutation(DATA.test.size)
    value = DATA.test.read(order).value
    (c,) = sweep.negative_conditions(setting, DATA.test, 3, 5, 40)
    for k in range(40):
        i = (5 + k) % 24
        j = next(j % 24 for j in range(i + 1, i + 24) if any(value[name][j % 24] != value[name][i] for name in value))
        assert {name: v[k] for name, v in c.value.items()} == {name: v[j] for name, v in value.items()}
    assert all(present.all() for present in c.present.values())

    one = dataset("test", 24, 1)._replace(read=lambda i: Batch(i, {n: np.zeros(len(i), np.int32) for n in value}))
    with pytest.raises(UserError, match="all held-out examples of toy have one condition"):
        sweep.negative_conditions(setting, one, 3, 5, 4)
    with pytest.raises(UserError, match="all held-out examples of toy have one condition"):
        run.check([setting], Splits(DATA.train, one), num=NUM)


def test_features_of_ones_own(tmp_path):
    def halves(x):
        flat = x.reshape(len(x), -1)
        p = 1 / (1 + np.exp(-flat[:, :1]))
        return flat[:, :4] / 2, np.concatenate([p, 1 - p], 1)

    found = evaluated(tmp_path, gammas=(2,), features=halves)
    assert found.about["features"] == "test_features_of_ones_own.halves"
    m = found.rows[0]["metrics"]
    c = sweep.conditions(DATA.test, 0, 0, NUM)
    features, p = halves(sampling.sample(MODEL, c, gamma=2.0, config=CONFIG).x)
    real = halves(DATA.train.read(np.arange(60)).x)[0]
    distance = metrics.frechet_distance(metrics.moments([real]), metrics.moments([features]))
    assert m["frechet_distance"] == pytest.approx(distance, rel=1e-4)
    assert m["inception_score"] == pytest.approx(metrics.inception_score(p, splits=1).mean, rel=1e-4)
    assert set(m["adherence"]) == {"hat", "beard"}  # still the judge's
    assert "sliced_wasserstein" not in m


def test_inception_says_its_weights_and_its_resizing(tmp_path, monkeypatch):
    """With a stand-in for the network, which takes minutes."""
    file, calls = tmp_path / "weights.pth", []

    def activations(network, x, resize):
        calls.append((network, resize))
        return SimpleNamespace(pool=x[:, :2] + 1.0, probabilities=x[:, 2:])

    monkeypatch.setattr(inception_v3, "load_inception", lambda path: f"network of {path}")
    monkeypatch.setattr(inception_v3, "activations", activations)
    origins = []
    for content, resize in ((b"a", "adm"), (b"b", "adm"), (b"b", "clean-fid")):
        file.write_bytes(content)
        network = inception(file, resize)
        origins.append(json.dumps(network.origin))
        features, p = network.read(np.eye(4))
        np.testing.assert_array_equal(features, np.eye(4)[:, :2] + 1)
        np.testing.assert_array_equal(p, np.eye(4)[:, 2:])
        assert calls[-1] == (f"network of {file}", resize)
        assert network.origin["resize"] == resize
    assert len(set(origins)) == 3
    with pytest.raises(UserError, match="unknown resizing 'amd', did you mean 'adm'"):
        inception(file, "amd")


def test_without_conditions_there_are_distances_alone(tmp_path):
    found = evaluated(tmp_path, FREE, (1,), data_of(FREE.info))
    assert {"frechet_distance", "recall"} <= set(found.rows[0]["metrics"])
    assert not {"adherence", "joint_adherence", "inception_score"} & set(found.rows[0]["metrics"])
    save_figure(tmp_path / "evaluation.png", found)


def test_what_is_written_says_how_each_number_came_about(whole, tmp_path):
    found, _ = whole
    content = json.loads(save(found, tmp_path).read_text())
    for row in content["rows"]:
        assert row["num_samples"] == NUM
        assert row["num_real"] == row["num_real_neighbours"] == 60
        assert (row["solver"], row["steps"], row["grid"], row["sampler"]) == ("heun", 3, "uniform", "flow")
        assert {"resize", "features", "last_step_size", "weights", "train_step", "parameters", "interval"} <= set(row)
    assert content["held_out"] == found.held_out
    save_figure(tmp_path / "evaluation.png", found)
    assert (tmp_path / "evaluation.png").stat().st_size > 20_000


IMAGES = FREE._replace(info=FREE.info._replace(examples=Images((4, 4, 1))))
REFUSED = {
    "guided without conditions": ({"models": FREE, "data": data_of(FREE.info)}, "no conditions to be guided by"),
    "of other data": ({"data": data_of(ONE.info)}, "give the data of its run"),
    "too few samples": ({"num": 9}, "at least 10 of each; got num = 9"),
    "too few examples": ({"data": data_of(test=9)}, "got held-out = 9"),
    "no labels": ({"models": IMAGES, "gammas": (1,), "data": data_of(IMAGES.info)}, "no class labels"),
    "particles": ({"config": CONFIG._replace(sampler="fkc")}, "evaluate takes flow and pc"),
    "γ": ({"gammas": (np.inf,)}, "guidance scales must be finite"),
    "autoguidance": ({"config": CONFIG._replace(guidance="autoguidance")}, "needs a weaker model"),
    "a rule": ({"config": CONFIG._replace(guidance="cffg")}, "did you mean 'cfg'"),
    "no negative condition": ({"config": CONFIG._replace(guidance="perp_neg")}, "needs a negative condition"),
    "nothing": ({"gammas": ()}, "expected settings"),
    "no features": ({"features": lambda x: x}, "gives features"),
    "features of images": ({"features": as_images}, "do not take these examples: images must be uint8"),
    "infinite features": ({"features": FeatureNetwork("odd", lambda x: np.full((len(x), 2), np.inf))}, "finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_and_nothing_written(name, tmp_path):
    options, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        evaluated(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_the_judge_of_a_run_reads_images_too(tmp_path):
    """White or black squares."""
    info = ONE.info._replace(examples=Images((4, 4, 1)))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80).astype(np.int32)
    x = np.where(labels[:, None, None, None] == 1, 220, 30).astype(np.uint8) + rng.integers(
        0, 9, (80, 4, 4, 1), np.uint8
    )
    data = Dataset(info, "train", "1", 80, True, lambda i: Batch(x[i], {"hat": labels[i]}))
    assert judging.find(tmp_path, data) == (None, "")
    judging.write(tmp_path, judging.train(data), judging.origin(data))
    judge, _ = judging.find(tmp_path, data)
    assert judge is not None
    hidden, p = judging.judgement(judge, info.examples, x)
    assert hidden.shape == (80, 128)
    assert p["hat"].shape == (80, 10)
    assert (p["hat"].argmax(1) == labels).mean() > 0.95
