"""The train step: the same on any mesh, the same in parts, and it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training import micro
from unipt_jax.config import schema
from unipt_jax.core import trees
from unipt_jax.core.sharding import make_mesh, put_batch
from unipt_jax.models import specs
from unipt_jax.models.dual_encoder import DualEncoder
from unipt_jax.training import loop, metrics, objective, optimizer, state, step


def run_steps(mesh, steps=3, rows=16, **settings):
    """Returns the gradient of the first batch, the metrics of `steps` steps, and the parameters."""
    net, optimizer, train_step = micro.parts(**settings)
    batches = [micro.batch(rows, seed) for seed in range(steps)]
    batches = [put_batch(batch, mesh) for batch in batches]
    made, shardings = state.create(net, batches[0], optimizer, seed=1, mesh=mesh)
    parts = settings.get("accumulate", 1)
    aim = objective.weighted(net, schema.Loss(contrastive=1.0, mlm=1.0, negatives=0))

    def gradients(params, batch):
        if parts == 1:
            return step.whole_gradients(aim, params, batch, jax.random.key(0))[0]
        return step.parted_gradients(aim, params, batch, jax.random.key(0), parts)[0]

    with jax.set_mesh(mesh):
        first = jax.device_get(jax.jit(gradients)(made.params, batches[0]))
        jitted = loop.jit_step(train_step, shardings, mesh)
        rows_written = []
        for batch in batches:
            made, scalars = jitted(made, batch)
            rows_written.append(metrics.fetch(scalars))
    return first, rows_written, jax.device_get(made.params)


def assert_same(one, other, tolerance=1e-5):
    for (path, a), b in zip(trees.flatten(one).items(), trees.flatten(other).values(), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance, err_msg=path)


@pytest.fixture(scope="module")
def single():
    return run_steps(make_mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize(
    "shape",
    [
        (8, 1, 1),
        (2, 2, 2),
        *(pytest.param(it, marks=pytest.mark.slow) for it in ((1, 8, 1), (1, 1, 8), (4, 1, 2))),
    ],
)
def test_eight_devices_equal_one(single, shape):
    """P03, P23, P102: losses, gradients and parameters do not depend on the mesh."""
    gradients, rows, params = run_steps(make_mesh(*shape))
    assert_same(single[0], gradients)
    for one, eight in zip(single[1], rows, strict=True):
        assert one == pytest.approx(eight, abs=1e-5, rel=1e-5)
    # AdamW's first steps divide by tiny second moments, which magnifies rounding.
    assert_same(single[2], params, 1e-3)


def test_invalid_rows_and_groups_do_not_depend_on_mesh_or_parts():
    """Counts of valid rows and predictions differ from device to device and from part to part."""
    net, optimizer, _ = micro.parts()
    aim = objective.weighted(net, schema.Loss(contrastive=1.0, mlm=0.5, negatives=8))
    batch = micro.batch(16) | {"valid": np.arange(16) % 5 != 1}
    found = []
    for mesh, parts in (
        (make_mesh(devices=jax.devices()[:1]), 1),
        (make_mesh(devices=jax.devices()[:1]), 4),
        (make_mesh(4, 2, 1), 1),
        (make_mesh(4, 2, 1), 2),
    ):
        rows = put_batch(batch, mesh)
        made, _ = state.create(net, rows, optimizer, seed=1, mesh=mesh)

        def gradients(params, rows, parts=parts):
            key = jax.random.key(0)
            if parts == 1:
                return step.whole_gradients(aim, params, rows, key)
            return step.parted_gradients(aim, params, rows, key, parts)

        with jax.set_mesh(mesh):
            found.append(jax.device_get(jax.jit(gradients)(made.params, rows)))
    for other in found[1:]:
        assert_same(found[0], other)
    metrics_found = found[0][1]
    expected = metrics_found["loss/contrastive"] + 0.5 * metrics_found["loss/mlm"]
    assert float(metrics_found["loss"]) == pytest.approx(float(expected), abs=1e-6)
    assert float(metrics_found["valid_examples"]) == 13


@pytest.mark.parametrize(
    "parts", [2, *(pytest.param(it, marks=pytest.mark.slow) for it in (4, 16))]
)
def test_parts_of_a_batch_give_the_whole_batchs_gradient(single, parts):
    """P24: accumulation keeps every negative and the global MLM mean."""
    mesh = make_mesh(devices=jax.devices()[:1])
    gradients, rows, _ = run_steps(mesh, accumulate=parts)
    assert_same(single[0], gradients)
    for whole, parted in zip(single[1], rows, strict=True):
        assert whole == pytest.approx(parted, abs=1e-4, rel=1e-4)


def test_parts_are_clipped_as_one_and_count_as_one_step():
    """P24: the moments that a clipped gradient leaves, and the schedule, know nothing of parts."""

    def loss(features, batch, key):
        return jnp.square(features["row"].sum()), {}  # Which couples all rows.

    aim = objective.Objective(
        lambda params, batch, key: {"row": batch["row"] @ params["kernel"]}, loss
    )
    rows = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    schedule = optimizer.learning_rate_schedule(peak=1e-2, steps=100, warmup=0.1, decay="none")
    adamw = optimizer.make_optimizer(
        schedule, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0, clip_norm=0.01
    )
    moments = []
    for parts in (1, 4):
        train_step = step.make_train_step(
            objective=aim, optimizer=adamw, schedule=schedule, accumulate=parts
        )
        params = {"kernel": jnp.ones(3)}
        made = state.TrainState(
            jnp.int32(0), params, adamw.init(params), average=None, key=jax.random.key(0)
        )
        for _ in range(2):
            made, scalars = jax.jit(train_step)(made, {"row": rows})
        moments.append(optax.tree.get(made.opt_state, "mu")["kernel"])
        assert int(made.step) == 2 and float(scalars["learning_rate"]) == pytest.approx(1e-3)
    # The gradient's direction is that of the rows' sum; twice 0.01 of it, decayed by 0.9.
    direction = rows.sum(axis=0) / np.linalg.norm(rows.sum(axis=0))
    sign = np.sign(rows.sum())
    for moment in moments:
        np.testing.assert_allclose(moment, sign * 0.0019 * direction, rtol=1e-4)


def test_parts_on_eight_devices(single):
    gradients, _, _ = run_steps(make_mesh(4, 2, 1), accumulate=2)
    assert_same(single[0], gradients)


def test_parts_draw_the_negatives_of_the_whole_batch():
    """Fine-tuning: classifiers of parts, and a ranking loss that draws its negatives by the key."""
    net = micro.model(pgu=micro.PGU, identities=6, mlm=False, temperature="none")
    how = schema.Loss(
        contrastive=0.0, mlm=0.0, identity=0.5, ranking=1.0, pgu=0.7, ranking_margin=1.0
    )
    aim = objective.weighted(net, how)
    batch = micro.batch(12) | {"identity": np.arange(12, dtype=np.int32) % 6}
    batch |= {"valid": np.arange(12) != 7}
    batch = put_batch(batch, make_mesh(devices=jax.devices()[:1]))
    # Away from the start, where all embeddings are alike and so are all negatives.
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32),
        specs.abstract_params(net.spec),
    )
    whole = jax.jit(lambda key: step.whole_gradients(aim, params, batch, key))
    parted = jax.jit(lambda key: step.parted_gradients(aim, params, batch, key, 4))
    (want, metrics_found), (_, others) = (whole(jax.random.key(seed)) for seed in (0, 1))
    have, parted_metrics = parted(jax.random.key(0))
    assert_same(want, have)
    assert_same(metrics_found, parted_metrics)
    assert any(leaf.any() for leaf in jax.tree.leaves(have["pgu_identity_head"]))
    for name in ("loss/ranking", "loss/pgu_ranking"):  # Other draws are other losses.
        assert abs(metrics_found[name] - others[name]) > 1e-4


def test_the_average_follows_the_steps():
    """The step hands its decay on; nothing but the average knows of it."""
    mesh = make_mesh(devices=jax.devices()[:1])
    batch, found = put_batch(micro.batch(), mesh), []
    for ema in (0.0, 0.1):
        net, optimizer, train_step = micro.parts(ema=ema)
        made, _ = state.create(net, batch, optimizer, seed=0, mesh=mesh, ema=ema)
        found.append((made.params, jax.jit(train_step)(made, batch)[0]))
    (_, plain), (start, averaged) = found
    assert plain.average is None
    assert_same(plain.params, averaged.params, 0)
    mean = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, start, averaged.params)
    assert_same(averaged.average, mean, 1e-6)


def test_micro_batches_alone_would_have_given_another_gradient(single):
    """What accumulation must not be: the mean of the parts' own losses, with fewer negatives."""
    net, optimizer, _ = micro.parts()
    mesh = make_mesh(devices=jax.devices()[:1])
    whole = micro.batch(16, 0)
    made, _ = state.create(net, put_batch(whole, mesh), optimizer, seed=1, mesh=mesh)
    aim = objective.weighted(net, schema.Loss(contrastive=1.0, mlm=1.0, negatives=0))
    halves = [{name: rows[at : at + 8] for name, rows in whole.items()} for at in (0, 8)]
    gradients = jax.jit(
        lambda batch: step.whole_gradients(aim, made.params, batch, jax.random.key(0))[0]
    )
    grads = [jax.device_get(gradients(half)) for half in halves]
    naive = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), naive, single[0])
    assert max(jax.tree.leaves(differences)) > 1e-3


def test_rows_that_are_not_valid_change_nothing():
    """A quarantined row is as if it were absent: same gradient with any content in it."""
    mesh = make_mesh(devices=jax.devices()[:1])
    net, optimizer, _ = micro.parts()
    aim = objective.weighted(net, schema.Loss(contrastive=1.0, mlm=1.0, negatives=0))
    full = micro.batch(8)
    full["valid"] = np.arange(8) < 6
    short = {name: rows[:6] for name, rows in full.items()}
    made, _ = state.create(net, put_batch(full, mesh), optimizer, seed=0, mesh=mesh)
    gradients = jax.jit(
        lambda batch: step.whole_gradients(aim, made.params, batch, jax.random.key(0))
    )
    with_rows, without = jax.device_get((gradients(full), gradients(short)))
    # Programs of eight and of six rows add in other orders, each processor in its own.
    assert_same(with_rows[0], without[0])
    assert float(with_rows[1]["loss"]) == pytest.approx(float(without[1]["loss"]), abs=1e-5)
    assert float(with_rows[1]["valid_examples"]) == 6


def test_dropout_follows_seed_and_step_alone():
    """The same state and batch give the same step; another step draws other units."""
    mesh = make_mesh(devices=jax.devices()[:1])
    net, optimizer, train_step = micro.parts(dropout=0.5, rate=1e-9)
    batch = put_batch(micro.batch(), mesh)
    made, _ = state.create(net, batch, optimizer, seed=1, mesh=mesh)
    jitted, losses = jax.jit(train_step), []
    for state_in in (made, made, jitted(made, batch)[0]):
        losses.append(float(jitted(state_in, batch)[1]["loss"]))
    assert losses[0] == losses[1]
    assert abs(losses[0] - losses[2]) > 1e-3


def test_learning_rate_is_that_of_the_step_taken():
    mesh = make_mesh(devices=jax.devices()[:1])
    _, rows, _ = run_steps(mesh, steps=4, warmup=0.02, rate=0.5)
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.0, 0.25, 0.5, 0.5])


def test_loss_falls():
    mesh = make_mesh(devices=jax.devices()[:1])
    net, optimizer, train_step = micro.parts(rate=5e-3)
    batch = put_batch(micro.batch(), mesh)
    made, shardings = state.create(net, batch, optimizer, seed=0, mesh=mesh)
    jitted = loop.jit_step(train_step, shardings, mesh)
    losses = []
    with jax.set_mesh(mesh):
        for _ in range(100):
            made, scalars = jitted(made, batch)
            losses.append(float(scalars["loss"]))
    assert losses[-1] < 0.3 * losses[0]
    assert int(made.step) == 100


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_are_float32_whatever_the_model_computes_in(parts):
    """In bfloat16 their norm would lose its small terms, in float16 overflow (P47)."""
    net = DualEncoder(micro.model().spec, dtype=jnp.bfloat16)
    aim = objective.weighted(net, schema.Loss(contrastive=1.0, mlm=1.0))

    def gradients(params, batch):
        if parts == 1:
            return step.whole_gradients(aim, params, batch, jax.random.key(0))[0]
        return step.parted_gradients(aim, params, batch, jax.random.key(0), parts)[0]

    found = jax.eval_shape(gradients, specs.abstract_params(net.spec), micro.batch(4))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
