"""Checkpoints: state, the data pipeline's position and the configuration, whole or absent.

Orbax writes each step aside and renames it, so a killed run leaves its last complete checkpoint
and remains of the next that are never taken for one.
"""

import dataclasses
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from unipt_jax.core import trees
from unipt_jax.core.errors import CheckpointError
from unipt_jax.training.state import TrainState

DIRECTORY = "checkpoints"


def is_begun(workdir: epath.PathLike) -> bool:
    """Tells whether a work directory holds a complete checkpoint, from which its run goes on."""
    if not (epath.Path(workdir) / DIRECTORY).is_dir():
        return False
    with Checkpoints.open_read_only(workdir) as checkpoints:
        return checkpoints.latest_step() is not None


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one work directory, `checkpoints/<step>` each; the latest `keep` stay."""

    manager: ocp.CheckpointManager
    directory: epath.Path

    @classmethod
    def open(cls, workdir: epath.PathLike, *, keep: int) -> "Checkpoints":
        """Opens (and makes) `workdir/checkpoints` for a run that adds to it."""
        return cls._open(workdir, ocp.CheckpointManagerOptions(max_to_keep=keep, create=True))

    @classmethod
    def open_read_only(cls, workdir: epath.PathLike) -> "Checkpoints":
        """Opens `workdir/checkpoints` and changes nothing in it.

        Raises:
            CheckpointError: there is no such directory.
        """
        if not (epath.Path(workdir) / DIRECTORY).is_dir():
            raise CheckpointError(f"{workdir} holds no {DIRECTORY}; name the directory of a run")
        return cls._open(
            workdir,
            ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0),
        )

    @classmethod
    def _open(cls, workdir: epath.PathLike, options: ocp.CheckpointManagerOptions) -> "Checkpoints":
        directory = epath.Path(workdir).absolute() / DIRECTORY
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "data": ocp.JsonCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        }
        manager = ocp.CheckpointManager(directory, item_handlers=handlers, options=options)
        return cls(manager, directory)

    def latest_step(self) -> int | None:
        """Returns the newest complete step, or None."""
        return self.manager.latest_step()

    def save(
        self, state: TrainState, *, data: Mapping[str, Any], config: Mapping[str, Any]
    ) -> None:
        """Starts writing `state` (copied first, so it may be donated); `wait` sees it through.

        Raises:
            CheckpointError: the step was not taken, for it exists or an earlier write failed.
        """
        self._save(
            int(state.step),
            config,
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(dict(data)),
        )

    def restore(
        self, state: TrainState, shardings: TrainState
    ) -> tuple[TrainState, Mapping[str, Any]]:
        """Returns the latest checkpoint, laid out by `shardings`, and its pipeline state.

        `state` gives the structure, shapes and types; any mesh may have written the checkpoint.

        Raises:
            CheckpointError: there is none, or it holds other parameters (all differences listed).
        """
        step = self._require_step()
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            shardings,
        )
        self._require_same(self._stored_shapes(step)["params"], state.params, step)
        restored = self.manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["data"]

    def save_params(self, params: Any, *, config: Mapping[str, Any]) -> None:
        """Writes parameters alone, as step 0, for others to start from or to encode with.

        Raises:
            CheckpointError: the step was not taken, for it exists.
        """
        self._save(0, config, state=ocp.args.StandardSave({"params": params}))

    def restore_params(self, abstract: Any = None) -> Any:
        """Returns the latest checkpoint's parameters alone, on this process's first device.

        `abstract` gives the structure, shapes and types that they must have; None takes any.

        Raises:
            CheckpointError: there is none, or it holds other parameters (all differences listed).
        """
        step = self._require_step()
        stored = self._stored_shapes(step)["params"]
        if abstract is None:
            abstract = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), stored
            )
        self._require_same(stored, abstract, step)
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        arguments = jax.tree.map(
            lambda leaf: ocp.ArrayRestoreArgs(sharding=sharding, dtype=leaf.dtype), abstract
        )
        with ocp.PyTreeCheckpointer() as reader:
            restored = reader.restore(
                self.directory / str(step) / "state",
                args=ocp.args.PyTreeRestore(
                    item={"params": abstract},
                    restore_args={"params": arguments},
                    partial_restore=True,
                ),
            )
        return restored["params"]

    def wait(self) -> None:
        """Returns when everything is on disk; raises what went wrong in the background."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the directory."""
        self.wait()
        self.manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _save(self, step: int, config: Mapping[str, Any], **items: ocp.args.CheckpointArgs) -> None:
        meta = {"config": dict(config), "version": metadata.version("unipt-jax")}
        saved = self.manager.save(
            step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items)
        )
        if not saved:
            raise CheckpointError(f"{self.directory}: step {step} was not saved; it exists already")

    def _require_step(self) -> int:
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"{self.directory} holds no complete checkpoint")
        return step

    def _stored_shapes(self, step: int) -> Any:
        return self.manager.item_metadata(step)["state"]

    def _require_same(self, stored: Any, wanted: Any, step: int) -> None:
        differences = trees.shape_differences(stored, wanted)
        if differences:
            raise CheckpointError(
                f"{self.directory}/{step} does not fit the model of this configuration: "
                + "; ".join(differences)
            )
