"""Counts by hand."""

import dataclasses

import pytest
from matplotlib.axes import Axes
from PIL import Image

from tests.captioning.test_scorer import SETS
from unipt_jax.captioning import frequencies


def row(text, **phrases):
    attributes = {name: {"phrase": phrases.get(name), "probability": 0.5} for name in SETS}
    return {"caption": text, "attributes": attributes}


ROWS = [
    row("a man", hair="short", bag="sack"),
    row("a man with a hat", hair="short", hat="cap"),
    row("she", hair="long"),
]


SCARF = {"scarf": {"phrase": "shawl", "probability": 0.95}}


def test_phrases_and_words_are_counted():
    assert frequencies.count(SETS, iter(ROWS)) == {
        "images": 3,
        "mean_words": (2 + 5 + 1) / 3,
        "attributes": {
            "hair": {"short": 2, "long": 1},
            "bag": {"": 2, "sack": 1},
            "hat": {"": 2, "cap": 1},
        },
    }


def test_the_plot_shows_both_shares(tmp_path, monkeypatch):
    """A third of the rows has a bag, another third a hat; LUPerson-T tells nothing of scarves."""
    drawn = []
    real = Axes.bar

    def bar(axes, places, heights, *arguments, **keywords):
        drawn.append((keywords["label"], dict(zip(places, heights, strict=True))))
        return real(axes, places, heights, *arguments, **keywords)

    monkeypatch.setattr(Axes, "bar", bar)
    sets = {**SETS, "scarf": dataclasses.replace(SETS["hat"], name="scarf")}
    rows = [{**row, "attributes": row["attributes"] | SCARF} for row in ROWS]
    frequencies.plot(sets, frequencies.count(sets, rows), tmp_path / "plot.png")
    (_, ours), (_, theirs) = drawn
    assert ours == pytest.approx({-0.2: 100 / 3, 0.8: 100 / 3, 1.8: 100})
    assert theirs == pytest.approx({0.2: 22.175 / 1.3, 1.2: 9.7063 / 1.3})
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 500
