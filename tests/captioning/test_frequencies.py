"""Counts by hand."""

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


def test_the_plot_is_a_picture(tmp_path):
    frequencies.plot(SETS, frequencies.count(SETS, ROWS), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
