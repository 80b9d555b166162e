"""Schedule, decay mask, groups, clipping and the bound on the temperature."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training import micro
from unipt_jax.core import trees
from unipt_jax.core.sharding import make_mesh, put_batch
from unipt_jax.models import specs
from unipt_jax.training import optimizer, state


def adamw(schedule=0.1, weight_decay=0.1, clip_norm=0.0, **groups):
    return optimizer.make_optimizer(
        schedule if callable(schedule) else optax.constant_schedule(schedule),
        beta1=0.9,
        beta2=0.98,
        epsilon=1e-8,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        **groups,
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


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("none", [0.2, 1.1, 2.0, 2.0, 2.0, 2.0]),
        ("linear", [0.2, 1.1, 2.0, 2.0 - 1.9 / 4, 1.05, 0.1]),
        # Between the peak of 2 and the end of 0.1, by the cosine's height above its lowest.
        ("cosine", [0.2, 1.1, 2.0, 0.1 + 1.9 * (1 + math.cos(math.pi / 4)) / 2, 1.05, 0.1]),
    ],
)
def test_where_the_rise_starts_and_the_decay_ends(decay, expected):
    """The same steps; a tenth of the peak at the start (IRRA), a twentieth left (TBPS-CLIP)."""
    schedule = optimizer.learning_rate_schedule(
        peak=2.0, steps=10, warmup=0.2, decay=decay, start=0.1, end=0.05
    )
    values = [float(schedule(step)) for step in (0, 1, 2, 4, 6, 10)]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert float(schedule(25)) == pytest.approx(expected[-1], rel=1e-6)


def test_no_warmup_starts_at_the_peak():
    schedule = optimizer.learning_rate_schedule(peak=2.0, steps=10, warmup=0.0, decay="none")
    assert [float(schedule(step)) for step in (0, 1, 10)] == [2.0, 2.0, 2.0]


def test_only_the_intended_parameters_decay():
    """P44: a step without gradients shrinks exactly the weights, by learning rate x decay.

    P71: nor does logit_scale.
    """
    net = micro.model(logit_bias=True, pgu=micro.PGU, identities=5)
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
    assert {"logit_bias", "identity_head/bias", "pgu/foreground/bias"} <= kept
    assert {"identity_head/kernel", "pgu/dictionary", "pgu/prototypes"} <= shrunk
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


# Each parameter with its factor on the learning rate: the image encoder's 3, the text encoder's
# 0.5, 5 of what is new, and biases' 2 on top; and whether it decays.
FACTORS = {"image": 3.0, "text": 0.5, "new": 5.0, "bias": 2.0}
GROUPS = {
    "image_encoder/layers_0/mlp/fc1/kernel": (3.0, True),
    "image_encoder/layers_0/mlp/fc1/bias": (6.0, False),
    "image_encoder/layer_norm/scale": (3.0, False),
    "image_head/projection/kernel": (3.0, True),
    "text_encoder/word_embeddings": (0.5, True),
    "text_encoder/layer_norm/bias": (1.0, False),
    "text_head/projection/bias": (1.0, False),
    "mlm_head/dense/kernel": (0.5, True),
    "logit_bias": (0.5, False),  # One number, which is no bias of a layer.
    "cross_modal/mlm_head/dense/kernel": (5.0, True),
    "pgu/foreground/bias": (5.0, False),
    "text_selection/fc1/kernel": (5.0, True),
    "identity_head/kernel": (5.0, True),
    "identity_head/bias": (5.0, False),
}


def test_the_factor_of_a_path_can_be_asked_for():
    for path, (factor, _) in GROUPS.items():
        assert optimizer.rate_factor(path, FACTORS) == factor
        assert optimizer.rate_factor(path, {}) == 1.0


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_groups_equal_torchs_parameter_groups(name):
    """Ten steps of a schedule; a decay so large that coupled and decoupled part at once."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = {path: rng.normal(size=3).astype(np.float32) for path in GROUPS}
    weights = {path: torch.nn.Parameter(torch.tensor(value)) for path, value in start.items()}
    reference = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name](
        [
            {"params": [weights[path]], "weight_decay": 0.3 if decays else 0.0}
            for path, (_, decays) in GROUPS.items()
        ],
        betas=(0.9, 0.98),
        eps=1e-8,
    )
    schedule = optimizer.learning_rate_schedule(
        peak=0.02, steps=10, warmup=0.3, decay="cosine", start=0.1
    )
    tx = adamw(schedule, weight_decay=0.3, name=name, factors=FACTORS)
    params = _nested(start)
    opt_state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(10):
        gradients = {path: rng.normal(size=3).astype(np.float32) for path in GROUPS}
        for path, group in zip(GROUPS, reference.param_groups, strict=True):
            group["lr"] = GROUPS[path][0] * float(schedule(step))
            weights[path].grad = torch.tensor(gradients[path])
        reference.step()
        updates, opt_state = update(_nested(gradients), opt_state, params)
        params = optax.apply_updates(params, updates)
    found = trees.flatten(params)
    for path, weight in weights.items():
        theirs = weight.detach().numpy()
        np.testing.assert_allclose(found[path], theirs, atol=1e-5, err_msg=path)
        assert np.abs(theirs - start[path]).max() > 1e-3


def test_a_group_with_factor_0_stands_still():
    """Nor does it decay; masks and groups follow from the paths alone (P45)."""
    params = {"image_encoder": {"kernel": jnp.ones(2)}, "pgu": {"dictionary": jnp.ones(2)}}
    tx = adamw(factors={"image": 0.0})
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert not updates["image_encoder"]["kernel"].any() and updates["pgu"]["dictionary"].all()


def test_every_part_that_a_group_names_is_one_of_a_model():
    """A part under another name would silently learn as a new one does (P45)."""
    params = specs.abstract_params(micro.model(logit_bias=True, identities=5).spec)
    assert set(optimizer._GROUPS) <= params.keys()
    assert params.keys() - set(optimizer._GROUPS) == {"identity_head"}
    assert any(jax.tree.leaves(optimizer.decays(params)))


@pytest.mark.parametrize(("value", "count"), [(5000.0, 4096), (1e-3, 1_000_000), (1e15, 100)])
def test_the_norm_that_is_clipped_is_exact(value, count):
    """Of values whose squares overflow in float16, and of many small ones (P47)."""
    params = {"kernel": jnp.zeros(count)}
    tx = adamw(clip_norm=0.5)
    _, opt_state = tx.update({"kernel": jnp.full(count, value)}, tx.init(params), params)
    wanted = 0.1 * value * 0.5 / math.sqrt(count * value**2)  # By hand; the moment takes a tenth.
    found = optax.tree.get(opt_state, "mu")["kernel"]
    np.testing.assert_allclose(found, np.full(count, wanted), rtol=1e-5)


def _nested(flat):
    """Returns arrays by path as the tree that they are the leaves of."""
    tree = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = jnp.asarray(value)
    return tree


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


@pytest.mark.parametrize("start", [4.0, 6.0])
def test_logit_scale_never_exceeds_one_hundred(start):
    """P71: exp(logit_scale) stays at 100 at most, wherever it starts, and can come back."""
    tx = adamw(schedule=1.0)
    params = {"logit_scale": jnp.asarray(start), "other": jnp.asarray(4.0)}
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
