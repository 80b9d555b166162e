"""Apache Beam's workers as the place where a data set is checked and written (`builders.Spread`).

Records travel to the workers, and results back, in files below a folder that all of them see, since
a pipeline's graph would be too small for millions of records. Of the pipeline itself a worker gets
where its part starts, and calls a function with it, which reads images where they are.
"""

import contextlib
import functools
import io
import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from unipt_jax.core.errors import ConfigError, DataError
from unipt_jax.core.files import absolute, write_bytes
from unipt_jax.data.builders import SPREAD_FOLDER, Part, Spread

_PARTS = "parts.pickle"


def require(runner: str, options: Sequence[str]) -> None:
    """Finds out whether a pipeline could run; the arguments are those of `spread_on`.

    Raises:
        ConfigError: Apache Beam is not installed, has no such runner, or finds fault with the
            options.
    """
    if not runner:
        return
    try:
        _import()
    except ModuleNotFoundError:
        raise ConfigError(
            f"beam_runner={runner!r} needs Apache Beam; run: pip install 'unipt-jax[beam]'"
        ) from None
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):  # Beam's parser prints its usage there, and exits.
            _pipeline(runner, options).options.get_all_options()
    except (AttributeError, ImportError, SystemExit, ValueError) as error:
        parsed = not isinstance(error, SystemExit)
        why = error if parsed else told.getvalue().rpartition("error: ")[-1]
        given = f", beam_options={','.join(options)}" if options else ""
        raise ConfigError(f"beam_runner={runner!r}{given}: {why}") from None


def spread_on(runner: str, options: Sequence[str], workdir: epath.PathLike) -> Spread:
    """Returns what calls a function with each part in the workers of a runner.

    What is called comes in the form of a pickle, and is called again with the same part where a
    worker fails. One part and one result at a time are in this process's memory. A `DataError` is
    raised here as there, that of the first part with one; and another where the pipeline is
    stopped. A preparation that goes on after a kill must not meet workers of the one before:
    cancel that job first, if the runner has not.

    Args:
        runner: name of Beam's runner; empty: parts are worked on one after the other, here.
        options: of the pipeline, each "--key=value".
        workdir: a directory that has the same path for all workers. Parts and results lie in
            `SPREAD_FOLDER` there, which is removed in the end.
    """
    if not runner:
        return map
    folder = absolute(workdir) / SPREAD_FOLDER
    return functools.partial(_spread, runner, options, folder)


def _spread(
    runner: str,
    options: Sequence[str],
    folder: epath.Path,
    function: Callable[[Part], Any],
    parts: Iterable[Part],
) -> Iterator[Any]:
    beam = _import()
    _remove(folder)
    try:
        starts = _store(parts, folder)
        work = functools.partial(_work, function, os.fspath(folder))
        pipeline = _pipeline(runner, options)
        # Shuffled, since one worker would do all of a list.
        pipeline | beam.Create(list(enumerate(starts))) | beam.Reshuffle() | beam.Map(work)
        state = pipeline.run().wait_until_finish()
        if state != "DONE":
            raise DataError(f"beam_runner={runner!r} ended as {state}; go on with --resume")
        for number in range(len(starts)):
            result, fault = pickle.loads(_result(folder, number).read_bytes())
            if fault:
                raise DataError(fault)
            yield result
    finally:
        _remove(folder)


def _import() -> Any:
    """Imports Beam, which would tell its every step, and warn of parts that are not used here."""
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    logging.getLogger("apache_beam.options").setLevel(logging.WARNING)  # Of unknown options.
    logging.disable(logging.WARNING)
    try:
        import apache_beam
    finally:
        logging.disable(logging.NOTSET)
    return apache_beam


def _pipeline(runner: str, options: Sequence[str]) -> Any:
    return _import().Pipeline(runner, argv=list(options))


def _store(parts: Iterable[Part], folder: epath.Path) -> list[int]:
    """Writes parts to one file; returns the place of each in it."""
    folder.mkdir(parents=True)
    starts = []
    with (folder / _PARTS).open("wb") as file:
        for part in parts:
            starts.append(file.tell())
            pickle.dump(part, file)
    return starts


def _work(function: Callable[[Part], Any], folder: str, numbered: tuple[int, int]) -> None:
    """Stores what a function says of a part, or why it cannot."""
    number, start = numbered
    with (epath.Path(folder) / _PARTS).open("rb") as file:
        file.seek(start)
        part = pickle.load(file)
    try:
        outcome = function(part), ""
    except DataError as error:  # Another try would end in the same way.
        outcome = None, str(error)
    write_bytes(_result(epath.Path(folder), number), pickle.dumps(outcome))


def _result(folder: epath.Path, number: int) -> epath.Path:
    return folder / f"{number}.pickle"


def _remove(folder: epath.Path) -> None:
    if folder.exists():
        folder.rmtree()
