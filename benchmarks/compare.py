"""What the benchmarks share: programs timed in turn in one process, and the rows of their table."""

import argparse
import ctypes.util
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
    """One claim.

    Attributes:
        name: what is compared.
        ours: our figure, in `unit`.
        peer: the peer's.
        unit: of both; less is better.
        ratio: the peer's over ours, the median of rounds in which both were measured.
        bar: what the ratio is to reach; None: nothing was promised.
    """

    name: str
    ours: float
    peer: float
    unit: str
    ratio: float
    bar: float | None


def in_turn(programs: Sequence[Callable[[], Any]], rounds: int) -> np.ndarray:
    """Returns the seconds of each program in each round, f64[rounds, programs], after one warm-up.

    A machine's speed drifts: what is compared runs within seconds of each other.
    """
    for program in programs:
        program()
    return np.array([[seconds(program) for program in programs] for _ in range(rounds)])


def seconds(program: Callable[[], Any]) -> float:
    """Times one call."""
    started = time.perf_counter()
    program()
    return time.perf_counter() - started


def row(
    name: str, ours: np.ndarray, peer: np.ndarray, bar: float | None, scale: float = 1.0
) -> Row:
    """Makes a row of the seconds of both in each round; `scale` units of work are done in each."""
    medians = [float(np.median(times)) / scale for times in (ours, peer)]
    return Row(name, *medians, "s", float(np.median(peer / ours)), bar)


def table(rows: Sequence[Row]) -> str:
    """Returns rows as a Markdown table."""
    lines = ["| | ours | peer | unit | ratio | bar |", "|---|---|---|---|---|---|"]
    for it in rows:
        bar = "" if it.bar is None else f"{it.bar:g}" + ("" if it.ratio >= it.bar else " (missed)")
        lines.append(
            f"| {it.name} | {it.ours:.4g} | {it.peer:.4g} | {it.unit} | {it.ratio:.2f} | {bar} |"
        )
    return "\n".join(lines)


def under_jemalloc() -> bool:
    """Starts this program anew under jemalloc, and tells whether that is installed.

    Torch does best with it, and a slower torch would flatter a ratio.
    """
    jemalloc = ctypes.util.find_library("jemalloc")
    if jemalloc and "jemalloc" not in os.environ.get("LD_PRELOAD", ""):
        os.environ.update(
            LD_PRELOAD=jemalloc,
            MALLOC_CONF="dirty_decay_ms:-1,muzzy_decay_ms:-1",
            OMP_NUM_THREADS=str(os.cpu_count()),  # As many as JAX takes.
        )
        os.execv(sys.executable, [sys.executable, *sys.argv])
    return bool(jemalloc)


def main(doc: str, measure: Callable[..., Sequence[Row]], **sizes: Any) -> None:
    """Runs a benchmark from the command line: a flag for each of `sizes`, and `--json=FILE`."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--json", help="file that the rows are written to")
    flags = vars(parser.parse_args())
    has_jemalloc = under_jemalloc()
    file = flags.pop("json")
    rows = measure(**flags)
    print(table(rows), flush=True)
    if not has_jemalloc:
        print("jemalloc is not installed: torch would be faster with it")
    if file:
        Path(file).write_text(json.dumps([dataclasses.asdict(it) for it in rows], indent=1))
