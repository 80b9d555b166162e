"""The loss curve as table and picture."""

import io

import numpy as np
from PIL import Image
from rich.console import Console

from unipt_jax.training import curves


def rows(count):
    return [
        {
            "step": float(step),
            "loss": 8.0 / step,
            "loss/contrastive": 3.0 / step,
            "loss/mlm": 5.0 / step,
            "learning_rate": 1e-3,
            "examples_per_second": 70.0,
        }
        for step in range(1, count + 1)
    ]


def test_table_shows_first_and_last_step():
    out = io.StringIO()
    Console(file=out, width=120).print(curves.table(rows(100), most=5))
    lines = [line for line in out.getvalue().splitlines() if line.startswith("│")]
    assert len(lines) == 5
    assert " 1 " in lines[0] and " 8 " in lines[0] and " 100 " in lines[-1] and "0.08" in lines[-1]


def test_picture_is_a_png_with_curves(tmp_path):
    curves.plot(rows(50), tmp_path / "loss.png")
    picture = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB"))
    assert picture.shape[0] > 300 and picture.shape[1] > 800
    coloured = (picture.max(axis=2).astype(int) - picture.min(axis=2)) > 80
    assert coloured.sum() > 500  # three coloured lines, not an empty frame


def measured(count):
    """Every fifth row has scores."""
    scores = {"val/R1": 40.0, "val/R5": 60.0, "val/R10": 70.0, "val/mAP": 30.0, "val/mINP": 20.0}
    return [row | (scores if number % 5 == 4 else {}) for number, row in enumerate(rows(count))]


def test_scores_are_drawn_beside_the_losses(tmp_path):
    assert curves.scores(rows(9)) == []
    assert curves.scores(measured(9)) == ["val/R1", "val/R5", "val/R10", "val/mAP"]
    widths = []
    for name, given in {"losses": rows(9), "scores": measured(9)}.items():
        curves.plot(given, tmp_path / name)
        widths.append(Image.open(tmp_path / name).width)
    assert widths[1] > 1.5 * widths[0]


def test_a_single_score_can_be_seen(tmp_path):
    """As a point, since it makes no line."""
    one, none = ([row | {name: 50.0} for row in rows(1)] for name in ("val/R1", "val/other"))
    for name, given in {"one": one, "none": none}.items():
        curves.plot(given, tmp_path / name)
    picture = np.asarray(Image.open(tmp_path / "one").convert("RGB")).astype(int)
    middle = picture[:, 1000:1070]  # Of the panel of scores; its legend stands in a corner.
    assert (np.ptp(middle, axis=2) > 80).sum() > 20
    assert Image.open(tmp_path / "none").width < Image.open(tmp_path / "one").width
