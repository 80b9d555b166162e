"""Random streams depend on their names and positions alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unipt_jax.core import random

NAMES = st.sampled_from(["dropout", "masking", "order", "flip", "init"])
SEEDS = st.integers(0, 2**32 - 1)
POSITIONS = st.integers(0, 2**40)


def words(key):
    """The key's own words as a tuple."""
    return tuple(jax.random.key_data(key).tolist())


def draw(seed, name, position):
    """Four words of the host's stream."""
    return tuple(random.host_generator(seed, name, position).integers(0, 2**63, 4).tolist())


def test_a_stream_is_two_folds(key):
    # 907060870 is the CRC-32 of b"hello", from RFC 1952's polynomial (`echo -n hello | gzip`).
    expected = jax.random.fold_in(jax.random.fold_in(key, 907060870), 5)
    assert words(random.stream(key, "hello", 5)) == words(expected)


def test_every_name_and_step_has_its_own_key(key):
    keys = {
        words(random.stream(key, name, step))
        for name in ("dropout", "masking", "init")
        for step in (0, 1, 2, 2**32 - 1)
    }
    keys |= {words(random.stream(jax.random.key(1), "dropout", step)) for step in (0, 1, 2)}
    assert len(keys) == 3 * 4 + 3


def test_streams_of_two_names_are_uncorrelated(key):
    first = jax.random.normal(random.stream(key, "dropout", 3), (4096,))
    second = jax.random.normal(random.stream(key, "masking", 3), (4096,))
    # Four standard deviations of the correlation of 4096 independent pairs: 4 / sqrt(4096).
    assert abs(float(jnp.mean(first * second))) < 0.0625


def test_a_stream_is_the_same_inside_jit(key):
    traced = jax.jit(lambda step: random.stream(key, "dropout", step))(jnp.int32(11))
    assert words(traced) == words(random.stream(key, "dropout", 11))


def test_the_host_stream_keeps_its_numbers():
    """P43: a resumed run needs no saved generator; so these words may never change."""
    sequence = np.random.SeedSequence((3, 907060870, 12))
    expected = np.random.Generator(np.random.Philox(sequence)).integers(0, 2**63, 4)
    assert draw(3, "hello", 12) == tuple(expected.tolist())
    assert draw(3, "hello", 12) == tuple(expected.tolist())


@given(
    first=st.tuples(SEEDS, NAMES, POSITIONS),
    second=st.tuples(SEEDS, NAMES, POSITIONS),
)
def test_host_streams_are_equal_only_for_equal_arguments(first, second):
    assert (draw(*first) == draw(*second)) == (first == second)


@pytest.mark.parametrize("name", ["flip", "order"])
def test_neighbouring_seeds_and_positions_do_not_collide(name):
    """Not `seed + position`: (0, 1) and (1, 0) are different streams."""
    drawn = {draw(seed, name, position) for seed in range(20) for position in range(20)}
    assert len(drawn) == 400


def test_first_numbers_of_successive_positions_are_uniform():
    first = [random.host_generator(0, "flip", position).random() for position in range(2000)]
    # Four standard deviations of the mean of 2000 uniform numbers: 4 / sqrt(12 * 2000).
    assert abs(np.mean(first) - 0.5) < 0.026
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.09
