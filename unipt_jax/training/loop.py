"""The loop: batch, step, log, checkpoint, until the last step."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unipt_jax.core import distributed
from unipt_jax.core.errors import PreemptionError
from unipt_jax.core.files import write_json_lines
from unipt_jax.core.sharding import batch_sharding, put_batch
from unipt_jax.data.pipeline import Batches
from unipt_jax.models.compute import compiler_options
from unipt_jax.training import metrics
from unipt_jax.training.checkpoints import Checkpoints
from unipt_jax.training.state import TrainState
from unipt_jax.training.step import TrainStep

log = logging.getLogger(__name__)

Score = Callable[[Any], metrics.Row]
SCORE = "R1"  # By which the best checkpoint is chosen: the paper's first figure.


def jit_step(train_step: TrainStep, shardings: TrainState, mesh: Mesh) -> TrainStep:
    """Compiles the step for the mesh; the state's memory is reused for the next state."""
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
        compiler_options=compiler_options(mesh.devices.flat[0].platform),
    )


def train(
    *,
    state: TrainState,
    train_step: TrainStep,
    batches: Batches,
    mesh: Mesh,
    steps: int,
    log_every: int,
    checkpoint_every: int,
    checkpoints: Checkpoints,
    writer: metrics.Writer,
    quarantine: epath.Path,
    image_of: Callable[[int], str],
    data_identity: Mapping[str, Any],
    config: Mapping[str, Any],
    score: Score | None = None,
) -> TrainState:
    """Takes the state from its step to step `steps` and returns it, checkpointed.

    Args:
        state: what to go on from; its memory is given up.
        train_step: as `jit_step` returns it.
        batches: gives batch `state.step` first.
        mesh: the devices.
        steps: the last step's number.
        log_every: steps between two rows of metrics; the last step always has one.
        checkpoint_every: steps between two checkpoints; the last step always has one.
        checkpoints: where they go.
        writer: where metrics go.
        quarantine: the file that lists unreadable records, with each row of metrics.
        image_of: gives the image path of a record, for that file.
        data_identity: what the data are, written into each checkpoint.
        config: written into each checkpoint.
        score: measures parameters at each checkpoint, which is then a row of metrics too; not at
            one that SIGTERM asks for, when time is short.

    Raises:
        DivergenceError: a metric or a score is NaN or infinite.
        DataError: a record cannot be read, and the pipeline does not quarantine.
        PreemptionError: SIGTERM came; the step reached is saved.
    """
    first, logged, clock = int(state.step), int(state.step), time.perf_counter()
    bad_records, unread = _read_bad_records(quarantine), set()
    with jax.set_mesh(mesh), _progress(first, steps) as show, distributed.Preemption() as preempted:
        for step in range(first + 1, steps + 1):
            batch = next(batches)
            unread |= set(batch["record"][~batch["valid"]].tolist())
            placed = put_batch(batch, mesh)
            state, scalars = train_step(state, placed)
            at_log = step % log_every == 0 or step == steps
            leaves = preempted.at(step) and step < steps
            at_checkpoint = step % checkpoint_every == 0 or step == steps or leaves
            if not (at_log or at_checkpoint):
                continue
            row = {"step": float(step)} | metrics.fetch(scalars)
            metrics.require_finite(row, since=logged)
            new, unread = distributed.union(unread) - bad_records.keys(), set()
            _note_bad_records(new, bad_records, quarantine, image_of)
            seconds = time.perf_counter() - clock
            scores = score(state.chosen) if score and at_checkpoint and not leaves else {}
            metrics.require_finite({"step": float(step)} | scores, since=logged)
            if at_log or scores:
                row["examples_per_second"] = len(placed["valid"]) * (step - logged) / seconds
                row |= {"quarantined": float(len(bad_records))} | scores
                writer.write(row)
                show(row)
                logged, clock = step, time.perf_counter()
            if at_checkpoint:
                data = dict(batches.state()) | dict(data_identity)
                best = next((v for k, v in scores.items() if k.endswith(f"/{SCORE}")), None)
                checkpoints.save(state, data=data, config=config, score=best)
            if leaves:
                checkpoints.wait()
                raise PreemptionError(f"SIGTERM: step {step} is saved; go on with --resume")
    checkpoints.wait()
    return state


def _read_bad_records(path: epath.Path) -> dict[int, dict[str, Any]]:
    """Returns the rows of the quarantine file by their records."""
    # As bytes: a text would also be parted at U+2028 and the like, which paths may hold.
    rows = map(json.loads, path.read_bytes().splitlines() if path.exists() else [])
    return {row["pair"]: row for row in rows}


def _note_bad_records(
    new: Set[int],
    rows: dict[int, dict[str, Any]],
    path: epath.Path,
    image_of: Callable[[int], str],
) -> None:
    """Adds records that could not be read, each once a run, and writes the quarantine file anew."""
    if not new:
        return
    what = "cannot be decoded; run launch/prepare.py again to see why"
    for record in sorted(new):
        rows[record] = {"pair": record, "image": image_of(record), "what": what}
    if distributed.is_first():
        write_json_lines(path, rows.values())
        log.warning("%d unreadable records so far; see %s", len(rows), path)


@contextmanager
def _progress(first: int, steps: int) -> Iterator[Any]:
    """Yields a function that shows a row: as a live bar in a terminal, else as a log line."""
    bar = Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        expand=True,
        disable=not (sys.stderr.isatty() and distributed.is_first()),
    )
    task = bar.add_task("the first step is compiled", total=steps, completed=first)
    started, score = time.perf_counter(), ""

    def show(row: metrics.Row) -> None:
        nonlocal score
        step = int(row["step"])
        said = f"loss {row['loss']:.4f}  {row['examples_per_second']:.1f} examples/s"
        new = [f"  {name} {row[name]:.2f}" for name in row if name.endswith(f"/{SCORE}")]
        score = new[0] if new else score  # The bar shows the last one until the next.
        bar.update(task, completed=step, description=said + score)
        if bar.disable:
            left = (time.perf_counter() - started) / (step - first) * (steps - step)
            log.info("step %d/%d  %s  %.0f s left", step, steps, said + "".join(new), left)

    with bar, _logging_above():
        yield show


@contextmanager
def _logging_above() -> Iterator[None]:
    """Lets log lines go where `sys.stderr` goes now: above a live bar, which they would tear."""
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if type(handler) is logging.StreamHandler
    ]
    before = [handler.stream for handler in handlers]
    # Not `setStream`: it would flush what may be closed, and every record has been flushed.
    for handler in handlers:
        handler.stream = sys.stderr
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            handler.stream = stream
