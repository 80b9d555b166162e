"""Checkpoints: state, the data pipeline's position and the configuration, whole or absent.

The best one by a score stays beside the latest. Orbax writes each step aside and renames it, so a
killed run leaves its last complete checkpoint and remains of the next that are never taken for one.
What storage has altered since is found by checksums: Orbax itself notices little of it.
"""

import contextlib
import dataclasses
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from unipt_jax.core import trees
from unipt_jax.core.errors import CheckpointError, DataError, SaveError
from unipt_jax.core.files import absolute, read_json
from unipt_jax.training.state import TrainState

DIRECTORY = "checkpoints"
_SCORE = "score"
# Another kind of checksums takes another name, or what holds the former would seem damaged.
_CHECKSUMS = "checksums by position"


def is_begun(workdir: epath.PathLike) -> bool:
    """Tells whether a work directory holds a complete checkpoint, from which its run goes on."""
    return step_reached(workdir) is not None


def step_reached(workdir: epath.PathLike) -> int | None:
    """Returns the step of the newest complete checkpoint in a work directory, or None."""
    if not (epath.Path(workdir) / DIRECTORY).is_dir():
        return None
    with Checkpoints.open_read_only(workdir) as checkpoints:
        return checkpoints.latest_step()


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one work directory, `checkpoints/<step>` each.

    The latest `keep` stay, and the one with the highest score if any has one.
    """

    manager: ocp.CheckpointManager
    directory: epath.Path

    @classmethod
    def open(cls, workdir: epath.PathLike, *, keep: int) -> "Checkpoints":
        """Opens (and makes) `workdir/checkpoints` for a run that adds to it."""
        best = checkpoint_managers.BestN(
            get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False
        )
        policy = checkpoint_managers.AnyPreservationPolicy(
            [checkpoint_managers.LatestN(keep), best]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, best_fn=_score, create=True
        )
        return cls._open(workdir, options)

    @classmethod
    def open_read_only(cls, workdir: epath.PathLike) -> "Checkpoints":
        """Opens `workdir/checkpoints` and changes nothing in it; waits for no other process.

        Raises:
            CheckpointError: there is no such directory.
        """
        if not (epath.Path(workdir) / DIRECTORY).is_dir():
            raise CheckpointError(f"{workdir} holds no {DIRECTORY}; name the directory of a run")
        return cls._open(
            workdir,
            ocp.CheckpointManagerOptions(
                read_only=True,
                best_fn=_score,
                create=False,
                save_interval_steps=0,
                multiprocessing_options=_by_itself(),
            ),
        )

    @classmethod
    def _open(cls, workdir: epath.PathLike, options: ocp.CheckpointManagerOptions) -> "Checkpoints":
        directory = absolute(workdir) / DIRECTORY
        _require_scores(directory)
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "data": ocp.JsonCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        }
        try:
            manager = ocp.CheckpointManager(directory, item_handlers=handlers, options=options)
        except FileNotFoundError:  # A run beside this reader has just removed a step.
            manager = ocp.CheckpointManager(directory, item_handlers=handlers, options=options)
        return cls(manager, directory)

    def latest_step(self) -> int | None:
        """Returns the newest complete step, or None."""
        return self.manager.latest_step()

    def best_step(self) -> int | None:
        """Returns the complete step of the highest score, the latest of equals, or None."""
        return self.manager.best_step()

    def score(self, step: int) -> float | None:
        """Returns the score with which a step was saved, if it had one."""
        metrics = self.manager.metrics(step)
        return None if not metrics else _score(metrics)

    def save(
        self,
        state: TrainState,
        *,
        data: Mapping[str, Any],
        config: Mapping[str, Any],
        score: float | None = None,
    ) -> None:
        """Starts writing `state` (copied first, so it may be donated); `wait` sees it through.

        Args:
            state: everything that a continuation needs.
            data: the pipeline's position, and what the data are.
            config: of the run.
            score: by which the best step is chosen; higher is better.

        Raises:
            CheckpointError: the step was not taken, for it exists.
            SaveError: this or an earlier one cannot be written.
        """
        self._save(
            int(state.step),
            config,
            score=score,
            checksums=_checksums(state) | {"data": _checksum(data)},
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(dict(data)),
        )

    def restore(
        self, state: TrainState, shardings: TrainState
    ) -> tuple[TrainState, Mapping[str, Any]]:
        """Returns the latest checkpoint, laid out by `shardings`, and its pipeline state.

        `state` gives the structure, shapes and types; any mesh may have written the checkpoint.

        Raises:
            CheckpointError: there is none, it is damaged, or it holds other parameters (all
                differences listed).
        """
        step = self._require_step()
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            shardings,
        )
        stored = self._stored_shapes(step)
        self._require_same(stored["params"], state.params, step)
        self._require_same_progress(stored, state, step)
        with self._reading(step):
            restored = self.manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
            found = _checksums(restored["state"]) | {"data": _checksum(restored["data"])}
        self._require_unaltered(found, step)
        return restored["state"], restored["data"]

    def save_params(self, params: Any, *, config: Mapping[str, Any]) -> None:
        """Writes parameters alone, as step 0, for others to start from or to encode with.

        Raises:
            CheckpointError: the step was not taken, for it exists.
        """
        params = {"params": params}
        self._save(0, config, checksums=_checksums(params), state=ocp.args.StandardSave(params))

    def restore_params(self, abstract: Any = None) -> Any:
        """Returns the parameters alone of the best checkpoint, or else of the latest.

        They lie on this process's first device; it reads them without waiting for another. Of a
        run that averages them, it is the average. `abstract` gives the structure, shapes and types
        that they must have; None takes any.

        Raises:
            CheckpointError: there is none, it is damaged, or it holds other parameters (all
                differences listed).
        """
        step = self.best_step()
        step = self._require_step() if step is None else step
        shapes = self._stored_shapes(step)
        part = "average" if shapes.get("average") else "params"
        stored = shapes[part]
        if abstract is None:
            abstract = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), stored
            )
        self._require_same(stored, abstract, step)
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        arguments = jax.tree.map(
            lambda leaf: ocp.ArrayRestoreArgs(sharding=sharding, dtype=leaf.dtype), abstract
        )
        by_itself = _by_itself()
        with (
            self._reading(step),
            ocp.Checkpointer(
                ocp.PyTreeCheckpointHandler(multiprocessing_options=by_itself),
                multiprocessing_options=by_itself,
            ) as reader,
        ):
            restored = reader.restore(
                self.directory / str(step) / "state",
                args=ocp.args.PyTreeRestore(
                    item={part: abstract},
                    restore_args={part: arguments},
                    partial_restore=True,
                ),
            )
        self._require_unaltered(_checksums({part: restored[part]}), step)
        return restored[part]

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            SaveError: something could not be written, in the background too.
        """
        with self._writing():
            self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the directory."""
        self.wait()
        self.manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # What went wrong before is not to be hidden by what goes wrong for it.
        with contextlib.suppress(SaveError) if kind else contextlib.nullcontext():
            self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns whatever storage, tensorstore or Orbax raise into one line."""
        try:
            yield
        except Exception as error:
            good = max(self.manager.all_steps(read=True), default=None)
            what = " ".join(str(error).split())[-300:]
            raise SaveError(
                f"{self.directory}: a checkpoint could not be written; the last good one is "
                f"{'none' if good is None else f'step {good}'}, from which --resume goes on once "
                f"there is room: {what}"
            ) from error

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Turns whatever Orbax, tensorstore or JSON raise into one line."""
        try:
            yield
        except Exception as error:
            raise self._damaged(step, " ".join(str(error).split())[:300]) from error

    def _damaged(self, step: int, what: str) -> CheckpointError:
        return _damaged(self.directory, step, self.manager.all_steps(), what)

    def _require_unaltered(self, found: Mapping[str, int], step: int) -> None:
        meta = self._meta(step)
        stored = meta.get(_CHECKSUMS)
        if stored is None:
            raise CheckpointError(
                f"{self.directory}/{step} cannot be verified: unipt-jax {meta['version']} wrote it "
                "without the checksums that this code compares; use the code that wrote it, or "
                "start anew"
            )
        altered = [name for name, value in found.items() if stored.get(name) != value]
        if altered:
            raise self._damaged(step, f"other values than were saved in {', '.join(altered)}")

    def _save(
        self,
        step: int,
        config: Mapping[str, Any],
        checksums: Mapping[str, int],
        score: float | None = None,
        **items: ocp.args.CheckpointArgs,
    ) -> None:
        meta = {
            "config": dict(config),
            "version": metadata.version("unipt-jax"),
            _SCORE: score,
            _CHECKSUMS: dict(checksums),
        }
        arguments = ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items)
        metrics = None if score is None else {_SCORE: score}
        with self._writing():
            saved = self.manager.save(step, args=arguments, metrics=metrics)
        if not saved:
            raise CheckpointError(f"{self.directory}: step {step} was not saved; it exists already")

    def _require_step(self) -> int:
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"{self.directory} holds no complete checkpoint")
        return step

    def _stored_shapes(self, step: int) -> Any:
        with self._reading(step):
            shapes = self.manager.item_metadata(step)["state"]
            if shapes is None:
                raise FileNotFoundError("state/_METADATA is missing")
            return shapes

    def _meta(self, step: int) -> Mapping[str, Any]:
        with self._reading(step):
            arguments = ocp.args.Composite(meta=ocp.args.JsonRestore())
            meta = self.manager.restore(step, args=arguments)["meta"]
            if not isinstance(meta, Mapping) or "version" not in meta:
                raise ValueError("meta/metadata does not say which version wrote it")
            return meta

    def _require_same_progress(self, stored: Any, state: TrainState, step: int) -> None:
        """Checks what else than parameters changes in training; the key's shape is its kind's."""
        parts = ("step", "opt_state", "average")
        differences = trees.shape_differences(
            {name: stored[name] for name in parts if name in stored},
            {name: getattr(state, name) for name in parts},
        )
        if differences:
            raise CheckpointError(
                f"{self.directory}/{step} holds another state of training than this version of "
                f"unipt-jax makes of the configuration: {'; '.join(differences[:3])}"
                f"{f' and {len(differences) - 3} more' if len(differences) > 3 else ''}; resume "
                f"with version {self._meta(step)['version']}, which wrote it, or start anew with "
                "--overwrite"
            )

    def _require_same(self, stored: Any, wanted: Any, step: int) -> None:
        differences = trees.shape_differences(stored, wanted)
        if differences:
            raise CheckpointError(
                f"{self.directory}/{step} does not fit the model of this configuration: "
                + "; ".join(differences)
            )


def _require_scores(directory: epath.Path) -> None:
    """Refuses a score that storage has altered: it chooses one checkpoint and removes another.

    Orbax reads all of them as it opens a directory.
    """
    steps = _finalized(directory)
    for step in steps:
        if fault := _score_fault(directory / str(step)):
            raise _damaged(directory, step, steps, fault)


def _finalized(directory: epath.Path) -> list[int]:
    """Returns the steps that Orbax takes for saved; some of them may be half removed again."""
    children = directory.iterdir() if directory.is_dir() else ()
    return sorted(
        int(child.name)
        for child in children
        # On a disk a step has its name once it is whole, in a bucket from the beginning.
        if re.fullmatch("[0-9]+", child.name) and ocp.utils.is_checkpoint_finalized(child)
    )


def _score_fault(step: epath.Path) -> str | None:
    """Returns how a whole checkpoint's score differs from what was saved; None: it does not.

    One that is being removed, or whose removal was killed, has lost the file by which Orbax knows
    it (which goes first), what it says of itself or its score with the directory: it is not judged,
    as it was removed for not being wanted. If it is restored after all, that finds the damage.
    """
    meta, metrics = step / "meta" / "metadata", step / "metrics" / "metrics"
    try:
        saved = read_json(meta)
        found = read_json(metrics)[_SCORE] if metrics.exists() else None
        if saved.get(_SCORE, found) == found:
            return None
        fault = f"{metrics} tells another score than was saved"
    except (DataError, AttributeError, LookupError, TypeError) as error:
        fault = str(error)
    whole = (step / "_CHECKPOINT_METADATA").exists() and meta.exists() and metrics.parent.is_dir()
    return fault if whole else None


def _damaged(directory: epath.Path, step: int, steps: Iterable[int], what: str) -> CheckpointError:
    others = [f"step {other}" for other in sorted(steps) if other != step]
    return CheckpointError(
        f"{directory}/{step} is damaged or cannot be read: {what}; if it stays so, take it away, "
        f"which leaves {', '.join(others) or 'none'}"
    )


def _by_itself() -> ocp.options.MultiprocessingOptions:
    """Returns what makes Orbax wait for no other process, which may have failed meanwhile."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )


def _checksum(data: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(dict(data), sort_keys=True).encode())


def _checksums(tree: Any) -> dict[str, int]:
    """Returns a number for each array that no mesh changes, but an element or their order does."""
    return {
        name: int(total) for name, total in jax.device_get(_totals(trees.flatten(tree))).items()
    }


@jax.jit
def _totals(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    def total(array: jax.Array) -> jax.Array:
        if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        bits = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")
        # From iotas, for a reshape would move the elements of an array that devices share.
        position = jnp.zeros(array.shape, jnp.uint32)
        for axis in range(array.ndim):
            stride = math.prod(array.shape[axis + 1 :])
            iota = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
            position += np.uint32(stride) * iota
        # One to one for an element in its place, so that no change to a single one is lost; the
        # bits are mixed, as the low ones of many numbers are zeros, and a product's would be too.
        mixed = bits.astype(jnp.uint32) ^ (position * np.uint32(0x9E3779B1))
        mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x7FEB352D)
        return (mixed ^ (mixed >> 15)).sum(dtype=jnp.uint32)

    return jax.tree.map(total, dict(arrays))


def _score(metrics: Mapping[str, float]) -> float:
    return metrics[_SCORE]
