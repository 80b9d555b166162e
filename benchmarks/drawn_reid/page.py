"""Figures to a page: ours beside the paper's, and whether both agree on what is better."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from drawn_reid.tables import PAPER, TABLES, Table


def markdown(found: Mapping[str, Any], only: str = "") -> str:
    """Returns the tables whose runs are all there, or `only` one of them, as Markdown."""
    parts = []
    for name, table in TABLES.items():
        if only in ("", name) and all(row in found["runs"] for row in table.rows):
            parts.append("\n".join(_table(name, table, found)))
    if not only:
        parts.insert(0, "\n".join(_head(found)))
    return "\n\n".join(parts) + "\n"


def differences(found: Mapping[str, Any], better: str, worse: str, data: str, across: bool) -> list:
    """Returns, for each seed, by how much the run that should be better is so, in points of R1."""
    seeds = found["runs"][better]["seeds"]
    pairs = zip(_r1(found, better, data, across), _r1(found, worse, data, across), strict=True)
    if found["runs"][worse]["seeds"] != seeds:
        raise ValueError(f"{better} and {worse} were run with other seeds; run both tables again")
    return [high - low for high, low in pairs]


def verdict(differences: Sequence[float]) -> str:
    """Tells whether the seeds bear the paper's order out, all of them or not all."""
    ahead = sum(each > 0 for each in differences)
    if ahead == len(differences):
        return "agrees"
    if max(differences) < 0:
        return "**disagrees**"
    return f"**undecided**: {ahead} of {len(differences)} seeds agree"


def mean_and_range(values: Sequence[float]) -> str:
    """Returns a table's cell for a figure of several seeds."""
    mean = sum(values) / len(values)
    return f"{mean:.1f} ({min(values):.1f}-{max(values):.1f})"


def _head(found: Mapping[str, Any]) -> Iterator[str]:
    yield "<!-- Written by benchmarks/reproduce.py. -->"
    yield "# The paper's tables on drawn pedestrians"
    yield ""
    yield (
        "Rank-1 of text queries in percent. The paper's are of DeiT-S on CUHK-PEDES and "
        "ICFG-PEDES; ours are a tiny model's, mean and range over the seeds, on the data sets "
        "that stand for them. Only the order of the rows can be compared. Each table is "
        "`python benchmarks/reproduce.py --table=NAME`; the minutes are what all its commands took "
        "on two cores."
    )
    yield ""
    yield "| run | code | seeds |"
    yield "|---|---|---|"
    for name, run in found["runs"].items():
        yield f"| {name} | {run['code']} | {', '.join(map(str, run['seeds']))} |"


def _table(name: str, table: Table, found: Mapping[str, Any]) -> Iterator[str]:
    number = "Figure 6" if name == "figure6" else f"Table {name}"
    yield f"## {number}: {table.title}"
    yield ""
    datasets = list(found["datasets"])
    if table.across:
        both = [f"{a} to {b}" for pair in (PAPER, datasets) for a, b in (pair, reversed(pair))]
        heads, names = both, both[2:]
    else:
        heads, names = [*PAPER, *datasets], datasets
    yield f"| | {' | '.join(heads)} |"
    yield f"|---|{'---|' * len(heads)}"
    for row, paper in table.rows.items():
        ours = [mean_and_range(_r1(found, row, data, table.across)) for data in datasets]
        theirs = ["-" if value is None else f"{value:.2f}" for value in paper]
        yield f"| {row} | {' | '.join([*theirs, *ours])} |"
    yield ""
    for better, worse in table.orders:
        for data, named in zip(datasets, names, strict=True):
            gaps = differences(found, better, worse, data, table.across)
            listed = ", ".join(f"{gap:+.1f}" for gap in gaps)
            yield f"- {better} > {worse}, {named}: {verdict(gaps)} ({listed})"
    if name in found.get("minutes", {}):
        yield ""
        yield f"{found['minutes'][name]:.0f} minutes."


def _r1(found: Mapping[str, Any], run: str, data: str, across: bool) -> list[float]:
    """Returns R1 by seed of a run that was trained on `data`."""
    tested = found["runs"][run]["R1"][data]
    return next(values for name, values in tested.items() if (name != data) == across)
