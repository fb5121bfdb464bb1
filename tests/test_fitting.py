"""The front door: from arrays to a model, its samples and densities, and the run that it leaves."""

import json
import re

import jax
import numpy as np
import pytest

import flowguide
from flowguide import build, checkpoint, config, sampling, storage
from flowguide.cli import main
from flowguide.config import auto
from flowguide.data import open_path
from flowguide.errors import UserError
from flowguide.networks import MLP, as_network
from flowguide.schema import DataInfo, Images, Known, Label, Series, Tokens, Vector, Vectors
from flowguide.training import smoothing
from flowguide.workdir import config_to_use
from tests.support.text_encoders import SIZE, ngrams

N = 200
RNG = np.random.default_rng(0)
LABELS = RNG.choice(["cat", "dog"], N)
X = (RNG.normal(size=(N, 1)) * 10 + np.where(LABELS == "cat", 40, 60)[:, None]).astype(np.float32)


def settings(steps=40, **changes):
    c = config.default()
    c.network = {"name": "mlp", "width": 16, "depth": 1}
    c.update({"steps": steps, "batch_size": 32, "lr": 1e-2, "warmup": 5, "eval_every": 20, "checkpoint_every": 20})
    c.preview.every = 0
    c.update(changes)
    return config.complete(c)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("fit") / "run"
    return workdir, flowguide.fit(X, LABELS, workdir=workdir, config=settings(400), name="pets")


@pytest.mark.thorough
def test_samples_are_in_the_units_of_the_data_and_follow_the_condition(run):
    _, model = run
    x = {name: model.sample(name, num=256, gamma=1.0, batch_size=256) for name in ("cat", "dog")}
    for name, mean in (("cat", 40), ("dog", 60)):
        assert x[name].shape == (256, 1)
        assert abs(x[name].mean() - mean) < 4
        assert 6 < x[name].std() < 14
    config = sampling.SamplerConfig()
    same = model.given(label="dog").sample(256, config=config)  # γ = 1, the distribution itself
    np.testing.assert_array_equal(same, x["dog"])
    np.testing.assert_allclose(model.given(label="dog").sample(256), x["dog"], atol=0.5)  # by another solver


@pytest.mark.thorough
def test_a_density_integrates_to_one_in_the_units_of_the_data(run):
    """The standardisation has its part in it: without, it would be 14, or with the wrong sign 200."""
    _, model = run
    axis = np.linspace(-60, 160, 441, dtype=np.float32)[:, None]
    for condition in ("cat", ""):
        density = np.exp(model.log_prob(axis, condition))
        assert density.sum() * 0.5 == pytest.approx(1, abs=0.01)
    at = model.given(label="cat").log_prob(axis[200:210], batch_size=4)
    np.testing.assert_allclose(at, model.log_prob(axis[200:210], "cat"), rtol=1e-4, atol=1e-5)
    estimated = model.log_prob(axis[200:210], "cat", probes=2)  # exact in one dimension
    np.testing.assert_allclose(estimated, at, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_the_run_is_one_of_train(run, capsys):
    workdir, model = run
    again = flowguide.load(workdir)
    assert again.info == model.info
    assert model.info.fields == {"label": Label(("cat", "dog"))}
    np.testing.assert_allclose(model.info.examples.mean, X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.info.examples.scale, X.std(0), rtol=1e-5)
    np.testing.assert_array_equal(again.sample("cat", num=8), model.sample("cat", num=8))
    assert main(["sample", f"--workdir={workdir}", "--cond=dog", "--num=4", "--save=npz"]) in (0, None)
    assert np.load(workdir / "samples" / "samples.npz")["x"].mean() > 30


@pytest.mark.slow
def test_captions_that_an_encoder_embeds_generalise_to_other_texts(tmp_path):
    """The network never saw these prompts; the words that matter are embedded alike."""
    captions = [f"A {label}, seen on day {i % 40}" for i, label in enumerate(LABELS)]
    kinds = np.where(np.arange(N) % 2, "even", "odd")
    given = {"caption": captions, "kind": kinds}
    model = flowguide.fit(X, given, workdir=tmp_path / "run", config=settings(400), text_encoder=ngrams)
    assert model.info.fields["kind"] == Label(("even", "odd"))
    field = model.info.fields["caption"]
    assert isinstance(field, Series)
    assert (field.shape, field.encoder) == ((7, SIZE), "tests.support.text_encoders:ngrams")
    for prompt, mean in (("A cat, seen on day 77", 40), ("a dog seen today", 60)):
        x = model.sample(f"caption={prompt}", num=256, gamma=1.0, batch_size=256)
        assert abs(x.mean() - mean) < 7  # the mean of all is 10 away
    again = flowguide.load(tmp_path / "run", trust_code=True)
    prompt = {"caption": "a dog seen today"}
    np.testing.assert_array_equal(again.sample(prompt, num=8), model.sample(prompt, num=8))


@pytest.mark.thorough
def test_other_data_do_not_resume_the_run(run):
    workdir, model = run
    other = X.copy()
    other[7] += 1
    with pytest.raises(UserError, match="run on other data, whose examples differ"):
        flowguide.fit(other, LABELS, workdir=workdir, config=settings(500), name="pets")
    mixed = X[::-1].copy()  # the same mean and deviation
    with pytest.raises(UserError, match="version="):
        flowguide.fit(mixed, LABELS, workdir=workdir, config=settings(500), name="pets")
    assert flowguide.load(workdir).info == model.info


@pytest.mark.slow
def test_a_limit_of_minutes_ends_a_fit_which_then_goes_on(tmp_path, capsys):
    for _ in range(2):
        model = flowguide.fit(X, LABELS, workdir=tmp_path, minutes=0.03)
    assert not any(jax.tree.leaves(jax.tree.map(lambda a: bool(np.isnan(a).any()), model.params)))
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in capsys.readouterr().out.splitlines() if "from step" in line]
    assert "from step 0 on" in told[0]
    assert "from step 0 on" not in told[1]
    assert steps == sorted(steps)


@pytest.mark.slow
def test_the_learning_rate_decays_to_the_limit_of_minutes(tmp_path):
    c = settings(10**6)
    c.update({"warmup": 0, "lr": 1e-3, "log_every": 1})
    flowguide.fit(X, LABELS, workdir=tmp_path, config=c, minutes=0.25)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = np.array([line["lr"] for line in lines if "lr" in line])
    assert (np.diff(rates) < 0).all()
    assert rates[0] > 5e-4
    assert rates[-1] < 5e-5


@pytest.mark.thorough
def test_the_best_checkpoint_is_used_where_the_config_says_so(run):
    workdir, _ = run
    losses = {2: 0.3, 4: 0.1, 6: 0.2}
    folder = workdir.parent / "scores" / "checkpoints"
    for step, loss in losses.items():
        storage.make_folder(folder / str(step) / "metrics", parents=True)
        (folder / str(step) / "_CHECKPOINT_METADATA").write_text("{}")
        (folder / str(step) / "metrics" / "metrics").write_text(json.dumps({"val_loss": loss}))
    assert checkpoint.best_step(folder.parent) == 4
    (folder / "4" / "metrics" / "metrics").write_text("{")
    assert checkpoint.best_step(folder.parent) == 6
    assert checkpoint.best_step(workdir.parent / "none") is None
    with pytest.raises(UserError, match="newest or best"):
        config.check_types(settings(use="last"))


@pytest.mark.thorough
def test_a_network_of_ones_own_is_passed_again_to_load(tmp_path):
    fields = {"label": Label(("cat", "dog"))}
    network = as_network(lambda rngs: MLP((1,), fields, width=8, depth=2, rngs=rngs))
    model = flowguide.fit(X, LABELS, workdir=tmp_path, config=settings(), network=network)
    np.testing.assert_array_equal(
        flowguide.load(tmp_path, network=network).sample("cat", num=4), model.sample("cat", num=4)
    )
    with pytest.raises(UserError, match=r"load\(workdir, network=...\)"):
        flowguide.load(tmp_path)


IMAGES = RNG.integers(0, 256, (40, 8, 8), dtype=np.uint8)
KINDS = {
    "images": (IMAGES, RNG.integers(0, 3, 40), "unet", Images, {"label": Label}),
    "signals": (RNG.normal(size=(40, 16, 2)), RNG.normal(size=40), "unet", Vectors, {"c": Vector}),
    "volumes": (RNG.normal(size=(40, 4, 8, 8, 1)), None, "unet", Vectors, {}),
    "vectors": (
        RNG.normal(size=(40, 3)),
        {"a": RNG.normal(size=(40, 2)), "b": [f"the {w} of {i}" for i, w in enumerate(["hat", "cat"] * 20)]},
        "mlp",
        Vectors,
        {"a": Vector, "b": Tokens},
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gets_a_network_that_takes_it(name):
    x, condition, network, kind, fields = KINDS[name]
    from flowguide.fitting import _opened
    from flowguide.model import from_config

    data = _opened(x, condition, "data", (), None, None)
    chosen = config.config_for(data.train.info, data.train.size, minutes=1e4)
    assert chosen.network.name == network
    assert type(data.train.info.examples) is kind
    assert {k: type(field) for k, field in data.train.info.fields.items()} == fields
    model = from_config(chosen, data.train.info)
    t, batch = np.full(3, 0.5, np.float32), data.test.read(np.arange(3))
    params = jax.eval_shape(model.network.init, jax.random.key(0))
    c = sampling.request(model, "", 3).c
    seen = data.train.info.examples.to_model(batch.x)
    u = jax.eval_shape(model.network.velocity, params, t, seen, c)
    assert u.shape == (3, *data.train.info.shape)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("minutes", "platform", "network"),
    [(0.1, "cpu", "mlp"), (1e4, "cpu", "unet"), (0.1, "gpu", "unet"), (None, "cpu", "unet")],
)
@pytest.mark.parametrize("name", ["images", "signals", "volumes"])
def test_a_cpu_in_a_hurry_gets_an_mlp(name, minutes, platform, network):
    x, condition, *_ = KINDS[name]
    from flowguide.fitting import _opened

    info = _opened(x, condition, "data", (), None, None).train.info
    chosen = config.config_for(info, len(x), minutes=minutes, platform=platform)
    assert chosen.network.name == network
    assert (chosen.steps == 8000) == (minutes is None)
    line = config.why(chosen, info)
    assert (line is None) == (network == "unet")
    if line:  # what it says is so
        (enough,) = map(float, re.findall(r"give ([\d,]+) minutes", line))
        assert config.config_for(info, len(x), minutes=enough, platform="cpu").network.name == "unet"


@pytest.mark.parametrize(
    "condition", [{"edges": IMAGES}, {"text": [f"a {w} of {i} hats" for i, w in enumerate(["red", "blue"] * 20)]}]
)
def test_conditions_that_have_places_need_a_unet(condition):
    """An MLP learns the pictures that belong to conditions it has seen, and nothing about others."""
    from flowguide.fitting import _opened

    info = _opened(IMAGES, condition, "data", (), None, None).train.info
    assert config.config_for(info, 40, minutes=0.1, platform="cpu").network.name == "unet"


@pytest.mark.parametrize(
    ("labels", "known", "high"), [(1, False, 0.1), (2, False, 0.1), (3, False, 0.5), (0, True, 0.1), (1, True, 0.5)]
)
def test_many_fields_are_dropped_at_rates_that_leave_some_examples_whole(labels, known, high):
    fields = {str(i): Label(("a", "b")) for i in range(labels)} | ({"known": Known(Vectors((2,)))} if known else {})
    chosen = config.config_for(DataInfo("data", Vectors((2,)), fields), 1000)
    assert tuple(chosen.drop_field_rate) == (0.1 if high == 0.1 else 0.0, high)


@pytest.mark.thorough
def test_a_folder_does_not_import_code_of_others(tmp_path):
    """The evaluators of a run that someone else wrote."""
    source = tmp_path / "points.npy"
    np.save(source, np.random.default_rng(0).normal(size=(60, 2)))
    flowguide.fit(source, workdir=tmp_path / "run", minutes=0.03)
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**content, "evaluators": ["this:foo"]}))
    with pytest.raises(UserError, match="names the evaluator 'this:foo', code outside of flowguide"):
        flowguide.fit(source, workdir=tmp_path / "run", minutes=0.03)


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_network_when_it_gets_more_time(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "images.npz", image=RNG.integers(0, 256, (40, 8, 8, 1), np.uint8))
    source, workdir = str(tmp_path / "images.npz"), tmp_path / "run"
    step = flowguide.fit(source, workdir=workdir, minutes=0.05).step
    assert "an MLP, as time is short" in capsys.readouterr().err
    monkeypatch.setattr(auto, "SPEED", 1e18)  # now there would be time for a U-Net
    model = flowguide.fit(source, workdir=workdir, minutes=0.05)
    main(["train", f"--data={source}", f"--workdir={workdir}", "--minutes=0.05", "--coordinator=none"])
    assert step < model.step < flowguide.load(workdir).step
    told = capsys.readouterr()
    assert "an MLP" not in told.err + told.out


REFUSED = {
    "lengths": ((X, LABELS[:-1]), {}, "199 values of 'label' for 200 of 'examples'"),
    "nan": ((np.where(np.arange(N)[:, None] == 3, np.nan, X), LABELS), {}, "nan in 'examples', row 3 of data"),
    "one class": ((X, ["cat"] * N), {}, "'label' with the same value in all rows"),
    "path and condition": (("x.csv", LABELS), {}, "name columns of the path"),
    "no file": (("x.csv",), {}, "does not exist"),
    "fields of arrays": ((X, LABELS), {"fields": ["a"]}, "are for paths"),
    "clash": ((X, {"examples": LABELS}), {}, "call it something else"),
    "no time": ((X, LABELS), {"minutes": 0}, "minutes must be above 0"),
    "ragged": (([[1.0], [2.0, 3.0]],), {}, "rows of different shapes"),
    "texts": ((np.stack([LABELS, LABELS], 1),), {}, "got texts 'examples' of shape"),
    "a column twice": (({"a": X[:, 0], "b": LABELS}, {"b": LABELS}), {}, "a condition called 'b'"),
    "columns of two lengths": (({"a": X[:, 0], "b": LABELS[1:]},), {}, "199 values of 'b' for 200 of 'a'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_fitted_is_refused_before_anything_is_written(name, tmp_path):
    arguments, options, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        flowguide.fit(*arguments, workdir=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_a_model_shows_itself(run):
    _, model = run
    assert "pets" in repr(model)
    assert "label: label" in repr(model)
    assert model.show("cat", num=9).size[0] > 100
    html = model._repr_html_()
    assert html.startswith("&lt;flowguide model")
    assert "data:image/png;base64,iVBOR" in html
    with pytest.raises(UserError, match="unknown field 'colour'"):
        model.given(colour="red")
    with pytest.raises(UserError, match="expected numbers \\(N, 1\\)"):
        model.log_prob(np.zeros((3, 2)))


def write_pets(file):
    rows = "\n".join(f"{float(x)},{label}" for x, label in zip(X[:, 0], LABELS, strict=True))
    file.write_text(f"weight,kind\n{rows}\n")


@pytest.mark.thorough
def test_the_command_line_reads_a_file_once(tmp_path, monkeypatch):
    write_pets(tmp_path / "pets.csv")
    read, real = [], flowguide.data.files.READERS[".csv"]
    monkeypatch.setitem(flowguide.data.files.READERS, ".csv", lambda path: read.append(path) or real(path))
    changes = ["--config.steps=2", "--config.batch_size=16", "--config.network.width=8"]
    assert main(["train", f"--data={tmp_path / 'pets.csv'}", f"--workdir={tmp_path / 'run'}", *changes]) in (0, None)
    assert len(read) == 1


@pytest.mark.thorough
def test_the_command_line_takes_a_file(tmp_path, capsys):
    write_pets(tmp_path / "pets.csv")
    changes = ["--config.steps=20", "--config.batch_size=16", "--config.network.width=8", "--config.eval_every=20"]
    run = [f"--data={tmp_path / 'pets.csv'}", f"--workdir={tmp_path / 'run'}", *changes]
    assert main(["train", *run]) in (0, None)
    out = capsys.readouterr().out
    assert "conditioned on kind: label" in out
    assert flowguide.load(tmp_path / "run").info.fields == {"kind": Label(("cat", "dog"))}
    assert main(["data", "describe", str(tmp_path / "pets.csv")]) in (0, None)
    assert "180 examples to train on, 20 held out" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["train", f"--workdir={tmp_path / 'new'}", f"--data={tmp_path / 'pets.csv'}", "--fields=kinds"])
    assert end.value.code == 2
    assert "did you mean 'kind'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", f"--workdir={tmp_path / 'new'}", "--config=avatars", "--fields=kind"])
    assert "--fields is about --data=PATH" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", f"--workdir={tmp_path / 'new'}", f"--data={tmp_path / 'pets.csv'}", "--config.data.fields=kind"])
    assert "--data says which data; got --config.data.fields too" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", f"--workdir={tmp_path / 'new'}", "--data=avatars", "--example=hair"])
    assert "--example is about files and folders; got --data=avatars" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def completing(tmp_path_factory):
    """A model of two strongly correlated numbers, of which either may be known."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(2000, 1))
    x = np.concatenate([100 + 10 * z, -3 + 0.5 * (0.8 * z + 0.6 * rng.normal(size=z.shape))], axis=1)
    table = {"height": x[:, 0], "weight": x[:, 1]}
    path = tmp_path_factory.mktemp("known") / "data.csv"
    rows = zip(*table.values(), strict=True)
    path.write_text("\n".join([",".join(table), *(f"{a},{b}" for a, b in rows)]))
    c = settings(1500, batch_size=256, lr=3e-3, eval_every=500, checkpoint_every=500)
    c.network.update({"width": 64, "depth": 2})
    return flowguide.fit(path, workdir=path.parent / "run", config=c, known=True), x


@pytest.mark.slow
def test_either_part_is_completed_from_the_other(completing):
    """The conditional mean and deviation of a Gaussian: mean + r s_y/s_x (x - mean_x), s_y sqrt(1 - r^2), r = 0.8."""
    model, _ = completing
    for known, at, mean, std in (
        ("height:115", 1, -3 + 0.5 * 0.8 * 1.5, 0.5 * 0.6),
        ({"weight": -4.0}, 0, 100 - 10 * 0.8 * 2.0, 10 * 0.6),
        ("? -2.25", 0, 100 + 10 * 0.8 * 1.5, 10 * 0.6),
    ):
        x = model.sample({"known": known}, num=1000, gamma=1.0, batch_size=1000)
        assert x[:, at].mean() == pytest.approx(mean, abs=0.25 * std)
        assert x[:, at].std() == pytest.approx(std, rel=0.2)
        assert len(np.unique(x[:, 1 - at])) == 1  # exactly as given
    everything = model.sample(num=2000, batch_size=2000)
    assert np.corrcoef(everything.T)[0, 1] == pytest.approx(0.8, abs=0.06)


@pytest.mark.slow
def test_one_known_part_each_and_no_density_given_a_part(completing):
    model, x = completing
    parts = x[:5].astype(np.float32)
    parts[:, 1] = np.nan
    np.testing.assert_array_equal(model.sample({"known": parts}, gamma=1.0)[:, 0], parts[:, 0])
    with pytest.raises(UserError, match="leave the part out"):
        model.log_prob(x[:5], {"known": parts})
    with pytest.raises(UserError, match="called 'known'"):
        flowguide.fit(X, {"known": X}, known=True)


def test_only_small_tables_that_are_completed_are_smoothed(monkeypatch):
    x = np.random.default_rng(1).normal(size=(60, 3))
    tables = {known: opened(x, known).train for known in (True, False)}
    chosen, line = config_to_use(None, tables[True], 1.0)
    assert line
    assert f"noise of {chosen.jitter:.2g} standard deviations" in line
    assert config_to_use(None, tables[False], 1.0)[0].jitter == 0
    assert config_to_use(None, opened(IMAGES, True).train, 1e4)[0].jitter == 0
    monkeypatch.setattr(smoothing, "LARGEST", 50)
    assert config_to_use(None, tables[True], 1.0)[0].jitter == 0


def opened(x, known):
    from flowguide.fitting import _opened

    data = _opened(x, None, "data", (), None, None)
    return build.completing(data) if known else data


@pytest.mark.slow
def test_the_command_line_learns_to_complete(tmp_path):
    rows = [f"{a:.3f},{b:.3f}" for a, b in RNG.normal(size=(60, 2))]
    (tmp_path / "data.csv").write_text("\n".join(["height,weight", *rows]))
    run = tmp_path / "run"
    options = ["--config.data.known=True", "--config.steps=2", "--config.batch_size=16", "--config.preview.every=0"]
    assert main(["train", f"--data={tmp_path / 'data.csv'}", f"--workdir={run}", *options]) in (0, None)
    assert flowguide.load(run).info.fields["known"].names == ("height", "weight")
    stored = config.read_config(run)
    train, _ = open_path(tmp_path / "data.csv")
    seen = train.info.examples.to_model(train.read(np.arange(train.size)).x)
    assert 0.1 < stored.jitter == pytest.approx(0.85 * smoothing.bandwidth(np.asarray(seen)))
    assert stored.use == "newest"
    assert main(["sample", f"--workdir={run}", "--cond=known=weight:1.5", "--num=3", "--steps=1", "--save=csv"]) in (
        0,
        None,
    )
    x = flowguide.load(run).sample("known=weight:1.5", num=3)
    assert (x[:, 1] == 1.5).all()
    head, *rows = (run / "samples" / "samples.csv").read_text().splitlines()
    assert head == "height,weight"
    assert [row.split(",")[1] for row in rows] == ["1.5"] * 3


CITIES = {"Bonn": 0.15, "Oslo": 0.25, "Rome": 0.6}
AGES = {"Bonn": 20, "Oslo": 40, "Rome": 60}
SMOKE = {"Bonn": 0.9, "Oslo": 0.1, "Rome": 0.5}


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A model of rows with a number, a class and a boolean, and the rows."""
    rng = np.random.default_rng(2)
    city = rng.choice(list(CITIES), 3000, p=list(CITIES.values()))
    rows = {
        "age": np.array([AGES[each] for each in city]) + 4 * rng.normal(size=3000),
        "city": city,
        "smoker": rng.random(3000) < np.array([SMOKE[each] for each in city]),
    }
    c = settings(1500, batch_size=256, lr=3e-3, eval_every=1500, checkpoint_every=1500, stratified=True)
    c.network.update({"width": 64, "depth": 2})
    workdir = tmp_path_factory.mktemp("people") / "run"
    return workdir, flowguide.fit(rows, workdir=workdir, config=c, known=True), rows


@pytest.mark.slow
def test_numbers_and_classes_are_learned_together(people):
    _, model, _ = people
    x = model.sample(num=2000, batch_size=2000, gamma=1.0)
    assert x.dtype.names == ("age", "city", "smoker")
    for city, share in CITIES.items():
        here = x[x["city"] == city]
        assert len(here) / 2000 == pytest.approx(share, abs=0.06)
        assert here["age"].mean() == pytest.approx(AGES[city], abs=2)
        assert here["smoker"].mean() == pytest.approx(SMOKE[city], abs=0.12)


@pytest.mark.slow
def test_a_class_is_completed_from_a_number_and_a_number_from_a_class(people):
    """Bayes: at the age of 30, as far from Bonn as from Oslo, the odds are those of the shares."""
    _, model, _ = people
    of_30 = model.sample("known=age:30", num=2000, batch_size=2000, gamma=1.0)
    assert (of_30["age"] == 30).all()
    assert (of_30["city"] == "Bonn").mean() == pytest.approx(0.15 / 0.4, abs=0.12)
    romans = model.sample({"known": {"city": "Rome"}}, num=2000, batch_size=2000, gamma=1.0)
    assert (romans["city"] == "Rome").all()
    assert (romans["age"].mean(), romans["age"].std()) == pytest.approx((60, 4), abs=1.2)
    with pytest.raises(UserError, match="unknown value 'Rom' of 'city', did you mean 'Rome'"):
        model.sample("known=city:Rom")


@pytest.mark.slow
def test_classes_have_no_log_density_but_names_and_a_picture(people):
    workdir, model, _ = people
    with pytest.raises(UserError, match=r"classes in its examples, which have no density: .*--fields=city,smoker"):
        model.log_prob(np.zeros((2, 3)))
    assert flowguide.load(workdir).info == model.info
    assert model.info.examples.classes == ((), tuple(CITIES), ("False", "True"))
    assert model.show(num=9).size[0] > 100
    codes = sampling.sample(model, num=20).x
    assert (codes.dtype, codes.shape) == (np.float32, (20, 3))
    np.testing.assert_array_equal(model.info.examples.named(codes), model.sample(num=20))


@pytest.mark.slow
def test_the_command_line_writes_names(people, tmp_path):
    workdir, model, _ = people
    x = model.sample("known=age:30", num=30, gamma=1.0)
    command = ["sample", f"--workdir={workdir}", "--cond=known=age:30", "--gamma=1", "--num=30"]
    for kind in ("csv", "npz"):
        assert main([*command, f"--save={kind}", f"--out={tmp_path}"]) in (0, None)
    head, *lines = (tmp_path / "samples.csv").read_text().splitlines()
    assert head == "age,city,smoker"
    assert [line.split(",")[1:3] for line in lines] == [[str(row["city"]), str(row["smoker"])] for row in x]
    saved = np.load(tmp_path / "samples.npz")
    assert saved["names"].tolist() == ["age", "city", "smoker"]
    assert saved["classes.city"][saved["x"][:, 1].astype(int)].tolist() == x["city"].tolist()


def test_a_structured_array_is_a_table():
    from flowguide.fitting import _opened, describe

    rows = np.empty(40, [("age", "f4"), ("city", "U4")])
    rows["age"], rows["city"] = np.arange(40), ["Rome", "Oslo"] * 20
    by_name = {"age": rows["age"], "city": rows["city"]}
    of_rows, of_dict = (_opened(x, None, "data", (), None, None) for x in (rows, by_name))
    assert of_rows.train.info == of_dict.train.info
    np.testing.assert_array_equal(of_rows.train.read(np.arange(36)).x, of_dict.train.read(np.arange(36)).x)
    assert "rows of numbers, whole ones too: age; classes: city (2: Oslo, Rome)" in describe(of_rows)
