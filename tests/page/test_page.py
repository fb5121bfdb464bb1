"""The page of an evaluation: every choice has its picture, nothing is loaded, and no text becomes markup."""

import base64
import io
import itertools
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowguide import evaluation, page, sampling
from flowguide.build import Splits
from flowguide.errors import UserError
from flowguide.model import GammaConditioned, Guided, NoNull
from flowguide.page import assemble, choices, curves, drawing, encode
from flowguide.schema import Images, Label, Vectors
from tests.page.conftest import CONFIG, GAMMAS
from tests.support.toy import FREE, MODEL, ONE
from tests.support.toy_data import dataset

SHAPE = (4, 5, 3)
RULES = (CONFIG, CONFIG._replace(guidance="apg"))


def showing(model: sampling.Model = ONE, examples: Any = Images(SHAPE)):  # noqa: B008
    return model._replace(info=model.info._replace(examples=examples))


POINTS = showing(
    ONE._replace(network=ONE.network._replace(velocity=lambda params, t, x, c: c.value["hat"][:, None] / 9.0 - x)),
    Vectors((2,)),
)


def planned(model, gammas=GAMMAS, configs=RULES, **wanted):
    data = Splits(dataset("train", 60, 0, model.info), dataset("test", 24, 1, model.info))
    return page.plan(evaluation.settings(model, gammas, configs), data, page.Wanted(**wanted))


def made(found, plan):
    """The page, and what its script reads."""
    pictures = drawing.draw(plan) if plan.kind != "none" else None
    text = assemble.html(found, plan, pictures)
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL) or [None]
    return text, content and json.loads(content)


class Parser(HTMLParser):
    """Collects the elements of a page as (name, attributes), and the text in it."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def sheet_of(uri):
    kind, content = uri.split(",", 1)
    assert kind in ("data:image/png;base64", "data:image/webp;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


@pytest.mark.thorough
def test_every_choice_has_the_picture_of_its_samples(found):
    model = showing()
    plan = planned(model, num=3, conds=["1", "4"], negatives=["7"], steps=[2, 3])
    _, content = made(found, plan)
    assert content["choices"] == {
        "gamma": ["1", "2", "4"],
        "steps": ["2", "3"],
        "condition": ["1", "4"],
        "negative": ["none", "7"],
        "rule": ["cfg", "apg"],
    }
    sheets = [sheet_of(uri) for uri in content["sheets"]]
    height, width, _ = SHAPE

    def picture(sheet, row):
        rows = sheets[sheet][row * height : (row + 1) * height]
        return rows.reshape(height, 3, width, 3).swapaxes(0, 1)

    assert content["takesNegative"] == [True, False]
    for number, (r, s, n) in enumerate(itertools.product(range(2), repeat=3)):
        if r and n:  # apg takes none
            assert content["explorer"][number] == content["explorer"][number - 1]
            continue
        config = RULES[r]._replace(steps=(2, 3)[s])
        for g, c in itertools.product(range(3), range(2)):
            away = ["7"] if n else ()
            drawn = sampling.sample(model, ("1", "4")[c], num=3, gamma=GAMMAS[g], negative=away, config=config).x
            shown = picture(content["explorer"][number], g * 2 + c)
            assert np.abs(drawn.astype(int) - shown).max() <= 1  # rounding
            if not n and s == 1 and r == 0:
                last = picture(content["trajectory"][g], c * len(content["t"]) + len(content["t"]) - 1)
                assert np.abs(last.astype(int) - shown).max() <= 1
    assert len({sheet.tobytes() for sheet in sheets}) == len(sheets) == 4 + 2 + 3
    assert content["t"] == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-4)


def test_measurements_stand_beside_the_setting_that_was_measured(found):
    plan = planned(showing(), num=2, conds=["1"], steps=[2, 3])
    _, content = made(found, plan)
    assert set(content["measured"]) == {f"{r}/1/{g}" for r in range(2) for g in range(3)}  # 3 steps
    by_name = dict(content["measured"]["1/1/2"])
    (row,) = [row for row in found.rows if (row["guidance"], row["gamma"]) == ("apg", 4)]
    assert by_name["recall"] == f"{row['metrics']['recall']:.3f}"


def test_nothing_is_loaded_from_elsewhere(found):
    text, _ = made(found, planned(showing(), num=2))
    assert set(re.findall(r"\w+://[^\s\"'`]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(
        r"@import|url\(|fetch\(|XMLHttpRequest|<(script|link|img|iframe)[^>]*\s(src|href)=\"(?!data:)", text
    )
    (policy,) = [a["content"] for name, a in Parser(text).elements if name == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_texts_from_data_stay_texts(found):
    bad = ("</script><b id=bad>", "\"'&amp;<!--", "$title ${name}", "x")
    fields = {"hat": Label((*bad, *"456789"))}
    model = showing(ONE._replace(info=ONE.info._replace(name="<i>data</i>", fields=fields)))
    prompts = [f"hat={name}" for name in bad]
    plan = planned(model, conds=prompts, negatives=prompts[:1], num=1)
    odd = found._replace(
        about={**found.about, "data": {**found.about["data"], "name": "<i>data</i>"}, "workdir": bad[0]}
    )
    text, content = made(odd, plan)
    assert content["choices"]["condition"] == prompts
    parsed = Parser(text)
    assert not [name for name, a in parsed.elements if name == "i"]
    assert not any(a.get("id") == "bad" for _, a in parsed.elements)
    assert "<i>data</i>" in parsed.texts
    # Among the conditions of both views and the negative ones.
    assert parsed.texts.count(prompts[0]) == 3


@pytest.mark.thorough
def test_the_size_is_known_before(found):
    plan = planned(showing(examples=Images((16, 16, 3))), num=6, steps=[2, 3])
    text, content = made(found, plan)
    assert 0.6 < sum(map(len, content["sheets"])) / plan.size < 1.6
    assert len(text) < plan.size + 60_000
    assert plan.pictures == 3 * 2 * (2 * 2 + 2 + 4)
    assert f"{plan.pictures} pictures of 6 samples, about 0." in str(plan)
    points = planned(POINTS, num=50)
    _, content = made(found, points)
    assert sum(map(len, content["sheets"])) == pytest.approx(points.size, rel=0.01)
    assert content["high"][0] > 1 > -1 > content["low"][0]


def test_too_large_a_page_is_refused(monkeypatch):
    small = planned(showing(), num=1).size
    monkeypatch.setattr(choices, "LIMIT", 3.5 * small)
    assert planned(showing()).num == 3  # as many as fit
    with pytest.raises(UserError, match="lower --html_samples to 3, or shorten --gamma, which has 3 values"):
        planned(showing(), num=4)
    monkeypatch.setattr(choices, "LIMIT", 0.5 * small)
    with pytest.raises(UserError, match="is the most: shorten --html_steps, which has 7 values"):
        planned(showing(), steps=range(2, 9))
    monkeypatch.undo()


UNKNOWING = showing(ONE._replace(guidance=NoNull()))


@pytest.mark.parametrize(
    ("model", "wanted", "message"),
    [
        (showing(), page.Wanted(steps=[0]), "from 1; got 0"),
        (showing(), page.Wanted(0), "at least 1; got 0"),
        (showing(), page.Wanted(conds=["red"]), "unknown value"),
        (showing(FREE), page.Wanted(conds=["red"]), "no fields"),
        (UNKNOWING, page.Wanted(conds=["1", ""]), "knows no ∅"),
        (UNKNOWING, page.Wanted(conds=["1"], negatives=["2"]), "knows no ∅.*leave --html_negative out"),
    ],
)
def test_what_cannot_be_drawn_is_refused(model, wanted, message):
    data = Splits(dataset("train", 60, 0, model.info), dataset("test", 24, 1, model.info))
    with pytest.raises(UserError, match=message):
        page.plan(evaluation.settings(model, (1.0,), (CONFIG,)), data, wanted)


@pytest.mark.parametrize("guidance", [NoNull(), Guided(2.0), GammaConditioned(1.0, 5.0), "free"])
def test_models_without_some_choices(guidance, found):
    model = showing(FREE if guidance == "free" else ONE._replace(guidance=guidance))
    plan = planned(model, None, (CONFIG,), num=1)
    text, content = made(found, plan)
    names = {a["data-control"] for _, a in Parser(text).elements if "data-control" in a}
    scales = {"gamma"} if isinstance(guidance, GammaConditioned) else set()
    assert names == {"steps"} | scales | (set() if guidance == "free" else {"condition"})
    assert len(content["sheets"]) == len(plan.steps) + len(plan.gammas)


def test_rules_that_do_not_go_with_a_negative_condition():
    model = showing()
    plan = planned(model)
    assert [rule.negatives for rule in plan.rules] == [True, False]
    assert plan.notes == ("apg takes no negative condition.",)
    assert [choice.text for choice in planned(model, configs=RULES[1:]).negatives] == ["none"]
    with pytest.raises(UserError, match="leave --html_negative out"):
        planned(model, configs=RULES[1:], negatives=["3"])


def test_autoguidance_has_its_weaker_model():
    model = showing(MODEL)
    weak = model._replace(params={"w": np.float32(0.9)}, step=3)
    data = Splits(dataset("train", 60, 0, model.info), dataset("test", 24, 1, model.info))
    configs = (CONFIG, CONFIG._replace(guidance="autoguidance"))
    wanted = page.Wanted(num=2, conds=["hat=red"], steps=[3])
    plan = page.plan(evaluation.settings(model, (2.0,), configs, weak), data, wanted)
    assert [(rule.text, rule.weak) for rule in plan.rules] == [("cfg", None), ("autoguidance", weak)]
    sheets = drawing.draw(plan).sheets
    drawn = sampling.sample(model, "hat=red", num=2, gamma=2.0, weak=weak, config=configs[1]).x
    assert np.abs(drawn.astype(int) - sheets[1][0]).max() <= 1
    assert np.abs(drawn.astype(int) - sheets[0][0]).max() > 1


def test_solvers_that_choose_their_steps(found):
    configs = (CONFIG._replace(solver="dopri5"), CONFIG)
    plan = planned(showing(), (1.0,), configs, num=1, conds=["1"], negatives=[""], steps=[2, 3])
    assert not plan.states
    assert "dopri5 has a grid of its own" in plan.notes[0]
    assert "no slider over t" in plan.notes[1]
    text, content = made(found, plan)
    assert content["explorer"] == [0, 0, 1, 2]
    assert 'id="trajectory"' not in text


def test_conditions_are_those_of_held_out_examples():
    plan = planned(showing(MODEL), negatives=["hat=red"])
    assert [choice.text for choice in plan.conditions] == [
        f"hat={hat},beard={beard}" for hat in ("none", "red") for beard in ("no", "yes")
    ]
    assert len(planned(showing(MODEL)).negatives) == 1  # of several fields none is chosen
    by_class = planned(showing())
    assert by_class.negatives[1].text == by_class.conditions[-1].text


def test_examples_that_are_no_pictures_have_curves_alone(found):
    plan = planned(MODEL)
    assert (plan.kind, plan.num, str(plan)) == ("none", 0, "curves and tables, without samples")
    text, content = made(found, plan)
    assert content is None
    assert "no samples to explore: it shows images and points of 2 numbers, not points of shape 3x3x1" in text
    parsed = Parser(text)
    assert len([name for name, a in parsed.elements if name == "svg" and a["role"] == "img" and a["aria-label"]]) == 4
    assert len([name for name, _ in parsed.elements if name == "tr"]) == 1 + 1 + 6


def test_points_keep_their_places():
    x = np.random.default_rng(0).normal(size=(2, 3, 2))
    low, high = [-4.0, -4.0], [4.0, 4.0]
    numbers = np.frombuffer(base64.b64decode(encode.points(x, low, high)), "<u2").reshape(x.shape)
    np.testing.assert_allclose(numbers / 65535 * 8 - 4, x, atol=1e-4)
    low, high = encode.limits([x])
    assert (x.min((0, 1)) > low).all()
    assert (x.max((0, 1)) < high).all()
    assert high[0] - low[0] == pytest.approx(high[1] - low[1])


def test_images_of_all_channels_are_kept_without_loss():
    for channels in (1, 3, 4):
        x = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4, channels), np.uint8)
        shown = sheet_of(encode.images(x)).reshape(10, 12, -1)
        np.testing.assert_array_equal(shown[..., :channels], x.transpose(0, 2, 1, 3, 4).reshape(10, 12, channels))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.97, 0.99), (-3, 12345), (1, 5), (2, 2), (0, 0)])
def test_ticks_are_round_and_few(low, high):
    found = curves.ticks(low, high)
    assert 2 <= len(found) <= 8
    steps = np.diff(found)
    np.testing.assert_allclose(steps, steps[0])
    assert float(f"{steps[0]:.6g}") in [m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5)]
