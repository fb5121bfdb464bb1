"""What is kept beside a run, and captions as tokens."""

import json

import numpy as np
import pytest

from flowguide.errors import DataError
from flowguide.schema import DataInfo, Images, Label, Tokens, Vector, encode, info_from_json, info_to_json, vocabulary


def test_json_round_trip():
    fields = {"kind": Label(("a", "b")), "pose": Vector(3), "caption": Tokens(4, ("", "red", "hat")), "none": Label(())}
    info = DataInfo("some/set", Images((16, 16, 3)), fields)
    back = info_from_json(json.loads(json.dumps(info_to_json(info))))
    assert back == info
    assert list(back.fields) == list(info.fields)
    assert all(type(back.fields[k]) is type(fields[k]) for k in fields)


def changed(**changes):
    label = {"type": "label", "values": ["a", "b"]}
    return {"name": "a", "shape": [4, 4, 3], "kind": "image", "fields": {"x": label}} | changes


NO_INFO = {
    "nothing": {},
    "a number": 3,
    "an unknown field": changed(fields={"x": {"type": "?"}}),
    "an unknown kind": changed(kind="imago"),
    "a kind that is no text": changed(kind=["image"]),
    "a name that is no text": changed(name=3),
    "fields that are a list": changed(fields=[]),
    "no axis": changed(shape=[4, 0, 3]),
    "a negative axis": changed(shape=[4, -4, 3]),
    "half an axis": changed(shape=[4, 4.5, 3]),
    "an axis that is no number": changed(shape=[4, True, 3]),
    "a text for a shape": changed(shape="443"),
    "more than fits": changed(shape=[2**20, 2**20, 3]),
    "an image of two axes": changed(shape=[4, 3]),
    "classes that are no texts": changed(fields={"x": {"type": "label", "values": [1, 2]}}),
    "classes that are a text": changed(fields={"x": {"type": "label", "values": "ab"}}),
    "a vector of no size": changed(fields={"x": {"type": "vector", "size": 0}}),
    "a vector of half a size": changed(fields={"x": {"type": "vector", "size": "3"}}),
    "a sentence of negative length": changed(fields={"x": {"type": "tokens", "length": -1, "words": ["", "a"]}}),
}


@pytest.mark.parametrize("name", NO_INFO)
def test_json_of_another_kind_is_refused(name):
    assert info_from_json(changed()).examples == Images((4, 4, 3))
    with pytest.raises(DataError, match="expected what info_to_json wrote"):
        info_from_json(NO_INFO[name])


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
