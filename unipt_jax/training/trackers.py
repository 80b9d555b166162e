"""Where metrics go besides the work directory: Weights & Biases or MLflow, if a run asks for one.

Which server or directory that is, is told as these packages tell it: by `wandb login` and their
variables, such as WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from unipt_jax.core import trees
from unipt_jax.core.errors import ConfigError, PreemptionError
from unipt_jax.core.files import absolute, is_remote, read_json, write_json
from unipt_jax.training.metrics import Row

log = logging.getLogger(__name__)

FILE = "tracker.json"  # By what the tracker knows the run, for its continuation.
PROJECT = "unipt-jax"  # Where nothing else is asked for.


class Tracker:
    """A run as a tracker knows it. Of this class itself, it is none, and nothing is sent.

    A tracker that fails once training has begun does not end the run: it is warned of.
    """

    def write(self, row: Row) -> None:
        """Sends one row of metrics, as `metrics.Writer` takes it."""

    def close(self, failed: bool) -> None:
        """Sees everything through, and says how the run ended."""

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # A run that SIGTERM ends is whole, and goes on later.
        self.close(failed=kind not in (None, PreemptionError))


def require(name: str) -> None:
    """Finds out whether the package of a tracker is there.

    Raises:
        ConfigError: it is not.
    """
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"tracker={name!r} needs a package that is missing: pip install 'unipt-jax[{name}]'"
        )


def start(name: str, workdir: epath.PathLike, config: Mapping[str, Any]) -> Tracker:
    """Opens a tracked run of the work directory's name, or the one that was opened for it before.

    Args:
        name: "none", "wandb" or "mlflow".
        workdir: where the tracker's own name of the run is kept.
        config: nested values of the run's configuration, which the tracker shows.

    Raises:
        ConfigError: the tracker cannot be reached, or knows the run no more.
    """
    if name == "none":
        return Tracker()
    path = epath.Path(workdir) / FILE
    all_known = read_json(path) if path.exists() else {}
    known = all_known.get(name)
    try:
        made = {"wandb": _Wandb, "mlflow": _Mlflow}[name](absolute(workdir), config, known)
    except Exception as error:  # Each has errors of its own.
        raise ConfigError(
            f"tracker={name!r} cannot be reached: {str(error).rstrip('.')}; mend that, or set "
            "tracker=none, and pass --resume"
            + (f" (it knew this run as {known!r}, which {path} says)" if known else "")
        ) from error
    if made.identity != known:
        write_json(path, all_known | {name: made.identity})
    return made


class _Wandb(Tracker):
    """Weights & Biases, which takes no row of a step before one that it has."""

    def __init__(self, workdir: epath.Path, config: Mapping[str, Any], known: str | None):
        import wandb  # slow to import, as is MLflow

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=workdir.name,
            config=dict(config),
            id=known,
            resume="allow" if known else None,
            dir=None if is_remote(workdir) else os.fspath(workdir),
        )
        self.identity = self._run.id

    def write(self, row: Row) -> None:
        _in_passing(lambda: self._run.log(dict(row), step=int(row["step"])))

    def close(self, failed: bool) -> None:
        _in_passing(lambda: self._run.finish(exit_code=int(failed)))


class _Mlflow(Tracker):
    """MLflow. Metrics go in the background, so that no step waits for them.

    What a continuation repeats is there twice, at the same step.
    """

    def __init__(self, workdir: epath.Path, config: Mapping[str, Any], known: str | None):
        import mlflow

        self._mlflow = mlflow
        if known:
            mlflow.start_run(run_id=known)
        else:
            if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys():
                mlflow.set_experiment(PROJECT)
            mlflow.start_run(run_name=workdir.name)
            mlflow.log_params(trees.dotted(config))
        self.identity = mlflow.active_run().info.run_id

    def write(self, row: Row) -> None:
        values = {name: float(value) for name, value in row.items() if name != "step"}
        step = int(row["step"])
        _in_passing(lambda: self._mlflow.log_metrics(values, step=step, synchronous=False))

    def close(self, failed: bool) -> None:
        _in_passing(self._mlflow.flush_async_logging)
        _in_passing(lambda: self._mlflow.end_run("FAILED" if failed else "FINISHED"))


def _in_passing(send: Callable[[], Any]) -> None:
    try:
        send()
    except Exception as error:
        log.warning("the tracker failed: %s; the run goes on", error)
