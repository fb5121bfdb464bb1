"""What a run tells its user to change: fields that it does not use, and a config that a CPU is too slow for."""

import pytest

from flowguide import config
from flowguide.data import open_dataset
from flowguide.training import loop
from flowguide.training.advice import FEW, hardly_trained, slow_on_cpu, unused_fields
from tests.support.runs import small


@pytest.mark.thorough
def test_fields_that_are_not_used_are_named_with_the_flag_that_adds_them(data_dir):
    data, c = open_dataset("avatars", data_dir=data_dir), config.default()
    assert data.unused == ("caption",)
    every = ",".join((*data.info.fields, "caption"))
    assert unused_fields(c, data) == f"; not used: caption (--config.data.fields={every})"
    c.data.fields = ("hair",)  # chosen
    assert unused_fields(c, open_dataset("avatars", fields=("hair",), data_dir=data_dir)) == ""
    assert unused_fields(config.default(), open_dataset("digits", data_dir=data_dir)) == ""


@pytest.mark.thorough
def test_a_run_says_what_it_does_not_use(data_dir, tmp_path, monkeypatch, capsys):
    real = loop.build.splits

    def with_more(c):
        data = real(c)
        return data._replace(train=data.train._replace(unused=("c", "d")))

    monkeypatch.setattr(loop.build, "splits", with_more)
    loop.train(small(data_dir, steps=2), tmp_path)
    told = capsys.readouterr().out
    assert "conditioned on label; not used: c, d (--config.data.fields=label,c,d); mlp: " in told


@pytest.mark.parametrize(
    ("platform", "hours", "told"), [("cpu", 5.9, False), ("cpu", 6.1, True), ("gpu", 100.0, False)]
)
def test_six_hours_on_a_cpu_are_too_long(platform, hours, told):
    line = slow_on_cpu(config.default(), platform, round(hours * 3600 * 50), 50.0)
    assert (line is not None) == told
    if line:
        assert "6.1 hours are left at 50 examples/s: this config is for a GPU" in line
        assert "--config.steps=10000, --config.batch_size=128" in line


@pytest.mark.slow
@pytest.mark.parametrize(("minutes", "count"), [(None, 1), (5.0, 0)])
def test_it_is_said_once_and_not_of_a_run_with_a_limit(minutes, count, data_dir, tmp_path, monkeypatch, capsys):
    """After the second logged step, and so after those that compile."""
    asked = []
    monkeypatch.setattr(loop, "slow_on_cpu", lambda c, platform, left, rate: asked.append((platform, left)) or "slow")
    loop.train(small(data_dir), tmp_path, minutes=minutes)
    assert capsys.readouterr().out.count("slow") == count
    assert asked == [("cpu", (20 - 8) * 32)] * count


def test_the_configs_that_are_named_exist():
    from flowguide.cli.config_flag import load_config

    line = slow_on_cpu(config.default(), "cpu", 10**9, 1.0)
    assert line is not None
    for name in line.partition("for CPUs: ")[2].split(", "):
        load_config(name)


@pytest.mark.slow
@pytest.mark.parametrize(("minutes", "count"), [(1e-6, 1), (5.0, 0), (None, 0)])
def test_a_run_that_a_limit_of_time_ends_too_early_says_so(minutes, count, data_dir, tmp_path, capsys):
    loop.train(small(data_dir), tmp_path, minutes=minutes)
    out = capsys.readouterr().out
    assert out.count("ended the training after 1 step, and samples will be noise") == out.count("warning") == count


def test_enough_steps_are_no_warning():
    assert hardly_trained(FEW) is None
    assert "after 99 steps" in (hardly_trained(FEW - 1) or "")
