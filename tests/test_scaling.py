"""What compiled programs cost: counts by hand, and the presets' step on 256 devices."""

import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from benchmarks import cost
from unipt_jax.core.sharding import make_mesh

# ---------------------------------------------------------------------------- by hand


def test_collectives_of_a_program_are_counted():
    """Each kind once, over a mesh of 4 x 2, four of them in a loop that runs five times."""
    mesh = make_mesh(4, 2)

    def turn(x, _):
        x = jax.lax.psum(x, "data")
        x = jax.lax.all_gather(x, "fsdp", tiled=True)
        x = jax.lax.psum_scatter(x, "fsdp", tiled=True)
        return jax.lax.ppermute(x, "data", [(i, (i + 1) % 4) for i in range(4)]), None

    def on_device(x, y):
        x, _ = jax.lax.scan(turn, x, None, length=5)
        # A tuple of two arrays.
        y = jax.lax.psum((y, 2.0 * y), ("data", "fsdp"))
        return jax.lax.all_to_all(x, "data", 0, 0, tiled=True), y

    split, whole = PartitionSpec(("data", "fsdp")), PartitionSpec()
    program = jax.jit(
        jax.shard_map(
            on_device, mesh=mesh, in_specs=(split, whole), out_specs=(split, whole), check_vma=False
        )
    )
    text = program.lower(jnp.zeros((64, 16)), jnp.zeros(3)).compile().as_text()
    block = 8 * 16 * 4
    # The sums and what they are of: their number depends on which of them XLA joins.
    found = cost.collectives(text)
    assert sum(it.size for it in found if it.devices == 8) == 2 * 3 * 4
    found = {(it.kind, sum(it.sizes), it.devices, it.times) for it in found if it.devices < 8}
    assert found == {
        ("all-reduce", block, 4, 5),
        ("all-gather", 2 * block, 2, 5),
        ("reduce-scatter", 2 * block, 2, 5),
        ("collective-permute", block, 2, 5),
        ("all-to-all", block, 4, 1),
    }


PROGRAM = """
HloModule jit_step

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[], bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %g = (bf16[4,8]{1,0}, bf16[8,8]{1,0}) all-gather-start(%x), replica_groups=[4,2]<=[2,4]T(1,0)
  %h = bf16[8,8]{1,0} all-gather-done(%g)
  %y = bf16[4,8]{1,0} slice(%h), slice={[0:4], [0:8]}
  ROOT %t = (s32[], bf16[4,8]{1,0}) tuple(%i, %y)
}

ENTRY %main (u: (s32[], bf16[4,8]), v: f32[6], w: f32[]) -> f32[6] {
  %u = (s32[], bf16[4,8]{1,0}) parameter(0)
  %v = f32[6]{0} parameter(1)
  %w = f32[] parameter(2)
  %l = (s32[], bf16[4,8]{1,0}) while(%u), condition=%sum, body=%body, LENGTH
  %r = (f32[6]{0}, /*index=1*/f32[]) all-reduce-start(%v, /*index=1*/%w), \
replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}, to_apply=%sum
  %d = (f32[6]{0}, f32[]) all-reduce-done(%r)
  ROOT %e = f32[6]{0} get-tuple-element(%d), index=0
}
"""


def test_of_an_asynchronous_pair_the_start_counts():
    text = PROGRAM.replace("LENGTH", 'backend_config={"known_trip_count":{"n":"3"}}')
    assert cost.collectives(text) == [
        cost.Collective("all-gather", [8 * 8 * 2], 2, 3),
        cost.Collective("all-reduce", [6 * 4, 4], 4, 1),
    ]


TPU = """
%all-reduce-scatter.1 (x: bf16[4,8]) -> bf16[2,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  ROOT %y = bf16[4,8]{1,0} all-reduce(%x), replica_groups={{0,1},{2,3}}
}

%start (a: bf16[2]) -> bf16[4] {
  %a = bf16[2]{0} parameter(0)
  ROOT %b = bf16[4]{0} all-gather(%a), replica_groups={{0,1},{2,3}}, chain_id="7"
}

%done (c: bf16[2]) -> bf16[4] {
  %c = bf16[2]{0} parameter(0)
  ROOT %d = bf16[4]{0} all-gather(%c), replica_groups={{0,1},{2,3}}, chain_id="7"
}

ENTRY %main (u: bf16[4,8], v: bf16[2]) -> bf16[4] {
  %u = bf16[4,8]{1,0} parameter(0)
  %v = bf16[2]{0} parameter(1)
  %r = bf16[2,8]{1,0} fusion(%u), kind=kCustom, calls=%all-reduce-scatter.1
  %s = bf16[4]{0} fusion(%v), kind=kCustom, calls=%start
  ROOT %t = bf16[4]{0} fusion(%v), kind=kCustom, calls=%done
}
"""


def test_what_the_compiler_for_tpus_writes_in_pieces_counts_once():
    assert cost.collectives(TPU) == [
        cost.Collective("reduce-scatter", [4 * 8 * 2], 2, 1),
        cost.Collective("all-gather", [4 * 2], 2, 1),
    ]


def test_a_loop_of_unknown_length_is_no_guess():
    with pytest.raises(ValueError, match="unknown length"):
        cost.collectives(PROGRAM.replace("LENGTH", "metadata={}"))


def test_products_count_as_often_as_they_run():
    """A loop's as often as it runs, a device's on each, and those that are computed again."""
    one = 2 * 8 * 5 * 5  # [8, 5] by [5, 5]

    def looped(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=3)[0]

    def remade(x, w):
        layer = jax.checkpoint(lambda x: jnp.tanh(jnp.tanh(x @ w) @ w))
        return jax.grad(lambda x: layer(x).sum())(x)

    x, w = jnp.zeros((8, 5)), jnp.zeros((5, 5))
    assert cost.products(jax.make_jaxpr(looped)(x, w)) == 3 * one
    # Two, the two again, and two for the gradient.
    assert cost.products(jax.make_jaxpr(remade)(x, w)) == 6 * one
    split, whole = PartitionSpec("data"), PartitionSpec()
    apart = jax.shard_map(looped, mesh=make_mesh(), in_specs=(split, whole), out_specs=split)
    assert cost.products(jax.make_jaxpr(apart)(x, w)) == 3 * one


def test_bytes_go_round_a_ring():
    for kind, sent in (
        ("all-reduce", 2 * 3 * (600 + 200) * 3 / 4),
        ("all-gather", 3 * (600 + 200) * 3 / 4),
        ("reduce-scatter", 3 * (600 + 200) * 3 / 4),
        ("all-to-all", 3 * (600 + 200) * 3 / 4),
        ("collective-permute", 3 * (600 + 200)),
    ):
        assert cost.Collective(kind, [600, 200], 4, 3).sent == pytest.approx(sent)


def test_a_step_takes_its_longest_part_and_the_links():
    chip = cost.Chip(flops=100.0, memory=1.0, bandwidth=10.0, link=2.0, host=1)
    parts = [cost.Collective("all-gather", [8], 2, 1), cost.Collective("all-reduce", [2], 2, 1)]

    def seconds(flops, accessed, *shares, overlapped):
        share = cost.Share(*shares, overlapped=overlapped)
        return cost.step_seconds(flops, accessed, parts, chip, share)

    # 6 bytes go out, 3 s; 500 FLOPs are 5 s, 70 bytes 7 s.
    assert seconds(500, 0, 1, 1, 1, overlapped=True) == pytest.approx(5)
    assert seconds(500, 70, 1, 1, 1, overlapped=True) == pytest.approx(7)
    assert seconds(100, 0, 1, 1, 1, overlapped=True) == pytest.approx(3)
    assert seconds(500, 0, 1, 1, 1, overlapped=False) == pytest.approx(5 + 3)
    assert seconds(500, 70, 0.5, 1, 0.5, overlapped=False) == pytest.approx(10 + 6)


# ---------------------------------------------------------------------------- at full size


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_papers_model_fits_256_devices():
    """The step of `devices=256`, compiled in a process that has them: memory and collectives."""
    done = subprocess.run(
        [sys.executable, "benchmarks/scaling.py", "--devices=256", "--how={}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    collectives = [cost.Collective(*it) for it in found["collectives"]]
    batch, rows = 8192, 32
    parameters = 4 * 196_491_066
    held = found["arguments"] + found["temporaries"] + found["results"]
    assert held < 16 * 2**30
    # An eighth of the parameters and of both moments, and the device's rows of the batch.
    pair = 384 * 128 * 3 + 100 * (4 + 1 + 4) + 15 * (4 + 4 + 1) + 4 + 4 + 1
    assert found["arguments"] == pytest.approx(3 * parameters / 8 + rows * pair, rel=0.01)
    # XLA counts more than products, by little.
    assert found["products"] / 256 == pytest.approx(found["counted"], rel=0.03)

    def moved(kind, *among):
        return sum(it.size for it in collectives if it.kind == kind and it.devices in among)

    # Parameters are gathered for the forward pass, some for the backward pass once more.
    assert parameters < moved("all-gather", 8) < 2 * parameters
    # Gradients are summed once within a group and, of the sums, each device's part once between
    # groups. The word table's, which two things read, is summed twice.
    words = 4 * 30522 * 768
    summed = moved("all-reduce", 8, 32, 256) + moved("reduce-scatter", 8)
    assert summed == pytest.approx(parameters * (1 + 1 / 8) + words, rel=0.05)
    # The texts' embeddings are gathered twice, for the gradient again; theirs alone is summed.
    embeddings = 2 * 4 * batch * 768
    assert moved("all-gather", 256) == pytest.approx(embeddings, rel=0.05)
    assert moved("reduce-scatter", 256) == pytest.approx(embeddings / 2, rel=0.05)
    # No B x B matrix is moved, not even in bfloat16: the largest array is the word table.
    assert max(size for it in collectives for size in it.sizes) <= max(words, embeddings / 2)
    assert words < 2 * batch * batch
    assert math.isfinite(found["accessed"])
