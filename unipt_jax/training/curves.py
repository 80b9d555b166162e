"""A run's loss curve, as a table for the terminal and as a picture."""

from collections.abc import Sequence

from etils import epath
from rich.table import Table

from unipt_jax.training.metrics import Row, thin

MEASURED = ("val/R1", "test/R1")
_TITLES = {"learning_rate": "learning rate", "examples_per_second": "examples/s"}


def losses(rows: Sequence[Row]) -> list[str]:
    """Returns the names of the losses in rows of `metrics.jsonl`, their sum first."""
    return ["loss", *sorted({name for row in rows for name in row if name.startswith("loss/")})]


def table(rows: Sequence[Row], most: int = 12) -> Table:
    """Returns at most `most` evenly spaced rows of `metrics.jsonl`."""
    made = Table(title="Training")
    measured = [name for name in MEASURED if any(name in row for row in rows)]
    columns = [*losses(rows), *measured, "learning_rate", "examples_per_second"]
    for name in ("step", *columns):
        made.add_column(_TITLES.get(name, name), justify="right")
    for row in thin(rows, most):
        cells = [f"{row[name]:.4g}" if name in row else "" for name in columns]
        made.add_row(str(int(row["step"])), *cells)
    return made


def plot(rows: Sequence[Row], path: epath.PathLike) -> None:
    """Draws the losses and the learning rate over steps into a PNG file."""
    import matplotlib  # slow to import, and wanted at a run's end alone
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.grid": True}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        axes, rates = figure.subplots(1, 2, width_ratios=(2, 1))
        steps = [row["step"] for row in rows]
        for name in losses(rows):
            axes.plot(steps, [row[name] for row in rows], label=name)
        axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
        axes.legend(frameon=False)
        rates.plot(steps, [row["learning_rate"] for row in rows], color="tab:gray")
        rates.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
        with epath.Path(path).open("wb") as file:
            figure.savefig(file, format="png", dpi=130)
