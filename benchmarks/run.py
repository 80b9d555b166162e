"""Runs every benchmark, one after another, and keeps their rows by name in `results.json`.

Each runs in a process of its own, alone. A row is `{ratio, bar, ours, peer, unit}` as
`compare.Row` tells; a bar that was missed says so in the table.

With `--check` the committed file stays as it is, and the program fails if a ratio has fallen below
it by more than `--tolerance`, or if a row is missing: for a look before a release, on a quiet
machine like the one that made the file.

Usage: python benchmarks/run.py [--check] [--tolerance=0.15]
"""

import argparse
import ctypes.util
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import compare

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
NAMES = (
    "pretraining_step",
    "finetuning_step",
    "captioning",
    "text_encoding",
    "evaluation",
    "input_pipeline",
    "contrastive",
    "start",
)


def run(name: str) -> list[compare.Row]:
    """Runs a benchmark in its default sizes.

    Raises:
        CalledProcessError: it failed.
    """
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "rows.json"
        subprocess.run([sys.executable, FOLDER / f"{name}.py", f"--json={file}"], check=True)
        return [compare.Row(**row) for row in json.loads(file.read_text())]


def regressions(
    rows: Sequence[compare.Row], committed: Mapping[str, Mapping[str, float]], tolerance: float
) -> list[str]:
    """Returns a line for each committed ratio that is missed by more than `tolerance`."""
    found = {row.name: row.ratio for row in rows}
    lines = [f"{name}: no such row any more" for name in committed if name not in found]
    lines += [
        f"{name}: {found[name]:.2f}, {row['ratio']:.2f} committed"
        for name, row in committed.items()
        if found.get(name, row["ratio"]) < (1 - tolerance) * row["ratio"]
    ]
    return lines


def as_json(rows: Sequence[compare.Row]) -> str:
    """Returns the rows by name."""
    entries = [dataclasses.asdict(row) for row in rows]
    return json.dumps({entry.pop("name"): entry for entry in entries}, indent=1) + "\n"


def main() -> None:
    """Runs all; writes or checks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--tolerance", type=float, default=0.15)
    flags = parser.parse_args()
    if not ctypes.util.find_library("jemalloc"):
        sys.exit("jemalloc is missing, and torch is slower without it; install libjemalloc2")
    rows, failed = [], []
    for name in NAMES:
        try:
            rows += run(name)
        except subprocess.CalledProcessError:
            failed.append(name)
    print(compare.table(rows))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    if not flags.check:
        RESULTS.write_text(as_json(rows))
        return
    committed = json.loads(RESULTS.read_text())
    if lines := regressions(rows, committed, flags.tolerance):
        sys.exit("\n".join(["slower than committed:", *lines]))


if __name__ == "__main__":
    main()
