"""What a run writes about itself: `metrics.jsonl`, TensorBoard events, and a loss curve."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from unipt_jax.core import distributed
from unipt_jax.core.errors import DataError, DivergenceError
from unipt_jax.core.files import (
    append_json_lines,
    is_remote,
    naming,
    read_json_lines,
    write_json_lines,
)

FILE = "metrics.jsonl"
Row = dict[str, float | int]


def fetch(metrics: Mapping[str, jax.Array]) -> Row:
    """Brings scalars to the host: the one place where a run waits for its devices."""
    return {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}


def require_finite(row: Row, since: int) -> None:
    """Stops a run that has left the numbers.

    Raises:
        DivergenceError: names the metrics that are NaN or infinite, and the steps in question:
            those after `since`, the last that was well.
    """
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    if bad:
        raise DivergenceError(
            f"{', '.join(bad)} became NaN or infinite in steps {since + 1} to {int(row['step'])}; "
            "start again with a lower optimizer.learning_rate or with optimizer.clip_norm set"
        )


def read(workdir: epath.PathLike) -> list[Row]:
    """Returns the rows of `metrics.jsonl`, an empty list where there is none.

    A last line that a killed run left unfinished is left out.

    Raises:
        DataError: a line is damaged.
    """
    path = epath.Path(workdir) / FILE
    rows = read_json_lines(path) if path.exists() else []
    for number, row in enumerate(rows, 1):
        if not (isinstance(row, dict) and isinstance(row.get("step"), int)):
            raise DataError(f"{path}: line {number} tells no step; take that line away")
    return rows


class Writer:
    """Appends rows to `metrics.jsonl` and TensorBoard; rows after `step` are taken back first.

    Each row is passed to `send` too. Only the first process of several writes.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        step: int,
        send: Callable[[Row], None] = lambda row: None,
    ):
        self._workdir, self._step, self._send = epath.Path(workdir), step, send
        self._path = self._workdir / FILE
        self._active = distributed.is_first()
        if self._active:
            write_json_lines(self._path, [row for row in read(workdir) if row["step"] <= step])

    @functools.cached_property
    def _events(self) -> "_Events":
        return _Events(self._workdir / "tensorboard", self._step)

    def write(self, row: Row) -> None:
        """Writes one row; `row["step"]` counts optimizer steps."""
        if not self._active:
            return
        append_json_lines(self._path, [row | {"step": int(row["step"])}])
        self._events.write(row)
        self._send(row)

    def close(self) -> None:
        """Flushes what is buffered."""
        if "_events" in vars(self):
            self._events.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # What went wrong before is not to be hidden by what goes wrong for it.
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            self.close()


class _Events:
    """TensorBoard's event file, written in this thread.

    `tensorboardX.SummaryWriter` has one of its own, which ends at a full disk in silence; the run
    would wait for it forever.
    """

    def __init__(self, directory: epath.Path, step: int):
        # Slow to import, since it looks for torch: not before the first step.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._directory, self._scalar, self._event = directory, summary.scalar, event_pb2.Event
        with naming(directory):
            event_file_writer.directory_check(str(directory))
            self._writer = event_file_writer.EventsWriter(str(directory / "events"), "")
            if step:  # TensorBoard forgets what a killed run has written after it.
                log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._writer.write_event(
                    self._event(wall_time=time.time(), step=step + 1, session_log=log)
                )
            self._flush()

    def write(self, row: Row) -> None:
        """Writes one row; an object store gets the file every two minutes, others at once."""
        with naming(self._directory):
            for name, value in row.items():
                event = self._event(wall_time=time.time(), step=int(row["step"]))
                event.summary.CopyFrom(self._scalar(name, value))
                self._writer.write_event(event)
            if not is_remote(self._directory) or time.monotonic() - self._flushed > 120:
                self._flush()

    def close(self) -> None:
        with naming(self._directory):
            self._writer.close()

    def _flush(self) -> None:
        self._writer.flush()
        self._flushed = time.monotonic()


def thin(rows: Sequence[Any], most: int) -> list[Any]:
    """Returns at most `most` of the rows, evenly spaced, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / (most - 1))] for index in range(most)]
