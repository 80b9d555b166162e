"""How long a query takes in a large gallery: all rows compared, and by faiss's lists.

Rows are unit vectors around one centre a person, ten images each, and the centres lie in 64 of
the dimensions, as embeddings do in few; a query is one of the rows, moved a little. The share of
the ten nearest that the lists find is beside their time.

Usage: python benchmarks/search.py [--rows 100000 1000000] [--width 512]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from unipt_jax.search import neighbours

_QUERIES = 30


def gallery(path: Path, rows: int, width: int) -> np.ndarray:
    """Writes rows to a file and maps it, as an index does."""
    random = np.random.default_rng(0)
    basis = random.standard_normal((64, width), np.float32) / 8
    features = np.memmap(path, np.float32, "w+", shape=(rows, width))
    for at in range(0, rows, 10_000):
        count = min(10_000, rows - at)
        centres = random.standard_normal((-(-count // 10), 64), np.float32) @ basis
        block = centres.repeat(10, axis=0)[:count]
        block += 0.8 * random.standard_normal(block.shape, np.float32)
        features[at : at + count] = block / np.linalg.norm(block, axis=1, keepdims=True)
    features.flush()
    return np.memmap(path, np.float32, "r", shape=(rows, width))


def measure(rows: int, width: int) -> list[str]:
    """Returns a line of the table."""
    with tempfile.TemporaryDirectory() as place:
        features = gallery(Path(place) / "features.f32", rows, width)
        numbers = np.arange(rows)
        started = time.perf_counter()
        neighbours.LARGE = 0
        lists = neighbours.Neighbours(features, numbers, Path(place))
        built = time.perf_counter() - started
        random = np.random.default_rng(1)
        times, found = ([], []), []
        for _ in range(_QUERIES):
            query = features[random.integers(rows)] + 0.05 * random.standard_normal(width)
            query = (query / np.linalg.norm(query)).astype(np.float32)
            started = time.perf_counter()
            whole, _ = neighbours.exact(features, query, 10, numbers)
            middle = time.perf_counter()
            some, _ = lists.nearest(query, 10)
            times[0].append(middle - started)
            times[1].append(time.perf_counter() - middle)
            found.append(np.isin(whole, some).mean())
    exact, approximate = (1000 * np.median(each) for each in times)
    return [
        f"{rows:,}",
        f"{exact:.0f}",
        f"{approximate:.0f}",
        f"{100 * np.mean(found):.1f}",
        f"{built:.0f}",
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--width", type=int, default=512)
    flags = parser.parse_args()
    table = Table(title=f"A query in a gallery, {flags.width} wide, median of {_QUERIES}")
    for name in ("images", "all, ms", "lists, ms", "of the ten nearest, %", "made in, s"):
        table.add_column(name, justify="right")
    for rows in flags.rows:
        table.add_row(*measure(rows, flags.width))
    Console().print(table)


if __name__ == "__main__":
    main()
