"""What a run is about to do, told before its first step."""

import dataclasses
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What is trained on: counts of one directory.

    Attributes:
        directory: as the configuration names it.
        images: of the split trained on; as `pairs` and `identities`.
        pairs: of an image and a caption.
        identities: persons.
        quarantined: records that its preparation left out, of all splits.
        repeats: how often it comes in an epoch.
    """

    directory: str
    images: int
    pairs: int
    identities: int
    quarantined: int
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the model.

    Attributes:
        name: where its parameters are rooted.
        parameters: their number.
        origin: where they start from.
        factor: by which the learning rate is multiplied for them.
        bias_factor: the same for its biases; None: it has none.
    """

    name: str
    parameters: int
    origin: str
    factor: float
    bias_factor: float | None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate over a run: the arguments of `optimizer.learning_rate_schedule`."""

    peak: float
    steps: int
    warmup: float
    decay: str
    start: float
    end: float


def summary(
    facts: Mapping[str, str], data: Sequence[DataSet], parts: Sequence[Part], peak: float
) -> RenderableType:
    """Returns facts, data sets and the parts of the model as tables, within 80 columns.

    Args:
        facts: a line each, by its name.
        data: the data sets.
        parts: of the model.
        peak: the highest learning rate, before any factor.
    """
    lines = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        lines.add_row(Text(name, style="cyan"), Text(fact))
    return Group(lines, "", _data_table(data), "", _part_table(parts, peak), "")


def devices(count: int, kind: str, processes: int) -> str:
    """Says how many devices there are, of which kind, and how many processes drive them."""
    return f"{count} x {kind}, {processes} process{'es' if processes > 1 else ''}"


def batch(size: int, ways: int, accumulate: int) -> str:
    """Says how a global batch of `size` is split over `ways` devices, and over time."""
    parts = f", in {accumulate} parts one after another" if accumulate > 1 else ""
    return f"{size:,} = {size // ways:,} a device x {ways} (data x fsdp){parts}"


def duration(steps: int, batch_size: int, pairs: int) -> str:
    """Says how long a run is, in steps and in epochs of so many pairs."""
    return f"{steps:,}, {steps * batch_size / pairs:.4g} epochs of {pairs:,} pairs"


def texts(length: int, lengths: Sequence[int]) -> str:
    """Says to how many tokens texts are cut, and how many are; `lengths` is empty if unknown."""
    if not len(lengths):
        return f"{length} tokens at most"
    cut = sum(tokens > length for tokens in lengths)
    return f"{length} tokens at most; {cut:,} of {len(lengths):,} captions are longer, and cut"


def learning_rate(schedule: Schedule) -> str:
    """Says how the learning rate goes, before any factor."""
    peak, rise = schedule.peak, round(schedule.warmup * schedule.steps)
    warm = f"{schedule.start * peak:g} to {peak:g} by step {rise:,}" if rise else f"{peak:g}"
    if schedule.decay == "none":
        return f"{warm}, then constant"
    return f"{warm}, then {schedule.decay} to {schedule.end * peak:g} at step {schedule.steps:,}"


def _data_table(data: Sequence[DataSet]) -> Table:
    made = table("data")
    titles = ["images", "pairs", "identities", "quarantined"]
    repeated = any(each.repeats != 1 for each in data)
    for title in [*titles, "an epoch"] if repeated else titles:
        made.add_column(title, justify="right")
    rows = [
        [getattr(each, title) for title in titles] + ([each.repeats] if repeated else [])
        for each in data
    ]
    for each, row in zip(data, rows, strict=True):
        cells = [f"{number:,}" for number in row]
        made.add_row(each.directory, *cells[:4], *(f"x {cell}" for cell in cells[4:]))
    if len(data) > 1:
        made.add_row("all", *(f"{sum(row[n] for row in rows):,}" for n in range(len(titles))))
    return made


def _part_table(parts: Sequence[Part], peak: float) -> Table:
    made = table("model")
    made.add_column("parameters", justify="right")
    made.add_column("rate", justify="right")
    biased = any(part.bias_factor not in (None, part.factor) for part in parts)
    if biased:
        made.add_column("of biases", justify="right")
    made.add_column("starts", overflow="fold")
    for part in parts:
        rates = [part.factor, part.bias_factor][: 1 + biased]
        cells = ("" if factor is None else f"{peak * factor:g}" for factor in rates)
        made.add_row(part.name, f"{part.parameters:,}", *cells, part.origin)
    made.add_row("all", f"{sum(part.parameters for part in parts):,}")
    return made


def table(first: str) -> Table:
    """Returns an empty table whose rows are named in its first column."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="cyan")
    made.add_column(first, overflow="fold")
    return made
