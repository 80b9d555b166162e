"""Schedule, decay mask, clipping and the bound on the temperature."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training import micro
from unipt_jax.core import trees
from unipt_jax.core.sharding import make_mesh, put_batch
from unipt_jax.training import optimizer, state


def adamw(schedule=0.1, weight_decay=0.1, clip_norm=0.0):
    return optimizer.make_optimizer(
        schedule if callable(schedule) else optax.constant_schedule(schedule),
        beta1=0.9,
        beta2=0.98,
        epsilon=1e-8,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
    )


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("none", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.75, 0.5, 0.0]),
        ("cosine", [0.0, 0.5, 1.0, (1 + math.cos(math.pi / 4)) / 2, 0.5, 0.0]),
    ],
)
def test_schedule_by_hand(decay, expected):
    """Ten steps, two of warm-up: values at steps 0, 1, 2, 4, 6 and 10."""
    schedule = optimizer.learning_rate_schedule(peak=1.0, steps=10, warmup=0.2, decay=decay)
    values = [float(schedule(step)) for step in (0, 1, 2, 4, 6, 10)]
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_no_warmup_starts_at_the_peak():
    schedule = optimizer.learning_rate_schedule(peak=2.0, steps=10, warmup=0.0, decay="none")
    assert [float(schedule(step)) for step in (0, 1, 10)] == [2.0, 2.0, 2.0]


def test_only_the_intended_parameters_decay():
    """P44: a step without gradients shrinks exactly the weights, by learning rate x decay."""
    net, _, _ = micro.parts()
    mesh = make_mesh(devices=jax.devices()[:1])
    tx = adamw(schedule=0.1, weight_decay=0.5)
    made, _ = state.create(net, put_batch(micro.batch(2), mesh), tx, seed=0, mesh=mesh)
    params = jax.tree.map(lambda leaf: jnp.ones_like(leaf), made.params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    factors = {
        path: float(leaf.mean())
        for path, leaf in trees.flatten(optax.apply_updates(params, updates)).items()
    }
    kept = {path for path, factor in factors.items() if factor == 1.0}
    shrunk = {path for path, factor in factors.items() if abs(factor - 0.95) < 1e-5}
    assert kept | shrunk == set(factors)
    assert kept == {
        path
        for path in factors
        if path.endswith("bias") or "layer_norm" in path or path == "logit_scale"
    }
    assert any(path.endswith("q_proj/kernel") for path in shrunk)


def test_ten_steps_equal_torch_adamw():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 4)).astype(np.float32)
    gradients = rng.normal(size=(10, 3, 4)).astype(np.float32)
    weight = torch.nn.Parameter(torch.tensor(start))
    reference = torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
    tx, params = adamw(), {"kernel": jnp.asarray(start)}
    opt_state = tx.init(params)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        reference.step()
        updates, opt_state = tx.update({"kernel": jnp.asarray(gradient)}, opt_state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["kernel"], weight.detach().numpy(), atol=1e-6)


def test_clip_norm_scales_the_whole_gradient_and_zero_is_off():
    """P46: 0 means no clipping, and a zero gradient gives no NaN either way."""
    params = {"kernel": jnp.zeros(2)}
    gradient = {"kernel": jnp.asarray([3.0, 4.0])}
    moments = []
    for clip_norm in (0.0, 1.0):
        tx = adamw(clip_norm=clip_norm)
        _, opt_state = tx.update(gradient, tx.init(params), params)
        moments.append(optax.tree.get(opt_state, "mu")["kernel"])
        zero, _ = tx.update(jax.tree.map(jnp.zeros_like, gradient), tx.init(params), params)
        assert np.isfinite(zero["kernel"]).all()
    np.testing.assert_allclose(moments[0], [0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(moments[1], [0.06, 0.08], rtol=1e-5)


def test_logit_scale_never_exceeds_one_hundred():
    """P71: exp(logit_scale) stays at 100 at most, and can come back."""
    tx = adamw(schedule=1.0)
    params = {"logit_scale": jnp.asarray(4.0), "other": jnp.asarray(4.0)}
    opt_state = tx.init(params)
    for _ in range(5):
        updates, opt_state = tx.update(
            {"logit_scale": jnp.asarray(-1.0), "other": jnp.asarray(-1.0)}, opt_state, params
        )
        params = optax.apply_updates(params, updates)
    assert math.exp(float(params["logit_scale"])) == pytest.approx(100, rel=1e-5)
    assert float(params["other"]) > 6
    for _ in range(20):
        updates, opt_state = tx.update(
            {"logit_scale": jnp.asarray(1.0), "other": jnp.asarray(0.0)}, opt_state, params
        )
        params = optax.apply_updates(params, updates)
    assert float(params["logit_scale"]) < 4
