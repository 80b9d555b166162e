"""A run's loss curve, as a table for the terminal and as a picture."""

import io
from collections.abc import Sequence

from etils import epath
from rich.table import Table

from unipt_jax.core.files import write_bytes
from unipt_jax.training.metrics import Row, thin

MEASURED = ("val/R1", "test/R1")
_DRAWN = ("R1", "R5", "R10", "mAP")  # of what was measured
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
        made.add_column(_TITLES.get(name, name), justify="right", overflow="fold")
    for row in thin(rows, most):
        cells = [f"{row[name]:.4g}" if name in row else "" for name in columns]
        made.add_row(str(int(row["step"])), *cells)
    return made


def scores(rows: Sequence[Row]) -> list[str]:
    """Returns the names of the scores in rows of `metrics.jsonl`."""
    return [
        name
        for measured in MEASURED
        for name in (f"{measured.split('/')[0]}/{score}" for score in _DRAWN)
        if any(name in row for row in rows)
    ]


def plot(rows: Sequence[Row], path: epath.PathLike) -> None:
    """Draws the losses, the scores if there are any, and the learning rate into a PNG file."""
    import matplotlib  # slow to import, and wanted at a run's end alone
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.grid": True}):
        panels = [("loss", losses(rows)), ("score, %", scores(rows))]
        panels = [(title, names) for title, names in panels if names]
        figure = Figure(figsize=(2.7 + 5.3 * len(panels), 3.2), layout="constrained")
        *wide, rates = figure.subplots(1, len(panels) + 1, width_ratios=[2] * len(panels) + [1])
        for axes, (title, names) in zip(wide, panels, strict=True):
            for name in names:
                having = [row for row in rows if name in row]
                # Scores are few, and the last of them may be the only one.
                marker = "." if len(having) < 50 else ""
                points = zip(*((row["step"], row[name]) for row in having), strict=True)
                axes.plot(*points, label=name, marker=marker)
            axes.set(xlabel="step", ylabel=title, ylim=(0, None))
            axes.legend(frameon=False)
        steps = [row["step"] for row in rows]
        rates.plot(steps, [row["learning_rate"] for row in rows], color="tab:gray")
        rates.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
        rates.locator_params(axis="x", nbins=4, integer=True)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=130)
    write_bytes(path, content.getvalue())
