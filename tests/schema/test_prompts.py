"""Prompts: text to conditions and back, and errors that help."""

import numpy as np
import pytest

from flowguide.errors import UserError
from flowguide.schema import Known, Label, Tokens, Vector, Vectors, prompts
from flowguide.schema.fields import value

FIELDS = {
    "hat": Label(("none", "red", "dark blue")),
    "pose": Vector(2),
    "caption": Tokens(4, ("", "a", "happy", "red", "face")),
}


def test_named_fields_are_present_and_the_rest_is_null():
    c = prompts.condition(["hat=red", "pose=0.5 -1,caption=a happy, red face", " "], FIELDS)
    np.testing.assert_array_equal(c.present["hat"], [True, False, False])
    np.testing.assert_array_equal(c.present["pose"], [False, True, False])
    np.testing.assert_array_equal(c.value["hat"], [1, 0, 0])
    np.testing.assert_array_equal(c.value["pose"][1], np.array([0.5, -1], np.float32))
    np.testing.assert_array_equal(c.value["caption"], [[0] * 4, [1, 2, 3, 4], [0] * 4])
    assert c.value["hat"].dtype == np.int32
    assert not any(c.present[name][2] for name in FIELDS)


def test_values_may_have_spaces_numbers_and_blanks_around():
    assert prompts.parse(" hat = dark blue ", FIELDS)["hat"] == 2
    assert prompts.parse("hat=2", FIELDS)["hat"] == 2


def test_a_name_that_is_a_number_comes_before_the_number():
    assert prompts.parse("7", {"label": Label(tuple("9876543210"))})["label"] == 2


def test_one_field_needs_no_name():
    fields = {"label": Label(tuple("0123456789"))}
    assert prompts.parse("3", fields)["label"] == 3
    assert prompts.parse("label=3", fields)["label"] == 3
    known = Known(Vectors((2,), names=("width", "height")))
    assert prompts.parse("3", {"known": known, **fields}) == {"label": 3}  # the one besides it
    assert list(prompts.parse("height:2", {"known": known})) == ["known"]


def test_describe_is_the_inverse_of_parse():
    text = "hat=dark blue,caption=happy face"
    c = prompts.condition([text], FIELDS)
    assert prompts.describe(c.value, c.present, FIELDS, 0) == text


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("hut=red", r"unknown field 'hut', did you mean 'hat'\?: there are hat, pose, caption"),
        ("hat=rde", r"unknown value 'rde' of 'hat', did you mean 'red'\?: there are none, red, dark blue"),
        ("hat=3", "unknown value '3'"),
        ("red", "expected name=value"),
        ("hat=red,hat=none", "given twice"),
        ("pose=1 2 3", "takes 2"),
        ("pose=1 x", "takes 2 numbers"),
        ("pose=1 nan", "finite"),
        ("pose=1 1e39", "finite"),
        ("pose=1 " + 5000 * "9", "finite"),
        ("hat=" + 5000 * "9", "unknown value '99999"),
        ("hat=²", "unknown value"),
        ("caption=a sad face", "unknown word 'sad'"),
    ],
)
def test_errors_say_what_there_is(prompt, message):
    with pytest.raises(UserError, match=message):
        prompts.parse(prompt, FIELDS)


def test_numbers_too_large_for_float32_are_refused():
    with pytest.raises(UserError, match="2 finite numbers"):
        value("pose", np.array([1.0, 1e39]), FIELDS["pose"])
