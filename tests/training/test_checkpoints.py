"""Checkpoints: exact, whole, and readable on any mesh."""

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import micro
from unipt_jax.core import trees
from unipt_jax.core.errors import CheckpointError, SaveError
from unipt_jax.core.sharding import make_mesh, put_batch
from unipt_jax.training import checkpoints as checkpoints_module
from unipt_jax.training import state
from unipt_jax.training.checkpoints import Checkpoints


def make(mesh, seed=0, net=None, ema=0.0):
    default, optimizer, _ = micro.parts()
    example = put_batch(micro.batch(), mesh)
    return state.create(net or default, example, optimizer, seed=seed, mesh=mesh, ema=ema)


def at_step(made, step):
    """The state at a step, whose parameters all equal the step."""
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, step), made.params)
    return made.replace(step=jnp.int32(step), params=params)


def steps_on_disk(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def values(params):
    return {float(value) for leaf in jax.tree.leaves(params) for value in np.unique(leaf)}


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def host(tree):
    def plain(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return {path: plain(leaf) for path, leaf in trees.flatten(tree).items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run directory written from eight devices, and the arrays in it."""
    workdir = tmp_path_factory.mktemp("run")
    made, _ = make(make_mesh(2, 2, 2), seed=3)
    made = made.replace(step=made.step + 7)
    with Checkpoints.open(workdir, keep=2) as checkpoints:
        checkpoints.save(made, data={"next_batch": 7}, config={"seed": 3})
    return workdir, host(made)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),
        (2, 2, 2),
        *(pytest.param(it, marks=pytest.mark.slow) for it in ((8, 1, 1), (1, 4, 2))),
    ],
)
def test_restores_bit_for_bit_on_any_mesh(saved, shape):
    """P36, P42: written from 2x2x2 devices, with a typed random key in the state."""
    workdir, arrays = saved
    mesh = one_device() if shape == (1, 1, 1) else make_mesh(*shape)
    fresh, shardings = make(mesh, seed=99)
    with Checkpoints.open(workdir, keep=2) as checkpoints:
        restored, data = checkpoints.restore(fresh, shardings)
    assert data == {"next_batch": 7}
    assert_equal(host(restored), arrays)
    for leaf, sharding in zip(
        jax.tree.leaves(restored.params), jax.tree.leaves(shardings.params), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_parameters_alone_are_read_for_inference(saved):
    workdir, arrays = saved
    abstract = jax.eval_shape(lambda params: params, make(one_device())[0].params)
    with Checkpoints.open_read_only(workdir) as checkpoints:
        params = checkpoints.restore_params(abstract)
    stored = {
        path.removeprefix("params/"): leaf
        for path, leaf in arrays.items()
        if path.startswith("params/")
    }
    assert_equal(host(params), stored)


def test_every_difference_of_another_model_is_named(saved):
    workdir, _ = saved
    fresh, shardings = make(one_device(), net=micro.model(temperature="none"))
    with (
        Checkpoints.open(workdir, keep=2) as checkpoints,
        pytest.raises(CheckpointError, match="logit_scale: unexpected"),
    ):
        checkpoints.restore(fresh, shardings)
    wider = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leaf.shape, 2), leaf.dtype), fresh)
    with (
        Checkpoints.open_read_only(workdir) as checkpoints,
        pytest.raises(CheckpointError, match=r"class_token: shape \(16,\), expected \(16, 2\)"),
    ):
        checkpoints.restore_params(wider.params)


def test_donating_the_state_while_it_is_saved_is_safe(tmp_path):
    """P79: each checkpoint holds the state of its own step, though the memory is reused."""
    made, _ = make(one_device())
    double = jax.jit(
        lambda s: s.replace(step=s.step + 1, params=jax.tree.map(lambda x: x * 2, s.params)),
        donate_argnums=0,
    )
    expected = {}
    with Checkpoints.open(tmp_path, keep=9) as checkpoints:
        for _ in range(3):
            made = double(made)
            expected[int(made.step)] = host(made.params)
            checkpoints.save(made, data={"next_batch": int(made.step)}, config={})
    for step in sorted(expected):
        with Checkpoints.open_read_only(tmp_path) as checkpoints:
            assert checkpoints.latest_step() == 3
            stored = checkpoints.manager.restore(step)["state"]["params"]
        assert_equal(host(stored), expected[step])


def test_latest_ones_are_kept(tmp_path):
    made, _ = make(one_device())
    with Checkpoints.open(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            made = made.replace(step=made.step + 1)
            checkpoints.save(made, data={"next_batch": step}, config={})
    assert steps_on_disk(tmp_path) == [2, 3]


def test_without_a_score_the_latest_is_taken(tmp_path):
    made, shardings = make(one_device())
    with Checkpoints.open(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(at_step(made, step), data={}, config={})
    with Checkpoints.open_read_only(tmp_path) as checkpoints:
        assert checkpoints.best_step() is None and checkpoints.score(3) is None
        assert values(checkpoints.restore_params()) == {3.0}
        assert int(checkpoints.restore(made, shardings)[0].step) == 3


def test_the_best_by_score_stays_beside_the_latest(tmp_path):
    """Of equals the latest, as Orbax keeps them."""
    made, shardings = make(one_device())
    with Checkpoints.open(tmp_path, keep=2) as checkpoints:
        for step, score in enumerate([50.0, 90.0, 90.0, 10.0, 20.0], 1):
            checkpoints.save(at_step(made, step), data={"next_batch": step}, config={}, score=score)
    assert steps_on_disk(tmp_path) == [3, 4, 5]
    with Checkpoints.open_read_only(tmp_path) as checkpoints:
        assert (checkpoints.best_step(), checkpoints.latest_step()) == (3, 5)
        assert [checkpoints.score(step) for step in (3, 4, 5)] == [90.0, 10.0, 20.0]
        assert values(checkpoints.restore_params()) == {3.0}

    with Checkpoints.open(tmp_path, keep=2) as checkpoints:
        restored, data = checkpoints.restore(made, shardings)  # To go on: from the latest.
        assert int(restored.step) == 5 and data == {"next_batch": 5}
        assert values(restored.params) == {5.0}
        checkpoints.save(at_step(made, 6), data={}, config={}, score=80.0)
    assert steps_on_disk(tmp_path) == [3, 5, 6]
    with Checkpoints.open(tmp_path, keep=1) as checkpoints:
        checkpoints.save(at_step(made, 7), data={}, config={}, score=90.5)
        checkpoints.save(at_step(made, 8), data={}, config={}, score=0.0)
    assert steps_on_disk(tmp_path) == [7, 8]
    with Checkpoints.open_read_only(tmp_path) as checkpoints:
        assert values(checkpoints.restore_params()) == {7.0}


def test_the_average_is_kept_and_what_others_load(tmp_path):
    """Restored bit for bit on another mesh; without one, nothing is stored for it."""
    made, _ = make(make_mesh(2, 2, 2), seed=3, ema=0.9)
    average = jax.tree.map(lambda leaf: 2 * leaf + 1, made.average)
    made = made.replace(step=made.step + 7, average=average)
    for name, kept in (("with", made), ("without", made.replace(average=None))):
        with Checkpoints.open(tmp_path / name, keep=2) as checkpoints:
            checkpoints.save(kept, data={}, config={})
    fresh, shardings = make(one_device(), seed=99, ema=0.9)
    abstract = jax.eval_shape(lambda params: params, fresh.params)
    with Checkpoints.open_read_only(tmp_path / "with") as checkpoints:
        restored, _ = checkpoints.restore(fresh, shardings)
        assert_equal(host(restored), host(made))
        for given in (None, abstract):
            assert_equal(host(checkpoints.restore_params(given)), host(average))
    with Checkpoints.open_read_only(tmp_path / "without") as checkpoints:
        assert not checkpoints.manager.restore(7)["state"].get("average")
        assert_equal(host(checkpoints.restore_params()), host(made.params))


def test_a_step_that_exists_is_not_passed_over_in_silence(tmp_path):
    """P41."""
    made, _ = make(one_device())
    with Checkpoints.open(tmp_path, keep=2) as checkpoints:
        checkpoints.save(made, data={}, config={})
        checkpoints.wait()
        with pytest.raises(CheckpointError, match="step 0 was not saved"):
            checkpoints.save(made, data={}, config={})


def test_remains_of_a_killed_save_are_not_a_checkpoint(saved, tmp_path):
    """P38."""
    (tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp-0" / "state").mkdir(parents=True)
    with Checkpoints.open(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step() is None
        made, shardings = make(one_device())
        with pytest.raises(CheckpointError, match="no complete checkpoint"):
            checkpoints.restore(made, shardings)
        made = made.replace(step=made.step + 8)
        checkpoints.save(made, data={"next_batch": 8}, config={})
        checkpoints.wait()
        assert checkpoints.latest_step() == 8


# Orbax leaves coroutines behind when it raises.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_damage_to_the_newest_checkpoint_passes(tmp_path):
    """Cut short or with one bit altered, each of its files is missed, or its values are the same.

    Orbax alone takes an altered bit of a parameter for its value.
    """
    made = state.TrainState(
        step=jnp.int32(0),
        params={"kernel": jax.random.normal(jax.random.key(1), (64, 64))},
        opt_state={"count": jnp.int32(5)},
        average=None,
        key=jax.random.key(0),
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, made)
    with Checkpoints.open(tmp_path / "whole", keep=2) as checkpoints:
        for step in (1, 2):
            made = made.replace(step=jnp.int32(step))
            checkpoints.save(made, data={"next_batch": step}, config={}, score=float(step))
    files = [path for path in (tmp_path / "whole/checkpoints/2").rglob("*") if path.is_file()]
    arrays = max((file for file in files if file.parent.name == "d"), key=os.path.getsize)
    rng, told = np.random.default_rng(0), 0
    for number, file in enumerate([*files, *files, *[arrays] * 8]):
        content = bytearray(file.read_bytes())
        if number < len(files):
            del content[len(content) // 2 :]
        else:
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        damaged = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", damaged)
        (damaged / file.relative_to(tmp_path / "whole")).write_bytes(content)
        try:
            with Checkpoints.open_read_only(damaged) as checkpoints:
                restored, data = checkpoints.restore(made, shardings)
        except CheckpointError as error:
            assert str(damaged / "checkpoints") in str(error) and "is damaged" in str(error)
            told += 1
        else:
            assert data == {"next_batch": 2}
            assert_equal(host(restored), host(made))
    assert told >= 4


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_values_in_another_order_are_noticed(tmp_path, kind):
    """Two rows have changed places; low bits of their elements are all zeros."""
    rows = np.ones((4, 256), jnp.dtype(kind))
    rows[2] = 2
    for name, order in (("one", [0, 1, 2, 3]), ("other", [2, 1, 0, 3])):
        with Checkpoints.open(tmp_path / name, keep=1) as checkpoints:
            checkpoints.save_params({"kernel": rows[order]}, config={})
    take_arrays(tmp_path / "other/checkpoints/0", tmp_path / "one/checkpoints/0")
    with (
        Checkpoints.open_read_only(tmp_path / "one") as checkpoints,
        pytest.raises(CheckpointError, match="other values than were saved in params/kernel"),
    ):
        checkpoints.restore_params()


def take_arrays(source, destination):
    """Replaces the arrays of a checkpoint by those of another."""
    shutil.rmtree(destination / "state")
    shutil.copytree(source / "state", destination / "state")


def tiny(step=0, rows=4, **opt_state):
    """A state that needs no compilation, and how it lies on one device."""
    made = state.TrainState(
        step=jnp.int32(step),
        params={"kernel": jnp.ones((rows, 4))},
        opt_state=opt_state or {"count": jnp.int32(5)},
        average=None,
        key=jax.random.key(0),
    )
    return made, jax.tree.map(lambda leaf: leaf.sharding, made)


@pytest.mark.parametrize("content", ['{"score": 10.5}', '{"scorf": 90.5}', "[90.5]", "{", None])
def test_an_altered_score_is_told(tmp_path, content):
    """Else another checkpoint would be the best, and the best one would be removed."""
    with Checkpoints.open(tmp_path, keep=1) as checkpoints:
        for step, score in ((1, 90.5), (2, 20.5)):
            checkpoints.save(tiny(step)[0], data={}, config={}, score=score)
    file = tmp_path / "checkpoints/1/metrics/metrics"
    assert json.loads(file.read_text()) == {"score": 90.5}
    file.unlink() if content is None else file.write_text(content)
    for go in (
        lambda: Checkpoints.open_read_only(tmp_path),
        lambda: Checkpoints.open(tmp_path, keep=1),
    ):
        with pytest.raises(CheckpointError, match=r"/1 is damaged.* which leaves step 2$"):
            go()
    assert steps_on_disk(tmp_path) == [1, 2]


REMOVED = ("_CHECKPOINT_METADATA", "meta", "meta/metadata", "metrics")


@pytest.mark.parametrize("lost", [*REMOVED, "."])
def test_a_half_removed_step_hinders_nobody(tmp_path, monkeypatch, lost):
    """A kill, or a reader beside a run, in the midst of the removal of an old step (P38)."""
    with Checkpoints.open(tmp_path, keep=3) as checkpoints:
        for step in (1, 2):
            checkpoints.save(tiny(step)[0], data={}, config={}, score=float(step))
    old = tmp_path / "checkpoints/1"
    (old / "metrics/metrics").unlink()
    if lost == ".":  # All of it, after it was seen.
        read = checkpoints_module.read_json
        monkeypatch.setattr(
            checkpoints_module,
            "read_json",
            lambda path: (shutil.rmtree(old, ignore_errors=True), read(path))[1],
        )
    elif (old / lost).is_dir():
        shutil.rmtree(old / lost)
    else:
        (old / lost).unlink()
    with Checkpoints.open_read_only(tmp_path) as checkpoints:
        assert checkpoints.best_step() == checkpoints.latest_step() == 2
        assert checkpoints.restore_params()["kernel"].shape == (4, 4)
    with Checkpoints.open(tmp_path, keep=1) as checkpoints:
        assert int(checkpoints.restore(*tiny())[0].step) == 2
        checkpoints.save(tiny(3)[0], data={}, config={}, score=3.0)
    assert steps_on_disk(tmp_path) == [3]


def test_a_step_that_goes_while_a_reader_looks_is_not_missed(tmp_path, monkeypatch):
    """Orbax asks for its age when it has gone (P38)."""
    with Checkpoints.open(tmp_path, keep=3) as checkpoints:
        for step in (1, 2):
            checkpoints.save(tiny(step)[0], data={}, config={})
    real = checkpoints_module.ocp.CheckpointManager

    def late(*arguments, **options):
        if (tmp_path / "checkpoints/1").exists():
            shutil.rmtree(tmp_path / "checkpoints/1")
            raise FileNotFoundError("checkpoints/1")
        return real(*arguments, **options)

    monkeypatch.setattr(checkpoints_module.ocp, "CheckpointManager", late)
    with Checkpoints.open_read_only(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 2


# Orbax leaves coroutines behind when it raises.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_newest_without_its_meta_is_called_damaged(tmp_path):
    """It is the one to be restored, so it is not passed over."""
    with Checkpoints.open(tmp_path, keep=3) as checkpoints:
        for step in (1, 2):
            checkpoints.save(tiny(step)[0], data={}, config={})
    meta = tmp_path / "checkpoints/2/meta/metadata"
    for content in ("[]", "{}", None):
        meta.unlink() if content is None else meta.write_text(content)
        with (
            pytest.raises(CheckpointError, match=r"/2 is damaged.* which leaves step 1$"),
            Checkpoints.open_read_only(tmp_path) as checkpoints,
        ):
            checkpoints.restore(*tiny())


def test_another_versions_state_of_training_is_not_called_damaged(tmp_path):
    """What differs is named, and the version that wrote it."""
    with Checkpoints.open(tmp_path, keep=1) as checkpoints:
        checkpoints.save(tiny()[0], data={}, config={})
        checkpoints.wait()
        for there in ({"count": jnp.int32(0), "mu": jnp.ones(2)}, {"count": jnp.ones(3)}):
            named = "mu: missing" if "mu" in there else r"count: shape \(\), expected \(3,\)"
            with pytest.raises(CheckpointError, match=rf"opt_state/{named}; resume with version 0"):
                checkpoints.restore(*tiny(**there))


def test_a_restored_state_gives_its_memory_to_the_next(tmp_path):
    """Its first step takes no more memory than any other (P81)."""
    with Checkpoints.open(tmp_path, keep=1) as checkpoints:
        checkpoints.save(tiny()[0], data={}, config={})
        checkpoints.wait()
        restored, _ = checkpoints.restore(*tiny())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # JAX's, of what was not usable.
        jax.jit(lambda made: jax.tree.map(lambda x: x, made), donate_argnums=0)(restored)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(restored.params | restored.opt_state))


RESTORE = """
import sys, jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 1)
from tests.training.test_checkpoints import host, tiny
from unipt_jax.training.checkpoints import Checkpoints
with Checkpoints.open(sys.argv[1], keep=1) as checkpoints:
    restored, _ = checkpoints.restore(*tiny(rows=8))
with Checkpoints.open_read_only(sys.argv[1]) as checkpoints:
    params = checkpoints.restore_params()
drawn = jax.random.uniform(restored.key, (9,))
print(jax.device_count(), int(restored.step), drawn.tobytes().hex())
print(host(restored.params)["kernel"].tobytes().hex(), host(params)["kernel"].tobytes().hex())
"""


def test_another_process_with_fewer_devices_goes_on_exactly(tmp_path):
    """The parameters, and what is drawn from the random key, to go on and to encode (P36, P42)."""
    made, _ = tiny(7)
    kernel = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    mesh = make_mesh(2, 2, 2)
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    made = made.replace(
        params={"kernel": jax.device_put(kernel, spread)}, key=jax.random.key(12345)
    )
    with Checkpoints.open(tmp_path, keep=1) as checkpoints:
        checkpoints.save(made, data={}, config={})
    done = subprocess.run(
        [sys.executable, "-c", RESTORE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    drawn = np.asarray(jax.random.uniform(made.key, (9,))).tobytes().hex()
    found = kernel.tobytes().hex()
    assert done.stdout.splitlines()[-2:] == [f"1 7 {drawn}", f"{found} {found}"]


def test_all_that_a_damaged_one_leaves_are_named(tmp_path):
    """The best one is damaged, which is not the last."""
    made, _ = make(one_device())
    with Checkpoints.open(tmp_path, keep=3) as checkpoints:
        for step, score in ((2, 10.0), (4, 90.0), (10, 20.0)):
            checkpoints.save(at_step(made, step), data={}, config={}, score=score)
    take_arrays(tmp_path / "checkpoints/2", tmp_path / "checkpoints/4")
    with (
        Checkpoints.open_read_only(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match=r"/4 is damaged.* which leaves step 2, step 10$"),
    ):
        checkpoints.restore_params()
    for step in (2, 10):
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    with (
        Checkpoints.open_read_only(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match=r"/4 is damaged.* which leaves none$"),
    ):
        checkpoints.restore_params()


def test_one_without_checksums_is_not_called_damaged(tmp_path):
    with Checkpoints.open(tmp_path, keep=1) as checkpoints:
        checkpoints.save_params({"kernel": np.ones(3)}, config={})
    (meta,) = (tmp_path / "checkpoints/0/meta").glob("metadata")
    meta.write_text(json.dumps({"config": {}, "version": "0.0.7"}))
    with (
        Checkpoints.open_read_only(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match=r"cannot be verified: unipt-jax 0\.0\.7 wrote it"),
    ):
        checkpoints.restore_params()


def test_a_directory_without_checkpoints_is_left_as_it_is(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        Checkpoints.open_read_only(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_failed_write_is_raised(tmp_path, monkeypatch, number):
    """P37: what goes wrong in the background ends the run, with the place and what it was."""
    made, _ = tiny()
    checkpoints = Checkpoints.open(tmp_path, keep=2)

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(type(tmp_path), "rename", fail)
    monkeypatch.setattr("os.rename", fail)
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(
        SaveError, match=rf"^{tmp_path}/checkpoints: .*is none, .*{os.strerror(number)}"
    ):
        checkpoints.save(made, data={}, config={})
        checkpoints.wait()
    monkeypatch.undo()
    checkpoints.manager.close()
