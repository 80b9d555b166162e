"""Batches by length: each text once, none cut, and no batch longer than it must be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unipt_jax.data.buckets import BUCKETS, bucket, by_length


@pytest.mark.parametrize(
    ("longest", "buckets", "full", "expected"),
    [
        (1, (8, 16), 24, 8),
        (8, (8, 16), 24, 8),
        (9, (16, 8), 24, 16),
        (17, (8, 16), 24, 24),
        (90, (8, 16), 24, 24),  # Cut to 24.
        (17, (), 24, 24),
        (20, (32,), 24, 24),  # Never longer than texts can be.
    ],
)
def test_the_smallest_bucket_that_holds_a_length(longest, buckets, full, expected):
    assert bucket(longest, buckets, full) == expected


def test_batches_by_hand():
    found = by_length(np.array([5, 30, 300, 24, 25, 64, 30]), 2, 100)
    found = {length: rows.tolist() for length, rows in found.items()}
    # 24 tokens share a batch with 25.
    assert found == {100: [2, 5], 32: [1, 6, 4, 3], 24: [0]}


def test_nothing_makes_no_batches():
    assert by_length(np.zeros(0, np.int32), 4, 100) == {}


@given(
    st.lists(st.integers(1, 120), max_size=60),
    st.integers(1, 9),
    st.sampled_from([10, 24, 30, 64, 100]),
)
def test_batches_of_any_lengths(lengths, size, full):
    found = by_length(np.array(lengths, np.int32), size, full)
    order = [row for rows in found.values() for row in rows.tolist()]
    assert sorted(order) == list(range(len(lengths)))
    # Longest first, and as they were given where they are as long.
    assert order == sorted(order, key=lambda row: (-lengths[row], row))
    assert all(len(rows) % size == 0 for rows in [*found.values()][:-1])
    for padded, rows in found.items():
        for start in range(0, len(rows), size):
            longest = min(lengths[rows[start]], full)
            fitting = [n for n in (*BUCKETS, full) if longest <= n <= full]
            assert padded == min(fitting)
