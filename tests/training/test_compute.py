"""How layers are computed, from a configuration to gradients on a mesh and in parts."""

import dataclasses
import re

import jax
import pytest

from tests.training import micro
from tests.training.test_step import assert_same
from unipt_jax.config import load, schema
from unipt_jax.core.errors import ConfigError
from unipt_jax.core.sharding import make_mesh, put_batch
from unipt_jax.models.compute import Compute
from unipt_jax.training import objective, run, state, step

WIDTH, MLP, LAYERS = 16, 40, 3


def gradients(compute, mesh, parts):
    """The gradient and metrics of one batch, and the program that found them."""
    net = micro.model()
    image, text = (
        dataclasses.replace(part, hidden_size=WIDTH, mlp_size=MLP, layers=LAYERS)
        for part in (net.spec.image, net.spec.text)
    )
    net = net.clone(spec=dataclasses.replace(net.spec, image=image, text=text), compute=compute)
    batch = put_batch(micro.batch(16), mesh)
    made, shardings = state.create(net, batch, micro.parts()[1], seed=1, mesh=mesh)
    aim = objective.weighted(net, schema.Loss())

    def find(params, batch):
        key = jax.random.key(0)
        if parts == 1:
            return step.whole_gradients(aim, params, batch, key)
        return step.parted_gradients(aim, params, batch, key, parts)

    with jax.set_mesh(mesh):
        quick = {"xla_backend_optimization_level": 0}
        jitted = jax.jit(find, out_shardings=(shardings.params, None), compiler_options=quick)
        compiled = jitted.lower(made.params, batch).compile()
        return jax.device_get(compiled(made.params, batch)), compiled.as_text()


@pytest.mark.slow
def test_a_batch_in_parts_over_a_mesh_gives_the_same():
    """Eight devices, each with its part of the stacked parameters: fsdp and tensor halve each."""
    plain, _ = gradients(Compute(), make_mesh(devices=jax.devices()[:1]), 1)
    found, text = gradients(Compute(True, "full", "fused"), make_mesh(2, 2, 2), 2)
    assert_same(plain, found)
    assert f"f32[{LAYERS},{WIDTH // 2},{MLP // 2}]" in text
    assert not re.search(rf"f32\[{LAYERS},({WIDTH},{MLP}|{MLP},{WIDTH})\]", text)


def _config(**changes):
    return load.load("configs/pretrain.py:demo", {"data": "none"} | changes)


def test_the_configuration_says_how():
    def model(**changes):
        config = _config(**changes)
        spec = run.build_spec(config, vocab_size=40, end_token=3, identities=0)
        return run.build_model(config, spec)

    asked = {"compute.scan": True, "compute.remat": "dots", "compute.attention": "fused"}
    default, other = model(), model(**asked, **{"model.dropout": 0.0})
    assert default.compute == Compute()
    assert other.compute == Compute(scan=True, remat="dots", attention="fused")


def test_fused_attention_and_dropout_are_refused_together():
    def spec(**changes):
        config = _config(**{"compute.attention": "fused"}, **changes)
        return run.build_spec(config, vocab_size=40, end_token=3, identities=0)

    with pytest.raises(ConfigError, match=r"compute\.attention='fused'.*model\.dropout=0\.1"):
        spec(**{"model.dropout": 0.1})
    spec(**{"model.dropout": 0.0})
    spec(**{"model.dropout": 0.1, "model.text": "clip_b16"})  # CLIP's text drops nothing.
