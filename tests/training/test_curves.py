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
