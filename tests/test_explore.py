"""The page that draws what is asked for: its controls, its pictures, and whom it answers."""

import io

import numpy as np
import pytest
from PIL import Image

from flowguide import cli, explore, pictures, sampling
from flowguide.model import GammaConditioned, NoNull
from flowguide.sampling import SamplerConfig
from tests.support.toy import FREE, MODEL


@pytest.fixture
def client():
    return explore.make_app(MODEL).test_client()


def get(client, query="", **options):
    return client.get(f"/draw?{query}", base_url="http://localhost:8000", **options)


def test_a_picture_is_what_sample_draws(client):
    answer = get(client, "cond=hat%3Dred&gamma=3&steps=4&num=5&seed=7&guidance=apg&negative=hat%3Dnone&replace_null=on")
    assert answer.status_code == 200, answer.text
    assert answer.mimetype == "image/png"
    config = SamplerConfig(guidance="apg", steps=4, replace_null=True)
    drawn = sampling.sample(MODEL, "hat=red", num=5, gamma=3.0, negative=["hat=none"], config=config, seed=7)
    with Image.open(io.BytesIO(answer.data)) as picture:
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), np.asarray(pictures.figure(drawn.x)))
    assert answer.headers["Evaluations"] == str(round(drawn.evaluations.mean()))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("gamma=much", "gamma takes a number; got 'much'"),
        ("gamma=nan", "gamma"),
        ("num=65", "num takes 1 to 64; got 65"),
        ("num=0", "num takes 1 to 64; got 0"),
        ("steps=0", "steps"),
        ("guidance=none", "none"),
        ("cond=hut%3Dred", "unknown field 'hut'"),
        ("size=3", "unknown 'size': there are cond, negative"),
        ("seed=-1", "seed"),
    ],
)
def test_what_cannot_be_is_one_line(client, query, message):
    answer = get(client, query)
    assert answer.status_code == 400
    assert message in answer.text
    assert len(answer.text.splitlines()) == 1


def test_the_page_has_a_control_for_everything(client):
    page = client.get("/", base_url="http://127.0.0.1:8000").text
    for name in MODEL.info.fields:
        assert page.count(f'data-field="{name}"') == 2  # of the condition, and of what to move away from
    for name in ("gamma", "guidance", "steps", "num", "seed"):
        assert f'name="{name}"' in page
    for file in ("explore.css", "explore.js"):
        assert f"/static/{file}" in page
        assert client.get(f"/static/{file}", base_url="http://localhost").status_code == 200
    assert "//" not in page.replace("<!doctype", "").split("<body>")[0].replace("data:,", "")  # nothing from elsewhere


def test_controls_are_those_that_the_model_obeys():
    assert explore.controls(MODEL)["guidable"]
    free = explore.controls(FREE)
    assert not any(free[name] for name in ("guidable", "negatives", "rules", "fields"))
    conditioned = explore.controls(MODEL._replace(guidance=GammaConditioned(1.0, 1.5)))
    assert conditioned["gamma"] == {"low": 1.0, "high": 1.5, "start": 1.5}
    assert not conditioned["negatives"]
    blind = MODEL._replace(guidance=NoNull())
    assert (explore.controls(blind)["rules"], explore.controls(blind)["negatives"]) == (["icg", "tsg"], False)
    asked = "cond=hat%3Dred,beard%3Dno&num=2&steps=2&gamma=2&guidance=icg"
    assert get(explore.make_app(blind).test_client(), asked).status_code == 200
    assert get(explore.make_app(FREE).test_client(), "num=2&steps=2").status_code == 200


@pytest.mark.thorough
def test_every_method_of_the_page_draws(client):
    """As it is or, for those that need one, away from something."""
    for rule in explore.controls(MODEL)["rules"]:
        plain = get(client, f"cond=hat%3Dred&num=2&steps=2&guidance={rule}")
        negative = get(client, f"cond=hat%3Dred&num=2&steps=2&guidance={rule}&negative=hat%3Dnone")
        if rule == "fdg":  # the toy's images are too small for it
            assert (plain.status_code, "3 levels need images" in plain.text) == (400, True)
        else:
            assert 200 in (plain.status_code, negative.status_code), (rule, plain.get_data(as_text=False)[:200])


def test_only_this_machine_is_answered(client):
    """A page of another site that names this machine by a name of its own is refused."""
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example"):
        assert client.get("/draw?num=1&steps=1", base_url=f"http://{host}").status_code == 403


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "expected --workdir"), (["--workdir=/nowhere"], "no run in /nowhere")]
)
def test_refusals_of_the_command(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["explore", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
