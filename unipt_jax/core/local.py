"""Several processes of one run on this machine, as one command."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

_GRACE = 10.0  # seconds for the others to end by themselves


def main(doc: str) -> int:
    """Parses the command line, starts the processes, waits, and returns the exit code.

    Each takes an equal share of the machine's GPUs, or, without any, the CPU. If one of them fails,
    the others have a while to end before they are killed; SIGTERM and SIGINT reach them all.

    Returns:
        0 if all succeed, else the code of the first that fails, 128 and the number for a signal; a
        code above 1, which is never a mere consequence, goes before others.
    """
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a script and its arguments")
    flags = parser.parse_args()
    if flags.processes < 1 or not flags.command:
        parser.error("--processes is at least 1, and a script comes after it")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    running = [
        subprocess.Popen(
            [
                *(sys.executable, *flags.command),
                f"--coordinator={coordinator}",
                f"--processes={flags.processes}",
                f"--process={index}",
            ],
            env=os.environ | _share(index, flags.processes),
        )
        for index in range(flags.processes)
    ]

    def forward(number: int, frame: object) -> None:
        for process in running:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    return _wait(running)


def _share(index: int, processes: int) -> dict[str, str]:
    """Returns what shows a process its share of the GPUs."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else _gpus()
    each = len(gpus) // processes
    own = gpus[index * each : (index + 1) * each]
    return {"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {}


def _gpus() -> list[str]:
    """Returns the numbers of NVIDIA's devices."""
    return sorted((path.name[6:] for path in Path("/dev").glob("nvidia[0-9]*")), key=int)


def _wait(running: list[subprocess.Popen]) -> int:
    """Waits for all; once one has failed, the others have a while to end."""
    failed, deadline = 0, None
    while None in [process.poll() for process in running]:  # Each is polled: any() stops early.
        failed = failed or next((p.returncode for p in running if p.returncode), 0)
        if failed and deadline is None:
            deadline = time.monotonic() + _GRACE
        if deadline is not None and time.monotonic() > deadline:
            for process in running:
                process.kill()
        time.sleep(0.1)
    codes = [process.returncode for process in running]
    # 1 and signals are also what becomes of those that have lost another.
    failed = next((code for code in codes if code > 1), failed or next(filter(None, codes), 0))
    return failed if failed >= 0 else 128 - failed  # As shells tell of a signal.
