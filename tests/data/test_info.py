"""What is kept beside a run, and captions as tokens."""

import json

import numpy as np
import pytest

from flowguide.condition import Label, Tokens, Vector
from flowguide.data import DataError, DataInfo, encode, info_from_json, info_to_json, vocabulary


def test_json_round_trip():
    fields = {"kind": Label(("a", "b")), "pose": Vector(3), "caption": Tokens(4, ("", "red", "hat")), "none": Label(())}
    info = DataInfo("some/set", (16, 16, 3), "image", fields)
    back = info_from_json(json.loads(json.dumps(info_to_json(info))))
    assert back == info
    assert list(back.fields) == list(info.fields)
    assert all(type(back.fields[k]) is type(fields[k]) for k in fields)


@pytest.mark.parametrize(
    "content", [{}, {"name": "a", "shape": [2], "kind": "points", "fields": {"x": {"type": "?"}}}, 3]
)
def test_json_of_another_kind_is_refused(content):
    with pytest.raises(DataError, match="expected what info_to_json wrote"):
        info_from_json(content)


def test_tokens():
    field = vocabulary(["long red hair, happy", "Sad, blue hat"])
    assert field == Tokens(4, ("", "blue", "hair", "happy", "hat", "long", "red", "sad"))
    ids = encode("Red HAIR,sad", field)
    assert ids.dtype == np.int32
    assert ids.tolist() == [6, 2, 7, 0]
    assert encode("", field).tolist() == [0, 0, 0, 0]


def test_token_errors():
    field = vocabulary(["red hat", "blue"])
    with pytest.raises(DataError, match=r"unknown word 'green' .* expected words of: blue, hat, red"):
        encode("green hat", field)
    with pytest.raises(DataError, match=r"got 3 words .* at most 2"):
        encode("red blue hat", field)
