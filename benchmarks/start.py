"""From the start of a pre-training to its first step, with an empty compilation cache and a full.

The first start compiles each program and keeps it in `compute.cache`, the second finds all of them
there; both import, trace, make the weights and take the step. In each round the cache is new. The
model is the paper's with its smaller image encoder, its data the embedded sample, and the batch so
small that the step itself takes next to nothing.

Usage: python benchmarks/start.py [--image=deit_s] [--text=bert_base] [--batch_size=2] [--rounds=2]
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import compare
import numpy as np

OFFLINE = os.environ | {"HF_HUB_OFFLINE": "1"}


def start(workdir: Path, flags: Sequence[str]) -> float:
    """Returns the seconds from the start of a training until its first step is in its metrics.

    Raises:
        RuntimeError: the training ended before.
    """
    started = time.perf_counter()
    command = [sys.executable, "launch/train.py", *flags, f"--workdir={workdir}"]
    metrics = workdir / "metrics.jsonl"
    with subprocess.Popen(command, env=OFFLINE) as process:
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(f"the training ended with {process.returncode} and no step")
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        process.kill()  # Before it steps on, or writes a checkpoint.
    return seconds


def measure(image: str, text: str, batch_size: int, rounds: int) -> Sequence[compare.Row]:
    """Starts twice in each round."""
    with tempfile.TemporaryDirectory() as directory:
        data, times = Path(directory) / "data", []
        prepare = ["launch/prepare.py", "--config=configs/prepare.py:demo", f"--workdir={data}"]
        subprocess.run([sys.executable, *prepare], env=OFFLINE, check=True)
        for number in range(rounds):
            work = Path(directory) / str(number)
            flags = [
                "--config=configs/pretrain.py",
                f"--config.data={data}",
                "--config.text.tokenizer=examples/tokenizer",
                "--config.init_image=",
                "--config.init_text=",
                f"--config.model.image={image}",
                f"--config.model.text={text}",
                f"--config.batch_size={batch_size}",
                "--config.log_every=1",
                f"--config.compute.cache={work / 'compiled'}",
            ]
            times.append([start(work / each, flags) for each in ("first", "second")])
    first, second = np.transpose(times)
    return [compare.row("start to first step, second start against the first", second, first, 3.0)]


if __name__ == "__main__":
    compare.main(__doc__, measure, image="deit_s", text="bert_base", batch_size=2, rounds=2)
