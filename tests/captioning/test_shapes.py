"""What departs from the shape of a JSON value is named with its place."""

import pytest

from unipt_jax.captioning.shapes import AnyOf, Record, faults_of_shape

SHAPE = Record(
    {"sets": {str: Record({"required": bool}, {"labels": [str]})}},
    {"texts": [AnyOf((str, [str], Record({"text": str})))]},
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"sets": {}}, []),
        ({"sets": {"a": {"required": True, "labels": ["x"]}}, "texts": ["a", ["b"]]}, []),
        ([], ["the file is a list and should be an object"]),
        ({}, ["the file lacks 'sets'"]),
        ({"sets": {}, "textes": []}, ["textes is unknown; did you mean 'texts'?"]),
        ({"sets": {"a": {}}}, ["sets.a lacks 'required'"]),
        (
            {"sets": {"a": {"required": 1, "labels": []}, "b": None}},
            [
                "sets.a.required is a number and should be true or false",
                "sets.a.labels is empty",
                "sets.b is null and should be an object",
            ],
        ),
        (
            {"sets": {}, "texts": [True, ["a", 1.5], {"text": "a", "more": "b"}, {}]},
            [
                "texts[0] is true or false and should be a text or a list or an object",
                "texts[1][1] is a number and should be a text",
                "texts[2].more is unknown; known: text",
                "texts[3] lacks 'text'",
            ],
        ),
    ],
)
def test_faults_by_hand(value, expected):
    assert list(faults_of_shape(value, SHAPE)) == expected
