"""Fuzzes for as long as it is told, each round from another seed: `make fuzz MINUTES=10`.

The first input that crashes ends it. Hypothesis has then made that input as small as it could,
prints it, and keeps it in `.hypothesis/` for the next run to begin with.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time


def main() -> int:
    """Runs rounds until the time is over; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    totals: collections.Counter[str] = collections.Counter()
    rounds = 0
    while time.monotonic() < end:
        seed = random.SystemRandom().randrange(2**32)
        rounds += 1
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pytest", "tests/fuzz", "--exitfirst"]
            command += ["--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}"]
            command += [f"--numprocesses={arguments.processes}"]
            code = subprocess.call(command, env={**os.environ, "FUZZ_COUNTS": folder})
            for path in pathlib.Path(folder).iterdir():
                totals.update(json.loads(path.read_text()))
        tried = sum(totals.values())
        print(
            f"round {rounds}, seed {seed}: {tried:,} inputs so far, {totals['taken']:,} taken, "
            f"{totals['refused']:,} refused in one line",
            flush=True,
        )
        if code:
            print("an input crashed; it is printed above", flush=True)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
