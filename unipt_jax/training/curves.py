"""A run's loss curve, as a table for the terminal and as a picture."""

from collections.abc import Sequence

import matplotlib
from etils import epath
from matplotlib.figure import Figure
from rich.table import Table

from unipt_jax.training.metrics import Row, thin

LOSSES = ("loss", "loss/contrastive", "loss/mlm")


def table(rows: Sequence[Row], most: int = 12) -> Table:
    """Returns at most `most` evenly spaced rows of `metrics.jsonl`."""
    made = Table(title="Training")
    for name in ("step", *LOSSES, "learning rate", "examples/s"):
        made.add_column(name, justify="right")
    for row in thin(rows, most):
        values = [row[name] for name in (*LOSSES, "learning_rate", "examples_per_second")]
        made.add_row(str(int(row["step"])), *(f"{value:.4g}" for value in values))
    return made


def plot(rows: Sequence[Row], path: epath.PathLike) -> None:
    """Draws the losses and the learning rate over steps into a PNG file."""
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.grid": True}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        losses, rates = figure.subplots(1, 2, width_ratios=(2, 1))
        steps = [row["step"] for row in rows]
        for name in LOSSES:
            losses.plot(steps, [row[name] for row in rows], label=name)
        losses.set(xlabel="step", ylabel="loss (nats)", ylim=(0, None))
        losses.legend(frameon=False)
        rates.plot(steps, [row["learning_rate"] for row in rows], color="tab:gray")
        rates.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
        with epath.Path(path).open("wb") as file:
            figure.savefig(file, format="png", dpi=130)
