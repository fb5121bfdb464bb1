"""The sampler as a user runs it: what a sample depends on, what is recorded, and refusals in one line."""

import io
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_imports import HEAVY
from test_train import ROOT, refused, run

import train as script
from flowguide import build, pictures, sampling
from flowguide.condition import Condition, Label, given, null
from flowguide.data import DataInfo
from flowguide.errors import UserError
from flowguide.networks import Network
from flowguide.networks.perturbation import Perturbation

FIELDS = {"hat": Label(("none", "red")), "beard": Label(("no", "yes"))}
SHAPE = (3, 3, 1)


def velocity(params, t, x, c):
    """A made-up network that reads everything it is given."""
    hat, beard = (jnp.where(c.present[k], c.value[k] + 1.0, 0.0)[:, None, None, None] for k in ("hat", "beard"))
    return params["w"] * jnp.tanh(x) + jnp.sin(3 * t)[:, None, None, None] + 0.3 * hat - 0.2 * beard * x


NETWORK = Network(lambda key: {"w": jnp.float32(0.5)}, velocity)
RUN = sampling.Run(DataInfo("toy", SHAPE, "points", FIELDS), NETWORK, {"w": jnp.float32(0.5)}, 7, True, "linear")


def draw(**options):
    options = {"num": 10, "gamma": 2.0, "method": sampling.SamplerConfig(steps=6), **options}
    return sampling.sample(RUN, options.pop("cond", "hat=red"), **options)


SHARES = [(name, 4, 2) for name in ("heun", "ab3", "unipc2", "renoise", "renoise_2m", "dopri5")]
SHARES += [(name, *share) for name in ("heun", "renoise", "dopri5") for share in ((10, 1), (3, 1), (16, 8))]


@pytest.mark.parametrize(("solver", "batch_size", "devices"), SHARES)
def test_a_sample_depends_on_its_seed_and_number_alone(solver, batch_size, devices):
    method = sampling.SamplerConfig(solver, 6)
    options = {"negative": ["beard=yes"], "gamma_negative": 0.5, "method": method}
    whole = draw(devices=jax.devices()[:1], batch_size=64, **options)
    other = draw(devices=jax.devices()[:devices], batch_size=batch_size, **options)
    np.testing.assert_allclose(whole.x, other.x, rtol=2e-5, atol=2e-6)
    more = draw(num=13, devices=jax.devices()[:devices], batch_size=batch_size, **options)
    np.testing.assert_allclose(whole.x, more.x[:10], rtol=2e-5, atol=2e-6)
    assert np.abs(draw(seed=1, **options).x - whole.x).max() > 0.1


@pytest.mark.parametrize(
    ("solver", "steps"), [("heun", 200), ("rk4", 200), ("ab3", 200), ("unipc2", 200), ("dpmpp_2m", 600)]
)
def test_solvers_agree_with_the_adaptive_one(solver, steps):
    fine = draw(method=sampling.SamplerConfig("dopri5", tolerance=1e-6)).x
    np.testing.assert_allclose(draw(method=sampling.SamplerConfig(solver, steps)).x, fine, atol=2e-4)


@pytest.mark.parametrize("passes", ["together", "apart"])
def test_evaluations_are_counted(passes):
    def count(gamma=2.0, negative=(), **method):
        method = sampling.SamplerConfig(passes=passes, **{"steps": 10, **method})
        return set(draw(gamma=gamma, negative=negative, method=method).evaluations.tolist())

    assert count(solver="euler") == {20}
    assert count(solver="euler", gamma=1.0) == {10}
    assert count(solver="heun") == {40}
    assert count(solver="euler", negative=["beard=yes"]) == {30}
    assert count(solver="euler", negative=["beard=yes"], replace_null=True) == {20}
    assert count(solver="euler", interval=(0.25, 0.55)) == {13}  # at t = 0.3, 0.4, 0.5
    guided, plain = (next(iter(count(solver="dopri5", gamma=g))) for g in (2.0, 1.0))
    assert guided % 2 == 0
    assert plain > 6


def test_prompts_conditions_and_lists_are_the_same_thing():
    one = draw(cond="hat=red,beard=yes", num=4).x
    listed = sampling.sample(RUN, ["hat=red,beard=yes"] * 4, gamma=2.0, method=sampling.SamplerConfig(steps=6)).x
    ready = draw(cond=given({"hat": np.ones(4, int), "beard": np.ones(4, int)}), num=4).x
    np.testing.assert_array_equal(one, listed)
    np.testing.assert_array_equal(one, ready)


ONE = RUN._replace(
    info=RUN.info._replace(fields={"hat": Label(tuple("0123456789"))}),
    network=NETWORK._replace(
        velocity=lambda params, t, x, c: (
            jnp.where(c.present["hat"], jnp.sin(c.value["hat"] + 1.0), 0)[:, None, None, None] - x
        )
    ),
)


@pytest.mark.parametrize(
    ("cond", "prompts"),
    [
        (3, ["3"] * 4),
        (np.int64(3), ["3"] * 4),
        ({"hat": 3}, ["3"] * 4),
        ({"hat": "3"}, ["3"] * 4),
        ([3, "0", {"hat": 7}, ""], ["3", "0", "7", ""]),
        (np.array([3, 0, 7, 9]), ["3", "0", "7", "9"]),
        (jnp.array([3, 0, 7, 9]), ["3", "0", "7", "9"]),
        ({"hat": [3, 0, 7, 9]}, ["3", "0", "7", "9"]),
        ({"hat": np.array(["3", "0", "7", "9"])}, ["3", "0", "7", "9"]),
        (given(np.array([3, 0, 7, 9])), ["3", "0", "7", "9"]),
        ({}, [""] * 4),
    ],
    ids=str,
)
def test_conditions_may_be_labels_arrays_and_dicts(cond, prompts):
    options = {"gamma": 2.0, "method": sampling.SamplerConfig("euler", 4)}
    expected = sampling.sample(ONE, prompts, **options).x
    np.testing.assert_array_equal(sampling.sample(ONE, cond, num=4, **options).x, expected)
    away = sampling.sample(ONE, "1", num=4, negative=prompts[:1], **options).x
    if isinstance(cond, int | dict) and prompts[0] == prompts[1]:
        np.testing.assert_array_equal(sampling.sample(ONE, 1, num=4, negative=cond, **options).x, away)
    if len(set(prompts)) > 1:  # one a sample: their number need not be said
        np.testing.assert_array_equal(sampling.sample(ONE, cond, **options).x, expected)


def test_one_negative_needs_no_list():
    """A string is one prompt, not one for each of its characters."""
    listed = draw(negative=["beard=yes"]).x
    np.testing.assert_array_equal(draw(negative="beard=yes").x, listed)
    np.testing.assert_array_equal(draw(negative={"beard": 1}).x, listed)
    np.testing.assert_array_equal(draw(negative=[{"beard": np.ones(10, int)}]).x, listed)
    two = draw(negative=["beard=yes", {"hat": "none"}])
    np.testing.assert_array_equal(draw(negative=["beard=yes", "hat=none"]).x, two.x)
    assert (two.evaluations == 12 * 4).all()
    with pytest.raises(UserError, match="unknown value '12' of 'hat'"):
        sampling.sample(ONE, 3, num=2, negative="12")


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (10, "field 'hat' takes a name or a number from 0 to 9; got 10"),
        (-1, "from 0 to 9; got -1"),
        (2.5, "field 'hat' takes a name or a number from 0 to 9; got 2.5"),
        (None, 'got None, expected a prompt "hat=red", a label'),
        (np.arange(3), "got 3 values of 'hat' for 4 samples"),
        (np.array([3, 0, 7, 10]), "from 0 to 9; got 10"),
        ({"hut": 3}, "unknown field 'hut', did you mean 'hat'"),
        ({"hat": np.zeros((4, 2), int)}, "field 'hat' takes a name or a number"),
        ({"hat": [[3], [1, 2]]}, "field 'hat' takes a name or a number"),
        ([3, 4], "got 2 conditions for 4 samples"),
        (given({"hut": np.arange(4)}), "got a Condition of hut, and the data have the fields hat"),
        (given(np.zeros((4, 2), int)), r"the values of 'hat' must have shape \(4,\)"),
        (given(np.array([3, 0, 7, 10])), "from 0 to 9; got 10"),
    ],
    ids=str,
)
def test_what_is_no_condition_is_refused(cond, message):
    with pytest.raises(UserError, match=message):
        sampling.sample(ONE, cond, num=4)
    with pytest.raises(UserError, match="say which, as a prompt or a dict"):
        sampling.sample(RUN, 3)


def test_data_without_fields_are_drawn_by_number():
    free = NETWORK._replace(velocity=lambda params, t, x, c: -x)
    run = RUN._replace(info=RUN.info._replace(fields={}), network=free)
    whole = sampling.sample(run, num=5, method=sampling.SamplerConfig("euler", 10), batch_size=2)
    assert (whole.evaluations == 10).all()
    first = sampling.sample(run, method=sampling.SamplerConfig("euler", 10))
    assert first.x.shape == (64, *SHAPE)
    np.testing.assert_allclose(whole.x, first.x[:5], rtol=1e-6)
    noise = sampling.sample(run, num=5, method=sampling.SamplerConfig("euler", 1)).x  # one step of dx/dt = −x ends at 0
    np.testing.assert_allclose(noise, 0, atol=1e-7)
    for cond in ("3", "hat=red", 3, {"hat": 3}):
        with pytest.raises(UserError, match="the data have no fields"):
            sampling.sample(run, cond, num=2)


def test_gamma_of_each_sample():
    gammas = np.linspace(0, 4, 10).astype(np.float32)
    mixed = draw(gamma=gammas).x
    for i in (0, 4, 9):
        np.testing.assert_allclose(mixed[i], draw(gamma=float(gammas[i])).x[i], rtol=1e-5, atol=1e-6)


def test_changing_gamma_seed_or_condition_compiles_nothing():
    draw(negative=["beard=yes"])
    program = sampling.draw._program(
        NETWORK,
        None,
        False,
        RUN.path,
        SHAPE,
        sampling.resolve_defaults(sampling.SamplerConfig(steps=6)),
        jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)),
    )
    before = program._cache_size()
    draw(negative=["beard=no"], gamma=3.0, seed=5, cond="beard=yes", gamma_negative=0.1)
    assert program._cache_size() == before > 0


METHODS = [(name, {}) for name in ("zero_star", "apg", "tcfg", "mambo_g", "beta_cfg", "feedback")]
METHODS += [(name, {"negative": ["beard=yes"], "gamma_negative": 0.7}) for name in ("perp_neg", "contrastive", "dng")]
METHODS += [("cfg", {"negative": ["beard=yes"], "compose": [("hat=none", 0.5)]}), ("autoguidance", {"weak": True})]


@pytest.mark.parametrize(("name", "asked"), METHODS)
def test_every_method_draws_and_its_samples_do_not_depend_on_the_batch(name, asked):
    worse = NETWORK._replace(velocity=lambda params, t, x, c: 0.5 * velocity(params, t, x, c))
    asked = {**asked, "weak": RUN._replace(network=worse)} if "weak" in asked else asked
    method = sampling.SamplerConfig("ab2", 6, guidance=name)
    whole = draw(devices=jax.devices()[:1], method=method, **asked)
    other = draw(devices=jax.devices()[:4], batch_size=4, method=method, **asked)
    np.testing.assert_allclose(whole.x, other.x, rtol=1e-4, atol=1e-5)
    plain = draw(method=sampling.SamplerConfig("ab2", 6), gamma=1.0)
    assert np.abs(whole.x - plain.x).max() > 1e-3
    extra = len(asked.get("negative", [])) + len(asked.get("compose", [])) + 1
    saved = int(name == "beta_cfg")  # its scale is 0 at t = 0: there the reference is all that is needed
    assert (whole.evaluations == 6 * (1 + extra) - saved).all()


def test_reuse_and_schedules_and_cfg_pp():
    few = draw(method=sampling.SamplerConfig("ab2", 8, reuse=4))
    assert (few.evaluations == 8 + 2).all()
    assert np.abs(few.x - draw(method=sampling.SamplerConfig("ab2", 8)).x).max() < 0.3
    ramp = draw(method=sampling.SamplerConfig("ab2", 8, schedule="linear"))
    assert np.abs(ramp.x - draw(method=sampling.SamplerConfig("ab2", 8)).x).max() > 1e-3
    plus = draw(gamma=0.6, method=sampling.SamplerConfig("ddim", 8, guidance="cfg_pp"))
    assert (plus.evaluations == 16).all()


def test_a_grid_of_ones_own_and_a_fitted_one():
    own = draw(method=sampling.SamplerConfig("ab2", grid=tuple(i / 6 for i in range(7))))
    np.testing.assert_allclose(own.x, draw(method=sampling.SamplerConfig("ab2", 6)).x, atol=1e-5)
    assert (own.evaluations == 12).all()

    method, away = sampling.SamplerConfig("abm3", 4), ["beard=yes"]
    grid = sampling.fit_grid(RUN, ["hat=red", ""] * 8, method=method, gamma=3.0, negative=away, iterations=10)
    assert len(grid) == 5
    exact = draw(method=sampling.SamplerConfig("dopri5", tolerance=1e-6), gamma=3.0, negative=away).x
    methods = method, method._replace(grid=grid)
    error = [np.abs(draw(method=m, gamma=3.0, negative=away).x - exact).mean() for m in methods]
    assert error[1] < 0.7 * error[0]
    with pytest.raises(UserError, match=r"a grid is fitted to ab2, .*; got renoise"):
        sampling.fit_grid(RUN, ["hat=red"], method=sampling.SamplerConfig("renoise"))


PC = sampling.SamplerConfig(steps=6, sampler="pc", corrections=2)
FKC = sampling.SamplerConfig(steps=8, sampler="fkc", particles=6, threshold=0.9)


def laws(**options):
    options = {"num": 5, "gamma": 2.5, "method": FKC, **options}
    return sampling.sample_particles(RUN, options.pop("cond", "hat=red"), **options)


def test_corrections_are_counted_and_drawn_alike_in_any_batch():
    whole, parts = draw(method=PC), draw(method=PC, batch_size=3, devices=jax.devices()[:2])
    np.testing.assert_allclose(whole.x, parts.x, rtol=2e-5, atol=2e-6)
    assert (whole.evaluations == 2 * (1 + 5 * 3)).all()  # none before the first step
    assert np.abs(whole.x - draw().x).max() > 0.1


@pytest.mark.parametrize("options", [{}, {"negative": ["beard=yes"]}, {"compose": [("beard=yes", -0.4)]}], ids=str)
def test_a_law_depends_on_its_seed_and_number_alone(options):
    whole = laws(devices=jax.devices()[:1], batch_size=64, **options)
    other = laws(num=7, devices=jax.devices()[:2], batch_size=13, **options)
    assert whole.x.shape == (5, 6, *SHAPE)
    assert whole.ess.shape == (5, 8)
    for a, b in zip(whole[:5], other[:5], strict=True):
        np.testing.assert_allclose(a, b[:5], rtol=1e-4, atol=1e-4)
    assert whole.evaluations == 8 * (3 if options else 2)
    np.testing.assert_allclose(np.exp(whole.log_weights).sum(1), 1, rtol=1e-5)
    assert np.abs(whole.log_z).max() > 1e-3
    samples = sampling.resample_equal(whole)
    assert samples.shape == (30, *SHAPE)
    assert all(any((s == x).all() for x in whole.x[i // 6]) for i, s in enumerate(samples))


def test_a_law_in_the_place_of_null_and_a_proposal():
    """p(x|d)^(1−γ)·p(x|c)^γ with d = c is p(x|c): no weights. At γ' = γ another proposal is the usual one."""
    method = FKC._replace(replace_null=True)
    same = laws(cond="hat=red", negative=["hat=red"], method=method)
    np.testing.assert_allclose(same.log_weights, -np.log(6), rtol=1e-5)
    one, other = (laws(method=FKC._replace(eta=1.0, proposal=p)) for p in (None, 2.5))
    np.testing.assert_allclose(one.x, other.x, atol=1e-4)
    np.testing.assert_allclose(one.log_z, other.log_z, atol=1e-4)
    assert np.abs(laws(method=FKC._replace(proposal=1.0)).x - one.x).max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": sampling.SamplerConfig()}, "call sample"),
        ({"method": FKC._replace(solver="heun")}, "sampler 'fkc' has no solver 'heun': there are euler_maruyama"),
        ({"method": FKC._replace(guidance="apg")}, "guidance = 'apg' is none"),
        ({"method": FKC._replace(interval=(0.2, 0.8))}, "interval = .* is none"),
        ({"method": FKC._replace(particles=1)}, "particles at least 2"),
        ({"method": FKC._replace(until=2.0)}, r"until is the last time at which .* 0 < until <= 1; got 2.0$"),
        ({"method": FKC._replace(until=0.0)}, "0 < until <= 1"),
        ({"method": FKC._replace(clip=-1.0)}, "clip > 0"),
        ({"method": FKC._replace(proposal=1.0, eta=2.0)}, "memoryless noise, eta = 1; got 2"),
        ({"cond": ["hat=red"], "num": 2}, "1 conditions for 2 samples"),
        ({"gamma": 3e38}, "not finite"),
    ],
)
def test_laws_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        laws(**options)


def test_laws_need_a_plain_network():
    for other, message in (
        (RUN._replace(has_null=False), "knows no p"),
        (RUN._replace(guided=True), "guided velocity already"),
    ):
        with pytest.raises(UserError, match=message):
            sampling.sample_particles(other, "hat=red", method=FKC)
    with pytest.raises(UserError, match="call sample_particles"):
        draw(method=FKC)
    with pytest.raises(UserError, match="unknown sampler 'smc': there are flow, pc, fkc"):
        draw(method=sampling.SamplerConfig(sampler="smc"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cond": "hat=blue"}, "unknown value 'blue' of 'hat'"),
        ({"cond": ["hat=red"], "num": 3}, "1 conditions for 3 samples"),
        ({"gamma": float("nan")}, r"must be finite; got gamma nan$"),
        ({"gamma": np.ones(3)}, r"gamma must be a number, or an array of shape \(10,\)"),
        ({"gamma_negative": np.inf, "negative": "beard=yes"}, "got gamma_negative and other weights inf"),
        ({"compose": ("beard=yes", 0.5)}, "compose takes pairs of condition and weight"),
        ({"num": 0}, "at least 1"),
        (
            {"method": sampling.SamplerConfig("huen")},
            r"sampler 'flow' has no solver 'huen', did you mean 'heun'\?: there are",
        ),
        ({"method": sampling.SamplerConfig(grid="log")}, "unknown grid 'log'"),
        ({"method": sampling.SamplerConfig(grid=(0.0, 0.5, 0.4, 1.0))}, "increase from 0 to 1; got 0, 0.5, 0.4, 1"),
        ({"method": sampling.SamplerConfig(grid=(0.1, 1.0))}, "increase from 0 to 1; got 0.1, 1"),
        ({"method": sampling.SamplerConfig(interval=(0.6, 0.2))}, "0 <= start < stop <= 1"),
        ({"method": sampling.SamplerConfig(replace_null=True)}, "one negative condition"),
        ({"method": sampling.SamplerConfig(rescale=2.0)}, "between 0 and 1"),
        ({"gamma": 3e38}, "not finite"),
        (
            {"method": sampling.SamplerConfig(guidance="cgf")},
            r"unknown guidance 'cgf', did you mean 'cfg'\?: there are apg",
        ),
        ({"method": sampling.SamplerConfig(guidance="apg", settings=(("momentum", np.nan),))}, "got momentum = nan"),
        (
            {"method": sampling.SamplerConfig(guidance="apg", settings=(("r", 1.0),))},
            "it takes parallel, largest, momentum",
        ),
        ({"method": sampling.SamplerConfig(schedule="steep")}, "unknown schedule 'steep': there are beta"),
        ({"method": sampling.SamplerConfig(guidance="perp_neg")}, "needs a negative condition and its weight"),
        (
            {"method": sampling.SamplerConfig(guidance="tcfg"), "negative": ["beard=yes"]},
            "with its own weight makes two",
        ),
        ({"method": sampling.SamplerConfig(guidance="autoguidance")}, "give --weak=DIR or --weak_step=N"),
        ({"method": sampling.SamplerConfig(guidance="perturbed")}, "give --perturb=skip=1"),
        ({"weak": RUN}, "a weak run is for guidance 'autoguidance'; got 'cfg'"),
        (
            {"method": sampling.SamplerConfig(guidance="cfg_pp")},
            "first-order step with a noise of its own: use ddim, not heun",
        ),
        ({"method": sampling.SamplerConfig("dopri5", guidance="feedback")}, "use a solver that takes --steps"),
        ({"method": sampling.SamplerConfig("dopri5", reuse=2)}, "use a solver that takes --steps"),
        ({"method": sampling.SamplerConfig(reuse=0)}, "steps, reuse and corrections must be at least 1"),
        (
            {"method": sampling.SamplerConfig(guidance="tcfg"), "compose": [("beard=yes", 1.0)]},
            "composed by guidance 'cfg'",
        ),
        ({"method": sampling.SamplerConfig(perturbation=Perturbation(skip=(1,)))}, "has no blocks"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        draw(**options)


def test_without_null_dropout_only_full_conditions_at_gamma_one():
    blind = RUN._replace(has_null=False)
    sampling.sample(blind, "hat=red,beard=no", num=2)
    for options in ({"gamma": 2.0}, {"negative": ["beard=yes"]}):
        with pytest.raises(UserError, match="without null dropout"):
            sampling.sample(blind, "hat=red,beard=no", num=2, **options)
    with pytest.raises(UserError, match="without null dropout"):
        sampling.sample(blind, "hat=red", num=2)


@pytest.fixture(scope="module")
def digits(data_dir, tmp_path_factory):
    """A few steps of a tiny network on the real digits: enough to be sampled from."""
    workdir = tmp_path_factory.mktemp("digits") / "run"
    c = build.default()
    c.data.name, c.data.data_dir = "digits", str(data_dir)
    c.network = {"name": "mlp", "width": 8, "depth": 1}
    c.update({"batch_size": 16, "steps": 3, "warmup": 1, "eval_examples": 16})
    c.preview.update({"num": 4, "steps": 2})
    script.train(c, workdir)
    return workdir


def test_previews_are_pictures(digits):
    with Image.open(digits / "previews" / "00000003.png") as picture:
        assert min(picture.size) > 100


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
    run_in_python = sampling.sample(
        sampling.load(digits), "3", num=5, gamma=3.0, negative=["8"], method=sampling.SamplerConfig(steps=4), seed=2
    )
    assert np.abs(run_in_python.x[..., 0].astype(int) - third).max() <= 1


@pytest.mark.parametrize("solver", ["ab3", "renoise_2m", "dopri5"])
def test_an_exported_sampler_runs_with_jax_alone(solver, tmp_path):
    method = sampling.SamplerConfig(solver, 6)
    content = sampling.export(RUN, negative=["beard=yes"], gamma_negative=0.5, method=method, platforms=["cpu", "cuda"])
    (tmp_path / "sampler").write_bytes(content)
    expected = draw(negative=["beard=yes"], gamma_negative=0.5, method=method).x
    code = f"""
import sys
sys.modules.update(dict.fromkeys({[*HEAVY, "flowguide"]!r}))
import numpy as np
from jax import export
sampler = export.deserialize(bytearray(open("sampler", "rb").read()))
for num in (10, 3):
    index, ones = np.arange(num, dtype=np.int32), np.ones(num, np.int32)
    value, present = {{"hat": ones, "beard": 0 * ones}}, {{"hat": ones > 0, "beard": ones < 0}}
    np.save(f"{{num}}.npy", sampler.call(np.uint32(0), index, np.full(num, 2, np.float32), value, present))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for num in (10, 3):
        np.testing.assert_allclose(np.load(tmp_path / f"{num}.npy"), expected[:num], rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="draws particles together"):
        sampling.export(RUN, method=FKC)


def test_a_sampler_is_exported_and_served(digits, tmp_path):
    file = tmp_path / "digits.hlo"
    done = run("sample.py", f"--workdir={digits}", "--steps=4", "--solver=ab2", "--negative=8", f"--export={file}")
    assert done.returncode == 0, done.stderr
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "serve.py"), str(file), "--port=0"], stdout=subprocess.PIPE, text=True
    )
    try:
        address = server.stdout.readline().split("/?")[0]
        with urllib.request.urlopen(f"{address}/?label=3&gamma=3&num=5&seed=2") as answer:
            x = np.load(io.BytesIO(answer.read()))
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{address}/?label=ten")
        assert b"label is one of 0, 1, 2" in error.value.read()
    finally:
        server.kill()
    method = sampling.SamplerConfig("ab2", 4)
    own = sampling.sample(sampling.load(digits), "3", num=5, gamma=3.0, negative=["8"], method=method, seed=2).x
    assert x.shape == own.shape
    assert np.abs(x.astype(int) - own.astype(int)).max() <= 1


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


def test_truncated_checkpoint_and_missing_files_are_named(digits, tmp_path):
    broken = tmp_path / "run"
    shutil.copytree(digits, broken)
    for file in (broken / "checkpoints" / "3" / "ema").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"checkpoints/3 cannot be read"):
        sampling.load(broken)
    (broken / "info.json").write_text("{")
    with pytest.raises(UserError, match=r"info.json cannot be read"):
        sampling.load(broken)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_one_line(digits, tmp_path):
    """TensorStore's threads have nothing to say beside it."""
    broken = tmp_path / "run"
    shutil.copytree(digits, broken)
    for file in (broken / "checkpoints" / "3" / "ema").glob("d/*"):
        file.write_bytes(b"")
    refused("sample.py", [f"--workdir={broken}", "--num=1", "--steps=1"], "checkpoints/3 cannot be read")


# Of a run that is not there: what is found before any run is read.
EARLY = [
    ("--perturb=skip=1", "--perturb does nothing without --guidance=perturbed: add that, or leave --perturb out"),
    ("--weak_step=3", "--weak_step does nothing without --guidance=autoguidance"),
    ("--weak=RUN", "--weak does nothing without --guidance=autoguidance"),
    ("--guidance=autoguidance", "give --weak=DIR or --weak_step=N"),
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
    ("--sampler=fkc --diagnose", "the gap is measured along ab2"),
    ("--diagnose --solver=renoise", "the gap is measured along ab2"),
    ("--diagnose --compose=3:1,4:1", "--diagnose serves one network and plain conditions: leave out --compose"),
    ("--grid=fitted --compose=3:1", "--grid=fitted serves one network and plain conditions: leave out --compose"),
    ("--grid=fitted --solver=renoise", "a grid is fitted to ab2"),
    ("--export=file --num=3", "--num does nothing with --export"),
    ("--gamma=nan", "--gamma takes finite numbers; got 'nan'"),
    ("--gamma=two", "--gamma takes numbers"),
    ("--solver=huen", "has no solver 'huen', did you mean 'heun'?"),
    ("--guidance=cgf", "unknown guidance 'cgf', did you mean 'cfg'?"),
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
    ("--export=", "expected a file to write, and . is a folder"),
    ("--export=gs://bucket/file", "got the address gs://bucket/file"),
    ("--perturb=drop=1", "--perturb takes skip, attention, blur, layers; got 'drop'"),
    ("--compose=3:1 --cond=4", "leave out --cond, or --compose"),
    ("--steps=3 --noreplace_null", "no run in nowhere"),  # all is well, but for the run
    ("--solver=dopri5 --tolerance=1e-3 --negative=3 --gamma_negative=2", "no run in nowhere"),
    ("--sampler=fkc --particles=4 --clip=1 --until=0.5 --eta=1 --proposal=1 --steps=3", "no run in nowhere"),
    ("--sampler=pc --corrections=1 --solver=heun", "no run in nowhere"),
]
COMMANDS = """
import json, sys
from absl import flags
import sample
from flowguide.errors import UserError
for arguments in json.load(sys.stdin):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    try:
        flags.FLAGS(["sample.py", *arguments])
        sample.main()
        print("drawn", file=sys.stderr)
    except UserError as error:
        print(error, file=sys.stderr)
    except Exception as error:
        print(type(error), error, file=sys.stderr)
"""


def commands(*arguments):
    """What each of several commands ends with, a line each; all are run by one process, as its start takes longest."""
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=ROOT,
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr.splitlines()


@pytest.fixture(scope="module")
def early():
    lines = commands(*(["--workdir=nowhere", *case.split()] for case, _ in EARLY))
    assert len(lines) == len(EARLY), lines
    return {case: line for (case, _), line in zip(EARLY, lines, strict=True)}


@pytest.mark.parametrize(("case", "message"), EARLY, ids=[case for case, _ in EARLY])
def test_flags_that_do_nothing_are_refused_before_the_run_is_read(case, message, early):
    assert message in early[case]
    assert not (ROOT / "nowhere").exists()


def test_samples_are_saved_before_the_figure_is_drawn(digits, tmp_path):
    """A folder where the figure should go: its writing fails, and nothing is lost. The record is JSON, without ∞."""
    (tmp_path / "grid.png").mkdir()
    options = ["--num=2", "--steps=2", "--save=npz", "--guidance=apg:largest=inf", "--gamma=1,3", "--cond=3", "--cond="]
    *told, end = commands([f"--workdir={digits}", f"--out={tmp_path}", *options])
    assert end == "drawn"
    assert any("warning: no grid.png (IsADirectoryError" in line for line in told)
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
    refused("sample.py", [a.replace("RUN", str(digits)) for a in arguments], message)


def test_untrained_null_tokens_are_seen(digits):
    run = sampling.load(digits)
    seed = build.read_config(digits).seed
    fresh = run.network.init(jax.random.split(jax.random.key(seed), 3)[0])
    null = sampling.check_null(run._replace(params=fresh), seed)
    assert null.untouched == ("label",)
    assert not null.gap > 0  # the last layer is zero at first
    moved = sampling.check_null(run._replace(params=jax.tree.map(lambda p: p + 0.1, fresh)), seed)
    assert moved.untouched == ()
    assert moved.gap > 0


def test_the_gap_of_null_is_relative_to_the_conditional_velocity():
    def known(params, t, x, c):
        present = (c.present["hat"] & c.present["beard"])[:, None, None, None]
        return jnp.broadcast_to(jnp.where(present, 4 * t[:, None, None, None], 0.5), x.shape)  # 2 half-way, or 0.5

    null = sampling.check_null(RUN._replace(network=NETWORK._replace(velocity=known)), 0)
    assert null == ((), pytest.approx(1.5 / 2, rel=1e-6))


def test_the_verdict_on_null_is_kept_at_the_end_of_training(digits, tmp_path, monkeypatch):
    """train.py has looked; sample.py looks only where there is no verdict on its step, and keeps what it finds."""
    run, seed = sampling.load(digits), build.read_config(digits).seed
    own = sampling.check_null(run, seed)
    assert sampling.kept_null(digits, run) == own
    assert json.loads((digits / "null.json").read_text())["step"] == run.step == 3

    looks = []
    look = lambda run, seed: looks.append(run.step) or sampling.Null(("label",), float("nan"))  # noqa: E731
    monkeypatch.setattr(sampling.run, "check_null", look)
    assert sampling.kept_null(digits, run) == own
    assert not looks
    shutil.copytree(digits, tmp_path / "run")
    other = run._replace(step=2)
    for _ in range(2):
        assert sampling.kept_null(tmp_path / "run", other).untouched == ("label",)
    assert looks == [2]
    assert "NaN" not in (tmp_path / "run" / "null.json").read_text()
    (tmp_path / "run" / "null.json").write_text("{")
    assert np.isnan(sampling.kept_null(tmp_path / "run", run).gap)
    assert looks == [2, 3]


def test_the_gap_is_drawn(tmp_path):
    gap = sampling.gap(RUN, "hat=red", num=5, gamma=2.0, method=sampling.SamplerConfig("ab3", 7))
    assert gap.difference.shape == gap.cosine.shape == (7, 5)
    pictures.save_gaps(tmp_path / "gap.png", {"γ = 2": gap}, "hat=red")
    assert Image.open(tmp_path / "gap.png").size[0] > 500
    with pytest.raises(UserError, match=r"measured along ab2, .*; got dopri5"):
        sampling.gap(RUN, "hat=red", method=sampling.SamplerConfig("dopri5"))


def test_a_network_that_is_told_gamma_costs_one_evaluation():
    """A network whose velocity is the guided one of the γ it is told, against the guidance of the plain network."""

    def taught(params, t, x, c):
        gamma = c.value["gamma"].reshape(-1, 1, 1, 1)
        plain = Condition({k: v for k, v in c.value.items() if k != "gamma"}, {k: c.present[k] for k in FIELDS})
        return (1 - gamma) * velocity(params, t, x, null(plain)) + gamma * velocity(params, t, x, plain)

    run = RUN._replace(network=NETWORK._replace(velocity=taught), gammas=(1.0, 4.0))
    gamma, method = np.linspace(1, 4, 10), sampling.SamplerConfig(steps=6)
    told = sampling.sample(run, "hat=red", num=10, gamma=gamma, method=method)
    guided = draw(gamma=gamma)
    np.testing.assert_allclose(told.x, guided.x, rtol=1e-4, atol=1e-5)
    assert (told.evaluations == 12).all()
    assert (guided.evaluations == 24).all()
    with pytest.raises(UserError, match=r"γ-conditioned, trained for γ in \[1, 4\]"):
        sampling.sample(run, "hat=red", num=2, gamma=5.0)
    with pytest.raises(UserError, match="combines no references"):
        sampling.sample(run, "hat=red", num=2, gamma=2.0, negative=["beard=yes"])
    with pytest.raises(UserError, match="guided already"):
        sampling.sample(RUN._replace(guided=True), "hat=red", num=2, gamma=2.0)
