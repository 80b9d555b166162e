"""The report: one file that needs nothing else, tells everything, and trusts no caption."""

import base64
import dataclasses
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.evaluation import toy
from unipt_jax.data import tokenization
from unipt_jax.evaluation import features, protocol, report, retrieval

EVIL = "<script>alert(\"x\")</script> & '{{ 7 * 7 }}'"
COUNTS = [2] * 12
IDENTITIES = np.arange(12) // 2
PROTOCOL = "The checkpoint was chosen on the test split."


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.words.append(text)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One data set, named as a published one, whose captions would run as a script."""
    directory = tmp_path_factory.mktemp("toy")
    toy.prepared(directory, name="cuhk_pedes", quarantined=3)
    tokenizer = tokenization.load("examples/tokenizer")
    captions = [[f"{EVIL} {number} {copy}" for copy in "ab"] for number in range(12)]
    split = toy.split(toy.pictures(12), captions, IDENTITIES, directory=directory, bad=(5,))
    split.images._source[0]["path"] = b'cam/"><img src=x>.png'
    found = features.extract(
        toy.model(),
        toy.PARAMS,
        split,
        tokenizer,
        text_length=100,
        batch_size=8,
        quarantine=True,
    )
    return protocol.measure(split, found, "concatenated", rerank=True)


@pytest.fixture(scope="module")
def evaluation(measured):
    summary = {**measured.summary, "setting": "cross-domain"}
    return {
        "data_sets": [summary],
        "feature": "concatenated",
        "split": "test",
        "checkpoint": "runs/<b>mine</b>",
        "weights": "0123456789abcdef",
        "protocol": PROTOCOL,
        "definition": retrieval.DEFINITION,
    }


CONFIGURATIONS = {"Evaluation": {"stage": "evaluate", "data": ["a", "b"], "mesh": {"fsdp": 2}}}


@pytest.fixture(scope="module")
def written(measured, evaluation, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write(path, evaluation, [measured], CONFIGURATIONS)
    return path


@pytest.fixture(scope="module")
def page(written):
    return Page(written.read_text())


@pytest.fixture(scope="module")
def text(page):
    return " ".join(" ".join(page.words).split())


def test_nothing_is_fetched(page, written):
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
    for _, attributes in page.tags:
        assert not set(attributes) & {"href", "srcset", "action"}
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
    assert not re.search(r"https?:|url\(|@import", written.read_text())
    assert written.stat().st_size < 2_000_000


def test_captions_and_names_are_text(page, text):
    assert '<script>alert("x")</script> &' in text and "{{ 7 * 7 }}" in text
    assert "runs/<b>mine</b>" in text
    assert all(attributes.get("src") != "x" for _, attributes in page.tags)
    assert 'cam/"><img src=x>.png' in {attributes.get("alt") for _, attributes in page.tags}


def test_half_a_surrogate_pair_does_not_stop_it(measured, evaluation, tmp_path):
    broken = {**evaluation, "checkpoint": "run\ud800"}
    report.write(tmp_path / "r.html", broken, [measured], {})
    assert "run\\ud800" in (tmp_path / "r.html").read_text()


def test_the_same_arguments_give_the_same_bytes(measured, evaluation, written, tmp_path):
    report.write(tmp_path / "again.html", evaluation, [measured], CONFIGURATIONS)
    assert (tmp_path / "again.html").read_bytes() == written.read_bytes()


def test_it_tells_the_protocol_the_counts_and_the_figures(text, measured):
    assert PROTOCOL in text
    assert "11 images, 22 captions, 6 identities" in text
    assert "1 unreadable images left out" in text and "3 records when" in text
    for both in measured.summary["features"].values():
        for figures in both.values():
            for name, value in figures["metrics"].items():
                low, high = figures["intervals"][name]
                assert f"{value:.2f}" in text and f"{low:.1f}\u2013{high:.1f}" in text
    for figures in measured.summary["reranked"].values():
        assert f"{figures['mAP']:.2f}" in text
    assert "mesh.fsdp" in text and "a, b" in text


def test_published_figures_come_with_a_warning_for_another_split(text, measured, evaluation):
    """Another one by its counts, or by its name (P68)."""
    assert "28.48" in text and "66.83" in text and "UniPT, ICCV 2023" in text
    assert "Not comparable: this is not the published test split." in text
    assert "3,074, 6,156 and 1,000" in text
    whole = {"images": 3074, "captions": 6156, "identities": 1000}
    measured.summary.update(whole)
    try:
        assert report._shown(measured)["is_published_split"]
        other = dataclasses.replace(measured.split, name="val")
        renamed = dataclasses.replace(measured, split=other)
        assert not report._shown(renamed)["is_published_split"]
    finally:
        measured.summary.update({"images": 11, "captions": 22, "identities": 6})


def test_frames_do_not_rely_on_colour(page):
    classes = [attributes.get("class") for tag, attributes in page.tags if tag == "figure"]
    assert classes.count("match") > 0 and classes.count("other") > 0
    words = " ".join(page.words)
    assert words.count("✓") == classes.count("match") + 1  # and the legend's
    assert words.count("✗") == classes.count("other") + 1
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == classes.count("match") + classes.count("other")
    assert all(attributes["alt"] for attributes in images)


@pytest.mark.parametrize(
    ("size", "small"), [((500, 1000), (72, 144)), ((2, 4000), (1, 144)), ((4000, 2), (72, 1))]
)
def test_thumbnails_are_small_jpegs_of_the_picture(size, small):
    """And no side becomes 0 (P55)."""
    file = io.BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(file, "PNG")
    kind, _, content = report.thumbnail(file.getvalue()).partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == small
        assert np.abs(np.asarray(image).astype(int) - [10, 200, 30]).max() < 8


def points(path):
    return np.array([[float(at) for at in pair.split()] for pair in path[1:].split(" L")])


def test_the_rank_curve_passes_through_the_ranks(measured):
    chart = report.rank_curves(measured.rankings)
    x_of = {label: place for place, label in chart.x_ticks}
    y_of = {label: place for place, label in chart.y_ticks}
    low, high = y_of["0"], y_of["100"]
    for direction, name in report.DIRECTIONS.items():
        metrics = measured.summary["features"]["concatenated"][direction]["metrics"]
        places = points(chart.lines[name])
        for rank in (1, 5, 10):
            at = np.abs(places[:, 0] - x_of[str(rank)]).argmin()
            share = 100 * (places[at, 1] - low) / (high - low)
            assert share == pytest.approx(metrics[f"R{rank}"], abs=0.1)
        assert (np.diff(places[:, 1]) <= 0).all()  # Downwards is up.


def test_the_histogram_holds_all_pairs():
    matches = np.array([0.5, 0.5, 0.9, 0.1], np.float32)
    chart = report.histogram(matches, np.array([0.1], np.float32))
    places = points(chart.lines["same person"])
    heights = (chart.bottom - places[1:-1:2, 1]) / (chart.bottom - chart.top)
    # Of four, one lies in the first bin, two in the middle, one in the last; the other line's only
    # pair makes 100 % of its own.
    assert np.flatnonzero(heights > 0.01).tolist() == [0, 20, 39]
    np.testing.assert_allclose(heights[[0, 20, 39]], [0.25, 0.5, 0.25], atol=0.01)
    assert report.histogram(matches[:1] * 0, matches[:0]).lines  # All alike, and none


def test_the_table_fits_a_terminal(evaluation, measured):
    console = Console(file=io.StringIO(), width=80)
    console.print(report.table(evaluation))
    shown = console.file.getvalue()
    figures = measured.summary["features"]["global"]["image_to_text"]
    low, high = figures["intervals"]["R5"]
    assert f"{figures['metrics']['R5']:.2f}" in shown and f"{low:.1f}-{high:.1f}" in shown
    assert "…" not in shown and "cuhk_pedes" in shown and "re-ranked" in shown
