"""Several processes that train as one: how they find each other, and how they agree.

On a TPU pod, under Slurm and under MPI, JAX finds the other processes by the environment;
elsewhere the command line names them, see `start`. `launch/local.py` starts several on one machine.
"""

import contextlib
import importlib.util
import json
import os
import signal
import threading
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from unipt_jax.core.errors import ConfigError, UserError

# How many processes there are, as these tell each of them. Of Slurm it is the step's, which `srun`
# starts: what a batch script runs without it is alone, though the job's variables are set there.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_PATIENCE = 10.0  # seconds that a process which fails waits for the others to end with it


def start(
    coordinator: str = "", processes: int = 0, process: int = -1, *, preemption: bool = False
) -> None:
    """Joins the other processes of a run; does nothing where this one is alone.

    Must come before anything asks for devices.

    Args:
        coordinator: HOST:PORT of process 0, the same everywhere; empty: as the environment says.
        processes: how many there are.
        process: the number of this one, from 0.
        preemption: whether `Preemption` will be asked; if not, SIGTERM ends a process.

    Raises:
        ConfigError: the three do not go together.
    """
    # JAX's service takes SIGTERM from the start, and nobody else would notice it.
    jax.config.update("jax_enable_preemption_service", preemption)
    if coordinator or processes or process >= 0:
        if not coordinator or not 0 <= process < processes:
            raise ConfigError(
                f"--coordinator={coordinator} --processes={processes} --process={process}: of "
                "several processes each needs the HOST:PORT of the first, their number, and its "
                "own, from 0 to one less"
            )
        jax.distributed.initialize(coordinator, processes, process)
    elif any(int(os.environ.get(name) or 1) > 1 for name in _COUNTS):
        jax.distributed.initialize()
    elif importlib.util.find_spec("libtpu"):
        # The library of TPUs may be there where they are not.
        with contextlib.suppress(ValueError):
            jax.distributed.initialize()


def is_first() -> bool:
    """Tells whether this is the process that writes what all have in common."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends on all processes at the same time: none goes on if one has raised an error within.

    Raises:
        Exception: this process's own error.
        UserError: this one has none; it names the first process that has one.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    failed = np.array([own is not None])
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(failed).reshape(-1)
    if own is not None:
        raise own
    if failed.any():
        raise UserError(f"process {int(np.argmax(failed))} has stopped; it says why")


def require_same(what: str, value: Any) -> None:
    """Refuses, on all processes, that one has another `value` (JSON's kinds); all must call it.

    Raises:
        ConfigError: it names the first process whose value is not that of process 0.
    """
    if jax.process_count() == 1:
        return
    own = zlib.crc32(json.dumps(value, sort_keys=True).encode())
    found = multihost_utils.process_allgather(np.array([own], np.uint32)).reshape(-1)
    if (found != found[0]).any():
        raise ConfigError(
            f"process {int(np.argmax(found != found[0]))} differs from process 0 in its {what}; "
            "start all with the same"
        )


def leave_soon(code: int) -> None:
    """Makes the exit of a process that has failed, which is to follow, a matter of seconds.

    JAX waits at the exit until all processes have come to theirs, for five minutes, and then ends
    this one with a code of its own. If the others fail too, for the same reason, none is kept from
    saying so; if they do not know, they wait for this one, and learn as it leaves with `code`.
    """
    if jax.distributed.is_initialized():
        timer = threading.Timer(_PATIENCE, os._exit, [code])
        timer.daemon = True
        timer.start()


class Preemption:
    """Notices SIGTERM, by which clusters take machines back; all processes do at the same step."""

    def __init__(self) -> None:
        self._came = False

    def at(self, step: int) -> bool:
        """Tells whether `step`, which all processes are at, is the one to stop after."""
        if jax.process_count() > 1:  # JAX's own service listens, and agrees on a step.
            return multihost_utils.reached_preemption_sync_point(step)
        return self._came

    def __enter__(self) -> "Preemption":
        self._listens = (
            jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        )
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: object) -> None:
        self._came = True


def union(numbers: Iterable[int]) -> set[int]:
    """Returns the numbers (int32, >= 0) of all processes together, on each; all must call it."""
    own = np.array(sorted(numbers), np.int32)
    if jax.process_count() == 1:
        return set(own.tolist())
    most = int(multihost_utils.process_allgather(np.array([len(own)])).max())
    padded = np.full(most, -1, np.int32)
    padded[: len(own)] = own
    return set(multihost_utils.process_allgather(padded).ravel().tolist()) - {-1}
