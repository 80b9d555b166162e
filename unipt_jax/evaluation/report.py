"""An evaluation to look at: a table for the terminal, and one HTML file that needs nothing else."""

import base64
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from etils import epath
from jaxtyping import Float
from PIL import Image
from rich.table import Table
from rich.text import Text

from unipt_jax.core import trees
from unipt_jax.core.errors import printable
from unipt_jax.core.files import write_bytes
from unipt_jax.data import images
from unipt_jax.data.builders import Split
from unipt_jax.evaluation import published
from unipt_jax.evaluation.protocol import IMAGE_TO_TEXT, TEXT_TO_IMAGE, Hit, Result
from unipt_jax.evaluation.retrieval import Ranking

METRICS = ("R1", "R5", "R10", "mAP", "mINP")
DIRECTIONS = {TEXT_TO_IMAGE: "text to image", IMAGE_TO_TEXT: "image to text"}

# The rank curve's last rank, and the histogram's bins.
_RANKS, _BINS = 20, 40
# Of a thumbnail, in pixels; some 3 kB each, so that a data set takes about 0.4 MB.
_THUMBNAIL, _QUALITY = (72, 144), 75
# Of a chart, in units of its own; the margins hold the axes' labels.
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _EDGE = 460, 260, 46, 44, 10


def table(evaluation: Mapping[str, Any]) -> Table:
    """Returns the figures of every data set, feature and direction, with 95 % intervals."""
    made = Table(title=f"Split {evaluation['split']}, % and 95 % intervals")
    made.add_column("")
    for name in METRICS:
        made.add_column(name, justify="right", no_wrap=True)
    for summary in evaluation["data_sets"]:
        # Texts, not markup: names may hold brackets.
        made.add_row(Text(printable(summary["name"]), style="bold"))
        for feature, both in summary["features"].items():
            for direction, figures in both.items():
                values = [_with_interval(figures, name) for name in METRICS]
                made.add_row(Text(f"{DIRECTIONS[direction]}\n{feature}"), *values)
        for direction, metrics in (summary["reranked"] or {}).items():
            values = [f"{metrics[name]:.2f}" for name in METRICS]
            made.add_row(Text(f"{DIRECTIONS[direction]}\nre-ranked"), *values)
        made.add_section()
    return made


def write(
    path: epath.PathLike,
    evaluation: Mapping[str, Any],
    results: Sequence[Result],
    configurations: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes the report, whole or not at all; the same for the same arguments.

    It shows the figures beside published ones, rank curves, the easiest and hardest queries with
    what they found, and how alike matching and other pairs are.

    Args:
        path: of the HTML file.
        evaluation: as `protocol.evaluate` returns it.
        results: the same.
        configurations: nested plain values to show, by title.
    """
    page = _template().render(
        evaluation=evaluation,
        metrics=METRICS,
        directions=DIRECTIONS,
        shown=[_shown(result) for result in results],
        configurations={title: _flat(values) for title, values in configurations.items()},
    )
    # A caption may hold half a surrogate pair, which UTF-8 cannot.
    write_bytes(path, page.encode("utf-8", "backslashreplace"))


def _with_interval(figures: Mapping[str, Any], name: str) -> str:
    value = f"{figures['metrics'][name]:.2f}"
    if figures["intervals"] is None:
        return value
    low, high = figures["intervals"][name]
    return f"{value}\n{low:.1f}-{high:.1f}"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


# ---------------------------------------------------------------------------- one data set


def _shown(result: Result) -> dict[str, Any]:
    """Returns what the page shows of a data set."""
    name = result.summary["name"]
    expected = published.TEST_SPLITS.get(name)
    counts = {each: result.summary[each] for each in expected or ()}
    return {
        "published": published.of(name),
        "expected": expected,
        "is_published_split": result.split.name == "test" and counts == expected,
        "curves": rank_curves(result.rankings),
        "histogram": histogram(result.matches, result.others),
        "examples": {
            title: [
                {
                    "caption": example.caption,
                    "average_precision": 100 * example.average_precision,
                    "hits": [_picture(result.split, hit) for hit in example.hits],
                    "first_match": None
                    if example.first_match in example.hits
                    else _picture(result.split, example.first_match),
                    "rank": example.first_match.rank,
                }
                for example in examples
            ]
            for title, examples in (
                ("Easiest queries", result.easiest),
                ("Hardest queries", result.hardest),
            )
        },
    }


def _picture(split: Split, hit: Hit) -> dict[str, Any]:
    entry = split.images[hit.image]
    return {"path": entry["path"], "source": thumbnail(entry["image"]), "hit": hit}


def thumbnail(content: bytes) -> str:
    """Returns a small JPEG of an encoded image as a data URI."""
    small = Image.fromarray(images.decode(content, "thumbnail"))
    small.thumbnail(_THUMBNAIL, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Names nested values by `a.b`; lists become texts."""
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list) else value
        for name, value in trees.dotted(values).items()
    }


# ---------------------------------------------------------------------------- charts


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines to draw, in the units of the drawing.

    Attributes:
        title: what it shows.
        x_label: of the axis below.
        y_label: of the axis at the left.
        x_ticks: places and labels.
        y_ticks: the same.
        lines: names and SVG paths, of which the second is dashed.
    """

    title: str
    x_label: str
    y_label: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Mapping[str, str]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _WIDTH - _EDGE
    top: int = _EDGE
    bottom: int = _HEIGHT - _BOTTOM


def rank_curves(rankings: Mapping[str, Ranking]) -> Chart:
    """Draws, for each direction, the share of queries with a match among the first k (CMC)."""
    last = max(2, min(_RANKS, max(ranking.gallery for ranking in rankings.values())))
    ranks = np.arange(1, last + 1)
    across = _scale(1, last, _LEFT, _WIDTH - _EDGE)
    up = _scale(0, 100, _HEIGHT - _BOTTOM, _EDGE)
    lines = {}
    for direction, ranking in rankings.items():
        share = [100 * np.mean(ranking.first_hit <= rank) for rank in ranks]
        lines[DIRECTIONS[direction]] = _path(across(ranks), up(np.array(share)))
    ticks = sorted({1, *(rank for rank in (5, 10, 15, 20) if rank <= last), last})
    return Chart(
        title="Queries with a match among the first k (CMC)",
        x_label="rank k",
        y_label="% of queries",
        x_ticks=[(float(across(rank)), str(rank)) for rank in ticks],
        y_ticks=[(float(up(share)), str(share)) for share in (0, 25, 50, 75, 100)],
        lines=lines,
    )


def histogram(matches: Float[np.ndarray, "S"], others: Float[np.ndarray, "T"]) -> Chart:
    """Draws how the cosines of pairs of one identity, and of two, are distributed."""
    both = np.concatenate([matches, others])
    low, high = float(both.min()), float(both.max())
    if high - low < 1e-6:  # All alike: a bin needs a width.
        low, high = low - 0.01, high + 0.01
    edges = np.linspace(low, high, _BINS + 1)
    shares = {
        name: 100 * np.histogram(cosines, edges)[0] / max(len(cosines), 1)
        for name, cosines in (("same person", matches), ("other persons", others))
    }
    most = max(share.max() for share in shares.values())
    across = _scale(low, high, _LEFT, _WIDTH - _EDGE)
    up = _scale(0, most, _HEIGHT - _BOTTOM, _EDGE)
    steps = np.repeat(across(edges), 2)
    lines = {
        name: _path(steps, np.concatenate([[up(0)], np.repeat(up(share), 2), [up(0)]]))
        for name, share in shares.items()
    }
    return Chart(
        title="Cosines of a caption and an image",
        x_label="cosine",
        y_label="% of drawn pairs",
        x_ticks=[(float(across(at)), f"{at:.3g}") for at in np.linspace(low, high, 5)],
        y_ticks=[(float(up(at)), f"{at:.3g}") for at in np.linspace(0, most, 5)],
        lines=lines,
    )


def _scale(low: float | int, high: float | int, start: int, end: int) -> Callable[[Any], Any]:
    """Returns the line that takes `low` to `start` and `high` to `end`."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + " L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
