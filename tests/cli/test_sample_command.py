"""The command ``sample`` as a user runs it: what it writes, and refusals in one line."""

import inspect
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from flowguide import sampling
from flowguide.cli import sample, sample_command
from flowguide.cli.command import help_text, parse
from flowguide.errors import UserError
from flowguide.sampling.particles import LARGE, UNTIL_LARGE
from flowguide.schema import DataInfo, Vectors
from tests.support.runs import ROOT, refused, refused_here, run
from tests.support.toy import FREE, MODEL


def command(*arguments):
    """Runs the command in this process."""
    values, words = parse(sample.COMMAND, "sample.py", ["--coordinator=none", *arguments])
    assert not words
    sample.main(values)


@pytest.mark.slow
def test_command_line_end_to_end(digits, tmp_path):
    options = ["--gamma=3", "--num=5", "--steps=4", "--negative=8", "--seed=2", f"--workdir={digits}"]
    done = run("sample.py", *options, "--cond=3", f"--out={tmp_path / 'a'}")
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "a" / "png").iterdir())
    assert len(files) == 5
    record = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert record["cells"] == [{"cond": "3", "gamma": 3.0, "first": 0, "num": 5, "network_evaluations": 24}]
    assert record["network_evaluations"] == 5 * 24
    assert record["negative"] == ["8"]
    assert record["train_step"] == 3

    figure = ["--cond=3", "--cond=label=4", "--gamma=1,3", "--save=npz", f"--out={tmp_path / 'b'}"]
    done = run("sample.py", *options[1:], *figure, "--batch_size=2")
    assert done.returncode == 0, done.stderr
    x = np.load(tmp_path / "b" / "samples.npz")["x"]
    assert x.shape == (20, 8, 8, 1)
    # Same seed, number, condition and scale: the same image, from another batch size in another command.
    third = np.stack([np.asarray(Image.open(f)) for f in files])
    assert np.abs(x[10:15, ..., 0].astype(int) - third).max() <= 1
    config = sampling.SamplerConfig(steps=4)
    own = sampling.sample(sampling.load(digits), "3", num=5, gamma=3.0, negative=["8"], config=config, seed=2)
    assert np.abs(own.x[..., 0].astype(int) - third).max() <= 1


@pytest.mark.slow
def test_laws_from_the_command_line(digits, tmp_path):
    flags = ["--sampler=fkc", "--particles=4", "--num=6", "--steps=4", "--gamma=1,3", "--cond=3", "--save=npz"]
    done = run("sample.py", f"--workdir={digits}", *flags, f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "samples.npz")["x"].shape == (12, 8, 8, 1)
    assert np.asarray(Image.open(tmp_path / "ess.png")).std() > 5
    record = json.loads((tmp_path / "samples.json").read_text())
    assert [cell["network_evaluations"] for cell in record["cells"]] == [8, 8]
    plain, guided = record["cells"]
    np.testing.assert_allclose(plain["log_z"], [0, 0], atol=1e-4)  # at γ = 1 nothing is to be weighed
    np.testing.assert_allclose(plain["ess_at_the_end"], [4, 4], rtol=1e-4)
    assert all(1 <= n <= 4 for n in guided["ancestors"])


@pytest.mark.slow
def test_a_damaged_checkpoint_is_one_line(digits, tmp_path):
    """TensorStore's threads have nothing to say beside it."""
    broken = tmp_path / "run"
    shutil.copytree(digits, broken)
    for file in (broken / "checkpoints" / "3" / "ema").glob("d/*"):
        file.write_bytes(b"")
    refused("sample.py", [f"--workdir={broken}", "--num=1", "--steps=1"], "checkpoints/3 cannot be read")


# Of a run that is not there: what is found before the run is read.
EARLY = [
    ("--perturb=skip=1", "--perturb does nothing without --guidance=perturbed: add that, or leave --perturb out"),
    ("--weak_step=3", "--weak_step does nothing without --guidance=autoguidance"),
    ("--weak=RUN", "--weak does nothing without --guidance=autoguidance"),
    ("--guidance=autoguidance", "give --weak=DIR or --weak_step=N"),
    ("--guidance=icg --solver=dopri5", "draws random numbers at every t and needs a fixed grid: use --solver=heun"),
    ("--guidance=tsg --negative=1", "guidance 'tsg' has a reference of its own: leave the negative condition out"),
    ("--guidance=tsg:exponent=-1", "of 0 or more; got noise=0.3, exponent=-1.0"),
    ("--guidance=icg --grid=fitted --solver=ab3", "a flow that is the same each time, and guidance 'icg' draws"),
    ("--guidance=tsg --diagnose --solver=ab3", "a flow that is the same each time, and guidance 'tsg' draws"),
    ("--eta=0.5 --solver=heun", "--eta does nothing without a --solver that adds noise (euler_maruyama"),
    ("--eta=0", "--eta does nothing"),
    ("--particles=64", "--particles does nothing without --sampler=fkc"),
    ("--sampler=pc --clip=1", "--clip does nothing without --sampler=fkc"),
    ("--until=1", "--until does nothing without --sampler=fkc"),
    ("--proposal=1", "--proposal does nothing without --sampler=fkc"),
    ("--sampler=fkc --until=2", "0 < until <= 1; got 2"),
    ("--sampler=fkc --corrections=2", "--corrections does nothing without --sampler=pc"),
    ("--tolerance=1e-4", "--tolerance does nothing without a --solver that chooses its steps (bosh3, dopri5, tsit5)"),
    ("--steps=25 --solver=dopri5", "--steps does nothing without a --solver of fixed steps"),
    ("--steps=3 --grid=0,0.5,1", "--steps does nothing without a --solver of fixed steps, on a --grid by name"),
    ("--grid=uniform --solver=dopri5", "--grid does nothing without a --solver of fixed steps"),
    ("--gamma_negative=1", "--gamma_negative does nothing without a --negative"),
    ("--gamma_negative=1 --negative=3 --replace_null", "--gamma_negative does nothing without a --negative that does"),
    ("--replace_null", "--replace_null does nothing without --negative"),
    ("--absolute_tolerance=1", "--absolute_tolerance does nothing without a --solver that chooses its steps"),
    ("--last_step=0.1 --solver=dopri5", "--last_step does nothing without a --solver of fixed steps"),
    ("--recipe=sit-ode --steps=9", "--steps does nothing without a --solver of fixed steps"),
    ("--last_step=0.1 --solver=euler_maruyama --grid=fitted", "--grid=fitted places all steps: leave one out"),
    ("--diffusion=sigma", "diffusion is one of memoryless"),
    ("--sampler=fkc --diagnose", "the gap is measured along ab2"),
    ("--diagnose --solver=renoise", "the gap is measured along ab2"),
    ("--diagnose --compose=3:1,4:1", "--diagnose serves one network and plain conditions: leave out --compose"),
    ("--grid=fitted --compose=3:1", "--grid=fitted serves one network and plain conditions: leave out --compose"),
    ("--grid=fitted --solver=renoise", "a grid is fitted to ab2"),
    ("--export=file --num=3", "--num does nothing with --export"),
    ("--gamma=nan", "--gamma takes finite numbers; got 'nan'"),
    ("--gamma=two", "--gamma takes numbers"),
    ("--solver=huen", "has no solver 'huen', did you mean 'heun'?"),
    ("--guidance=cffg", "unknown guidance 'cffg', did you mean 'cfg'?"),
    ("--guidance=apg:r=1", "guidance 'apg' has no setting 'r': it takes parallel"),
    ("--guidance=perp_neg", "needs a negative condition and its weight"),
    ("--guidance=tcfg --compose=3:1,4:1", "composed by guidance 'cfg'; got 'tcfg'"),
    ("--sampler=fkc --interval=0.2,0.8", "interval = (0.2, 0.8) is none"),
    ("--grid=0,1,0.5", "the nodes of a grid increase from 0 to 1"),
    ("--guidance=perturbed --perturb=skip=nan", "--perturb=skip takes numbers of blocks, 1+2; got 'nan'"),
    ("--guidance=perturbed --perturb=skip=1.5", "--perturb=skip takes numbers of blocks, 1+2; got '1.5'"),
    ("--guidance=perturbed --perturb=skip", "--perturb=skip takes numbers of blocks, 1+2; got ''"),
    ("--guidance=perturbed --perturb=attention=identity,layers=-1", "--perturb=layers takes numbers of blocks"),
    ("--export=tests", "expected a file to write, and tests is a folder"),
    ("--export=", "expected a file or folder, and got the name ''"),
    ("--export=ftp://bucket/file", "got the address ftp://bucket/file"),
    ("--perturb=drop=1", "--perturb takes skip, attention, blur, layers; got 'drop'"),
    ("--compose=3:1 --cond=4", "leave out --cond, or --compose"),
    ("--inpaint=a.png --upsample=b.png", "--inpaint and --upsample exclude each other: leave one out"),
    ("--deblur=a.png", "--deblur needs to know the blur: give --blur_sigma=1.5, in pixels"),
    ("--inpaint=a.png --blur_sigma=1", "--blur_sigma does nothing without --deblur: add that"),
    ("--measurement_noise=1", "--measurement_noise does nothing without one of --inpaint, --upsample, --deblur"),
    ("--data_variance=1", "--data_variance does nothing without one of --inpaint"),
    ("--jacobian_from=1", "--jacobian_from does nothing without one of --inpaint"),
    ("--upsample=a.png --jacobian_from=2", "jacobian_from is a time between 0 and 1; got 2"),
    ("--upsample=a.png --measurement_noise=low", "--measurement_noise takes numbers separated by commas; got 'low'"),
    ("--inpaint=a.png --sampler=fkc", "what was measured is no power: use the sampler 'flow'"),
    ("--inpaint=a.png --reuse=2", "guidance cfg remembers its steps or reuses references"),
    ("--inpaint=a.png --guidance=apg:momentum=-0.5", "use a method without memory"),
    ("--inpaint=a.png --grid=fitted", "--grid=fitted knows no measurement: leave it out, or one of --inpaint"),
    ("--inpaint=a.png --diagnose", "--diagnose knows no measurement"),
    ("--inpaint=a.png --export=file", "--export knows no measurement"),
    ("--steps=3 --noreplace_null", "no run in nowhere"),  # all is well, but for the run
    ("--solver=dopri5 --tolerance=1e-3 --negative=3 --gamma_negative=2", "no run in nowhere"),
    ("--sampler=fkc --particles=4 --clip=1 --until=0.5 --eta=1 --proposal=1 --steps=3", "no run in nowhere"),
    ("--sampler=pc --corrections=1 --solver=heun", "no run in nowhere"),
    ("--deblur=a.png --blur_sigma=1 --measurement_noise=1,2,3 --data_variance=0.1 --steps=9", "no run in nowhere"),
    ("--inpaint=a.png --sampler=pc --jacobian_from=1", "no run in nowhere"),
]


@pytest.mark.parametrize(("case", "message"), EARLY, ids=[case for case, _ in EARLY])
def test_flags_that_do_nothing_are_refused_before_the_run_is_read(case, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error:
        command("--workdir=nowhere", *case.split())
    assert message in str(error.value)
    assert not (ROOT / "nowhere").exists()


@pytest.mark.thorough
def test_samples_are_saved_before_the_figure_is_drawn(digits, tmp_path, capsys):
    """A folder where the figure should go: its writing fails, and nothing is lost. The record is JSON, without ∞."""
    (tmp_path / "grid.png").mkdir()
    options = ["--num=2", "--steps=2", "--save=npz", "--guidance=apg:largest=inf", "--gamma=1,3", "--cond=3", "--cond="]
    command(f"--workdir={digits}", f"--out={tmp_path}", *options)
    assert "warning: no grid.png (IsADirectoryError" in capsys.readouterr().err
    saved = np.load(tmp_path / "samples.npz")
    assert saved["x"].shape == (8, 8, 8, 1)
    np.testing.assert_array_equal(saved["gamma"], [1, 1, 1, 1, 3, 3, 3, 3])
    np.testing.assert_array_equal(saved["cond"], ["3", "3", "", ""] * 2)
    np.testing.assert_array_equal(saved["value.label"][saved["present.label"]], [3] * 4)
    np.testing.assert_array_equal(saved["present.label"], [True, True, False, False] * 2)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    record = json.loads((tmp_path / "samples.json").read_text(), parse_constant=refuse)
    assert record["settings"] == [["largest", "inf"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --workdir=DIR"),
        (["--workdir=nowhere"], "no run in nowhere"),
        (["--workdir=RUN", "--cond=digit=3"], "unknown field 'digit': there are label"),
        (["--workdir=RUN", "--schedule=steep"], "--schedule=steep: value should be one of"),
        (["--workdir=RUN", "--compose=3"], "--compose takes condition:weight"),
        (["--workdir=RUN", "--step=99"], "no checkpoint of step 99"),
    ],
    ids=str,
)
def test_bad_commands_are_one_line(arguments, message, digits):
    refused_here("sample", [a.replace("RUN", str(digits)) for a in arguments], message)


@pytest.mark.thorough
def test_a_refused_script_ends_with_one_line_and_code_2():
    refused("sample.py", [], "expected --workdir=DIR")


def test_flags_and_help_have_the_defaults_of_the_library():
    """A setting without a flag, or with another default, is noticed here."""
    values, _ = parse(sample.COMMAND, "sample.py", ["--workdir=run"])
    assert sample_command.parse(values).config == sampling.resolve_defaults(sampling.SamplerConfig())

    entries = [" ".join(entry.split()) for entry in help_text(sample.COMMAND, "sample.py").split("\n  --")[1:]]
    shown = {entry.split()[0]: entry for entry in entries}
    without = {"settings", "perturbation", "threshold"}  # --guidance and --perturb hold the first two
    settings = {name: v for name, v in sampling.SamplerConfig()._asdict().items() if name not in without}
    arguments = {name: p.default for name, p in inspect.signature(sampling.sample).parameters.items()}
    for name, default in {**settings, **{name: arguments[name] for name in ("seed", "batch_size")}}.items():
        found = re.search(r"\(default: ([^()]*)\)$", shown[name])
        assert (found and found[1]) == (None if default is None else str(default).replace("False", "false")), name

    for name in sampling.SAMPLERS:
        config = sampling.resolve_defaults(sampling.SamplerConfig(sampler=name))
        assert f"{config.solver} for {name}" in shown["solver"]
        assert config.eta == (2 if name == "fkc" else 1)
    assert "by default 1, and 2 for --sampler=fkc" in shown["eta"]
    assert f"by default {sampling.default_gamma(MODEL):g}, or 1" in shown["gamma"]
    assert f"by default {arguments['gamma_negative']:g}" in shown["gamma_negative"]
    assert (
        f"{sampling.resolve_defaults(sampling.SamplerConfig(), measured=True).solver} for flow with" in shown["solver"]
    )
    assert "by default 0.25 for images in [-1, 1], and 1 for floats" in shown["data_variance"]
    assert f"{UNTIL_LARGE:g} for examples of {LARGE} numbers or more, and 1" in shown["until"]


def picture(file, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file)
    return file


def recorded(out):
    return json.loads((out / "samples.json").read_text())


@pytest.mark.thorough
def test_a_photo_with_holes_is_completed(digits, tmp_path):
    """Known pixels come back exactly, in every cell; the record says what was measured, and the solver is ab2."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 2))
    pixels[..., 1] = 255 * (np.arange(8) < 5)
    photo = picture(tmp_path / "photo.png", pixels)
    common = [f"--workdir={digits}", "--cond=3", "--gamma=1,2", "--num=3", "--steps=3", "--save=npz"]
    command(*common, f"--inpaint={photo}", f"--out={tmp_path / 'a'}")
    x = np.load(tmp_path / "a" / "samples.npz")["x"]
    assert x.shape == (6, 8, 8, 1)
    np.testing.assert_array_equal(x[:, :, :5, 0], np.broadcast_to(pixels[:, :5, 0], (6, 8, 5)))
    assert np.ptp(x[:, :, 5:].astype(int), axis=0).max() > 0
    record = recorded(tmp_path / "a")
    assert record["measured"] == {"inpaint": str(photo), "sigma": None, "noise": [0.0], "variance": 0.25}
    assert record["solver"] == "ab2"
    plain = sampling.sample(sampling.load(digits), "3", num=3, gamma=2.0, config=sampling.SamplerConfig("ab2", 3)).x
    assert np.abs(x[3:, :, 5:].astype(int) - plain[:, :, 5:]).max() > 0

    holes = np.where(pixels[..., 1] > 0, pixels[..., 0], np.nan)
    np.save(tmp_path / "photo.npy", holes)
    command(*common, f"--inpaint={tmp_path / 'photo.npy'}", f"--out={tmp_path / 'b'}")
    np.testing.assert_array_equal(np.load(tmp_path / "b" / "samples.npz")["x"], x)


@pytest.mark.thorough
def test_small_and_blurred_images(digits, tmp_path, capsys):
    """The command draws what the library draws; a solver that ends at t = 1 is warned of only without noise."""
    model, config = sampling.load(digits), sampling.SamplerConfig("heun", 3)
    rng = np.random.default_rng(0)
    small, blurred = (picture(tmp_path / f"{n}.png", rng.integers(60, 200, (n, n))) for n in (4, 8))
    cases = {
        "upsample": (sampling.Upsample(small), [], [f"--upsample={small}"], (12**-0.5, 0.25), None),
        "deblur": (
            sampling.Deblur(blurred, 0.7, noise=0.0, variance=0.1),
            ["--measurement_noise=0", "--data_variance=0.1"],
            [f"--deblur={blurred}", "--blur_sigma=0.7"],
            (0.0, 0.1),
            0.7,
        ),
    }
    for name, (measured, flags, flag, (noise, variance), sigma) in cases.items():
        command(f"--workdir={digits}", *flag, *flags, "--num=2", "--steps=3", "--solver=heun", f"--out={tmp_path}")
        about = recorded(tmp_path)["measured"]
        assert (about[name], about["sigma"]) == (flag[0].partition("=")[2], sigma)
        np.testing.assert_allclose((*about["noise"], about["variance"]), (noise, variance), rtol=1e-6)
        x = np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / "png").iterdir())])
        own = sampling.sample(model, num=2, measured=measured, config=config).x[..., 0]
        assert np.abs(x.astype(int) - own).max() <= 1
        assert ("warning: heun evaluates the velocity at t = 1" in capsys.readouterr().err) == (noise == 0)


def test_columns_of_a_table_that_are_known(tmp_path, monkeypatch):
    """With a noise of its own for each column, and as a CSV file."""
    examples = Vectors((3,), (10.0, -5.0, 100.0), (2.0, 0.5, 30.0), ("alcohol", "total acid", "ash"))
    model = FREE._replace(info=DataInfo("table", examples, {}))
    monkeypatch.setattr(sampling, "load", lambda *args, **options: model)
    flags = ["--inpaint=alcohol:13.2; total acid:-4", "--measurement_noise=0,0.2,1", "--num=4", "--save=csv"]
    command("--workdir=run", *flags, f"--out={tmp_path}", "--steps=4")
    head, *rows = (tmp_path / "samples.csv").read_text().splitlines()
    assert head == "alcohol,total acid,ash"
    x = np.array([row.split(",") for row in rows], float)
    np.testing.assert_array_equal(x[:, 0], np.float32(13.2))
    assert (np.ptp(x[:, 1:], axis=0) > 0).all()
    np.testing.assert_allclose(recorded(tmp_path)["measured"]["noise"], [0, 0.2, 1])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--inpaint=nowhere.png", "inpaint takes an image file; 'nowhere.png' cannot be read"),
        ("--inpaint=FULL", "nothing is left to inpaint: make pixels transparent"),
        (
            "--inpaint=WIDE",
            "inpaint takes an array (8, 8, 1), or one for each sample; got (6, 9, 1): crop or resize it",
        ),
        (
            "--upsample=WIDE",
            "upsample takes an array whose sides divide those of (8, 8, 1), with 1 channels; got (6, 9, 1)",
        ),
        ("--deblur=FULL --blur_sigma=-1", "the sigma of a blur is positive"),
        ("--deblur=FULL --blur_sigma=1 --measurement_noise=1,2", "standard deviation of 0 or more; got [1.0, 2.0]"),
        ("--deblur=FULL --blur_sigma=1 --data_variance=0", "the variance of the data is a positive number"),
        ("--deblur=SEVERAL --blur_sigma=1", "got 3 measured values for 2 samples"),
    ],
)
def test_measurements_that_do_not_fit_the_run_write_nothing(flags, message, digits, tmp_path):
    for name, shape in (("FULL", (8, 8)), ("WIDE", (6, 9))):
        flags = flags.replace(name, str(picture(tmp_path / f"{name}.png", np.zeros(shape))))
    np.save(tmp_path / "several.npy", np.zeros((3, 8, 8, 1)))
    flags = flags.replace("SEVERAL", str(tmp_path / "several.npy"))
    with pytest.raises(UserError) as error:
        command(f"--workdir={digits}", f"--out={tmp_path / 'out'}", "--num=2", *flags.split())
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_command_without_gamma_draws_what_the_library_draws(digits, tmp_path):
    command(f"--workdir={digits}", f"--out={tmp_path}", "--num=3", "--steps=2", "--cond=3", "--save=npz")
    (cell,) = json.loads((tmp_path / "samples.json").read_text())["cells"]
    assert cell["gamma"] == 2
    own = sampling.sample(sampling.load(digits), "3", num=3, config=sampling.SamplerConfig(steps=2)).x
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npz")["x"], own)


def config_of(*arguments):
    values, _ = parse(sample.COMMAND, "sample.py", ["--coordinator=none", "--workdir=run", *arguments])
    command = sample_command.parse(values)
    return command.config, command.gammas


@pytest.mark.parametrize("name", sampling.RECIPES)
def test_a_recipe_sets_what_other_flags_do_not_say(name):
    r = sampling.recipe(name)
    assert config_of(f"--recipe={name}") == (sampling.resolve_defaults(r.config), [r.gamma])
    config, gammas = config_of(f"--recipe={name}", "--channels=2", "--gamma=1,4", "--guidance=apg:parallel=0.3")
    own = r.config._replace(channels=2, guidance="apg", settings=(("parallel", 0.3),))
    assert (config, gammas) == (sampling.resolve_defaults(own), [1.0, 4.0])


def test_flags_override_a_recipe_and_another_solver_leaves_out_what_was_of_its_own():
    config, _ = config_of("--recipe=sit-sde", "--steps=50", "--last_step=0.1", "--interval=0.2,0.9")
    own = sampling.recipe("sit-sde").config._replace(steps=50, last_step=0.1, interval=(0.2, 0.9))
    assert config == sampling.resolve_defaults(own)
    config, _ = config_of("--recipe=sit-sde", "--solver=heun")
    assert config == sampling.resolve_defaults(sampling.SamplerConfig("heun", steps=250, last_step=0.04, channels=3))
    config, gammas = config_of("--grid=shift:s=2", "--perturb=skip=1", "--guidance=perturbed")
    assert (config.grid, config.perturbation.skip, gammas) == ("shift:s=2", (1,), None)
