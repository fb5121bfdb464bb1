"""The command ``evaluate`` as a user runs it, on the tiny run of the digits."""

import json
import shutil

import numpy as np
import pytest
from absl import flags
from PIL import Image

from flowguide import build, config, metrics, sampling
from flowguide.cli import evaluate
from flowguide.cli.command import help_text, parse
from flowguide.errors import UserError
from flowguide.evaluation import judging, run
from tests.support.runs import refused


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(run, "CHUNK", 16)
    monkeypatch.setattr(judging, "STEPS", 20)


def command(*arguments):
    """Runs the command in this process."""
    values, words = parse(evaluate.COMMAND, "evaluate", ["--coordinator=none", *arguments])
    assert not words
    evaluate.main(values)


@pytest.mark.slow
def test_from_the_command_line(digits, tmp_path, capsys):
    sweep = ["--gamma=1,2", "--guidance=cfg,apg:momentum=-0.5", "--steps=2"]
    sweep += ["--html", "--html_samples=2", "--html_steps=2", "--html_cond=3", "--html_cond=5"]
    command(f"--workdir={digits}", f"--out={tmp_path}", *sweep, "--num=20", "--num_real=100", "--batch_size=16")
    content = json.loads((tmp_path / "evaluation.json").read_text())
    rows = content["rows"]
    settings = [(rule, gamma) for rule in ("cfg", "apg") for gamma in (1, 2)]
    assert [(row["guidance"], row["gamma"]) for row in rows] == settings
    assert {row["num_real"] for row in rows} == {100}
    assert rows[-1]["settings"] == [["momentum", -0.5]]
    assert rows[0]["ema"] == {"name": "constant", "decay": 0.999}
    assert (rows[0]["weights"], rows[0]["train_step"]) == ("newest", 3)

    model, c = sampling.load(digits), config.read_config(digits)
    data = build.splits(c)
    order = np.random.default_rng(0).permutation(data.test.size)[:20]
    asked = {"label": data.test.read(order).value["label"]}
    x = model.sample(asked, gamma=2.0, config=sampling.SamplerConfig(steps=2), batch_size=16)
    judge, _ = judging.find(tmp_path, data.train)
    assert judge is not None
    real = data.train.read(np.random.default_rng(0).permutation(data.train.size)[:100]).x
    hidden = [metrics.moments([metrics.features(judge, images)]) for images in (real, x)]
    own = rows[1]["metrics"]
    assert own["frechet_distance"] == pytest.approx(metrics.frechet_distance(*hidden), rel=1e-3)
    assert own["adherence"]["label"] == pytest.approx(metrics.adherence(metrics.predict(judge, x), asked)["label"])

    printed = capsys.readouterr()
    for word in ("Fréchet", "held-out real", "cfg", "apg", "evaluation.png", "last step 0.5"):
        assert word in printed.out
    assert np.asarray(Image.open(tmp_path / "evaluation.png")).std() > 5
    assert "a judge of label learns" in printed.err
    assert "evaluation.html: 24 pictures of 2 samples, about 0.1 MB" in printed.err  # (2 + 1 settings + 3 states) · 4
    assert '<option value="1">5</option>' in (tmp_path / "evaluation.html").read_text()

    shutil.rmtree(tmp_path / "chunks")  # the rest is still known
    command(
        f"--workdir={digits}", f"--out={tmp_path}", "--gamma=2", "--steps=2", "--num=20", "--num_real=100", "--step=3"
    )
    (row,) = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert (row["weights"], row["train_step"]) == ("3", 3)
    assert row["metrics"] == own
    assert "learns" not in capsys.readouterr().err


def test_all_combinations_are_what_sample_would_draw():
    flags = "--guidance=cfg,apg:momentum=-0.5,cfg --interval=none --interval=0.2,0.8 --steps=2,3 --rescale=0.5"
    values, _ = parse(evaluate.COMMAND, "evaluate", ["--workdir=run", *flags.split()])
    configs = [command.config for command in evaluate._commands(values)]
    assert configs == [
        sampling.resolve_defaults(
            sampling.SamplerConfig(guidance=rule, settings=own, steps=steps, interval=interval, rescale=0.5)
        )
        for rule, own in (("cfg", ()), ("apg", (("momentum", -0.5),)))
        for steps in (2, 3)
        for interval in (None, (0.2, 0.8))
    ]


def test_none_switches_off_the_interval_of_a_recipe():
    values, _ = parse(
        evaluate.COMMAND, "evaluate", ["--workdir=run", "--recipe=jit-heun", "--interval=none", "--interval=0.3,0.8"]
    )
    assert [command.config.interval for command in evaluate._commands(values)] == [None, (0.3, 0.8)]
    values, _ = parse(evaluate.COMMAND, "evaluate", ["--workdir=run", "--recipe=jit-heun"])
    assert [command.config.interval for command in evaluate._commands(values)] == [
        sampling.recipe("jit-heun").config.interval
    ]


@pytest.mark.slow
def test_negative_conditions_from_the_command_line(digits, tmp_path, capsys):
    away = ["--guidance=perp_neg,cfg", "--negative=3", "--negative=other", "--gamma_negative=0.5", "--html"]
    few = ["--gamma=2", "--steps=1", "--num=16", "--num_real=20", "--html_samples=1", "--html_cond=4"]
    command(f"--workdir={digits}", f"--out={tmp_path}", *away, *few)
    rows = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert [row["negatives"] for row in rows] == [["3", "other"]] * 2
    assert [row["gamma_negative"] for row in rows] == [0.5, 0.5]
    assert all(0 <= row["metrics"]["negative_share"] <= 1 for row in rows)
    printed = capsys.readouterr()
    assert "perp_neg cannot be drawn without a negative condition, and is left out" in printed.err
    assert "negative" in printed.out
    # The explorer's samples have no negative condition: what was measured with one is not theirs.
    assert '"measured": {}' in (tmp_path / "evaluation.html").read_text().replace('"measured":{}', '"measured": {}')


@pytest.mark.thorough
def test_a_page_that_fails_loses_no_result(digits, tmp_path, capsys, monkeypatch):
    def fails(*args, **options):
        raise MemoryError("no room")

    monkeypatch.setattr(evaluate.page, "write", fails)
    few = ["--gamma=1", "--steps=1", "--num=16", "--num_real=20", "--html"]
    command(f"--workdir={digits}", f"--out={tmp_path}", *few)
    printed = capsys.readouterr()
    assert "warning: no evaluation.html (MemoryError: no room)" in printed.err
    assert printed.out.strip().endswith(f"{tmp_path / 'evaluation.json'} and {tmp_path / 'evaluation.png'}")
    assert not (tmp_path / "evaluation.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "expected --workdir=DIR"),
        ("--workdir=nowhere", "no run in nowhere"),
        ("--workdir=nowhere --guidance=cfg,cffg", "unknown guidance 'cffg', did you mean 'cfg'?"),
        ("--workdir=nowhere --solver=huen", "did you mean 'heun'"),
        ("--workdir=nowhere --steps=two", "steps"),
        ("--workdir=nowhere --grid=fitted", "give a grid by name"),
        ("--workdir=nowhere --gamma=high", "--gamma takes numbers"),
        ("--workdir=nowhere --features=clip", "--features is judge or inception:FILE; got 'clip'"),
        ("--workdir=nowhere --features=inception", "--features is judge or inception:FILE"),
        ("--workdir=nowhere --resize=adm", "--resize does nothing without --features=inception:FILE"),
        ("--workdir=nowhere --gamma_negative=1", "--gamma_negative does nothing without a --negative"),
        ("--workdir=RUN --negative=eleven", "eleven"),
        ("--workdir=RUN --guidance=apg --negative=3", "guidance 'apg' takes one reference"),
        ("--workdir=nowhere --step=last", "--step takes training steps, newest and best; got 'last'"),
        ("--workdir=nowhere --interval=0.8,0.2", "interval needs 0 <= start < stop <= 1"),
        ("--workdir=nowhere --guidance=cfg,autoguidance", "needs a weaker model"),
        ("--workdir=RUN --step=99", "no checkpoint of step 99"),
        ("--workdir=RUN --num=5", "at least 10"),
        ("--workdir=RUN --html --html_cond=ten", "unknown value"),
        ("--workdir=RUN --html --html_steps=0.5", "--html_steps takes whole numbers; got '0.5'"),
        ("--workdir=RUN --html --html_samples=9999", "lower --html_samples to"),
        ("--workdir=RUN --features=inception:nowhere.pth", "nowhere.pth"),
    ],
)
def test_bad_commands_are_refused_and_nothing_written(arguments, message, digits, tmp_path):
    with pytest.raises((UserError, flags.Error)) as error:
        command(*arguments.replace("RUN", str(digits)).split(), f"--out={tmp_path / 'new'}")
    assert message in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.thorough
def test_an_error_is_one_line():
    refused("-m", ["flowguide", "evaluate", "--workdir=nowhere"], "no run in nowhere")


def test_a_run_that_says_best_is_evaluated_at_its_best(digits, tmp_path):
    values, _ = parse(evaluate.COMMAND, "evaluate", ["--step=best,newest"])
    models = evaluate._models(values, digits)
    assert {name: model.step for name, model in models.items()} == {"best": 3, "newest": 3}
    with pytest.raises(UserError, match="no run in"):
        evaluate._models(values, tmp_path)


def test_data_that_have_moved():
    c = config.default()
    assert evaluate._with_data(c.copy_and_resolve_references(), None).data == c.data
    assert evaluate._with_data(c.copy_and_resolve_references(), "there").data.data_dir == "there"
    c.data.path = "photos"
    moved = evaluate._with_data(c, "there").data
    assert (moved.path, moved.data_dir) == ("there", "")


def test_help_offers_what_it_takes():
    text = help_text(evaluate.COMMAND, "flowguide evaluate")
    for word in ("--gamma", "--guidance", "several with commas (default: cfg)", "--features", "--seeds", "apg"):
        assert word in text
    for word in ("--particles", "fitted", "--cond", "fkc: "):
        assert word not in text


def test_a_recipe_is_evaluated_at_its_gamma():
    values, _ = parse(evaluate.COMMAND, "evaluate", ["--workdir=run", "--recipe=sit-sde", "--steps=4,5"])
    commands = evaluate._commands(values)
    assert [c.config for c in commands] == [
        sampling.resolve_defaults(sampling.recipe("sit-sde").config._replace(steps=n)) for n in (4, 5)
    ]
    assert [c.gammas for c in commands] == [[1.5]] * 2
