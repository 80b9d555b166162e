"""Identity-balanced batches: which identities and pairs, how evenly, and by number alone."""

import collections

import numpy as np
import pytest

from unipt_jax.core.errors import ConfigError
from unipt_jax.data import sampling


def make(captions, identities, batch_size, instances, seed=0):
    """Returns batches of images with so many captions each, of the given identities."""
    pair_images = np.repeat(np.arange(len(captions), dtype=np.int32), captions)
    labels = np.asarray(identities, np.int32)
    batches = sampling.identity_batches(
        pair_images, labels, batch_size=batch_size, instances=instances, seed=seed
    )
    return batches, pair_images, labels[pair_images]


def toy(identities, images=3, captions=2, batch_size=8, instances=2, seed=0):
    """Equal-sized identities, whose images are not next to each other."""
    labels = np.tile(np.arange(identities), images)
    return make([captions] * len(labels), labels, batch_size, instances, seed)


@pytest.mark.parametrize("identities", [4, 5, 6, 7, 8, 11])
@pytest.mark.parametrize("instances", [1, 2, 4, 9])
def test_a_batch_is_made_of_different_identities_with_as_many_pairs_each(identities, instances):
    batches, _, identity = toy(identities, batch_size=4 * instances, instances=instances)
    for number in range(30):
        positions, pairs = batches(number)
        size = 4 * instances
        assert positions.tolist() == list(range(number * size, (number + 1) * size))
        groups = identity[pairs].reshape(4, instances)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == 4


@pytest.mark.parametrize("identities", [4, 5, 6, 7, 9, 11])
def test_identities_take_turns(identities):
    """After each round of whole batches all have had as many groups, or one less."""
    batches, _, identity = toy(identities)
    per_round = identities // 4
    count = np.zeros(identities, int)
    for number in range(40 * per_round):
        count[identity[batches(number)[1][::2]]] += 1
        if (number + 1) % per_round == 0:
            assert np.ptp(count) <= 1
    assert count.sum() == 160 * per_round


@pytest.mark.parametrize(
    ("captions", "instances"),
    [([1], 4), ([2], 4), ([1, 1, 1], 4), ([2, 2], 4), ([2, 2, 2], 4), ([3, 1, 2], 4),
     ([1, 1, 1, 1, 1], 2), ([2, 2, 1], 3), ([4, 4, 4], 1)],
)  # fmt: skip
def test_no_pair_comes_again_before_all_of_its_identity_have_come(captions, instances):
    """At any time, also across the batches of a round and where pairs must repeat in a group."""
    batches, _, identity = make(
        captions * 3, np.repeat([0, 1, 2], len(captions)), 2 * instances, instances
    )
    count = np.zeros(len(identity), int)
    for number in range(60):
        for group in batches(number)[1].reshape(2, instances):
            for pair in group:
                count[pair] += 1
                assert np.ptp(count[identity == identity[pair]]) <= 1
    assert count.min() > 0


def test_an_epoch_covers_equal_identities_evenly():
    """12 identities of 6 pairs in batches of 8: 9 batches are an epoch, each pair once in each."""
    batches, _, identity = toy(12)
    for epoch in range(5):
        seen = np.concatenate([batches(number)[1] for number in range(9 * epoch, 9 * epoch + 9)])
        assert sorted(seen) == list(range(len(identity)))


def test_identities_of_any_size_come_alike_often():
    captions = [1, 1, 9, 1, 30, 2, 2, 5]
    batches, _, identity = make(captions, range(8), 8, 2)
    seen = collections.Counter(
        identity[pair] for number in range(40) for pair in batches(number)[1]
    )
    assert set(seen.values()) == {40}


@pytest.mark.parametrize(("images", "captions", "instances"), [(3, 2, 2), (4, 3, 4), (5, 1, 4)])
def test_pairs_of_a_group_show_different_images(images, captions, instances):
    batches, image, _ = toy(5, images, captions, 4 * instances, instances)
    for number in range(60):
        for group in image[batches(number)[1]].reshape(4, instances):
            assert len(set(group)) == instances


def test_images_differ_more_than_by_chance_where_captions_are_uneven():
    """Two of 7 pairs, of images with 4, 2 and 1 captions: 7 in 21 show one image by chance."""
    batches, image, _ = make([4, 2, 1] * 4, np.repeat(range(4), 3), 8, 2)
    groups = np.concatenate([image[batches(number)[1]].reshape(4, 2) for number in range(300)])
    assert (groups[:, 0] == groups[:, 1]).mean() < 0.25


def test_orders_and_company_change():
    """Each round meets other identities; each time round, an identity's pairs group anew."""
    batches, _, identity = toy(8, images=4, captions=1)
    company = [frozenset(identity[batches(number)[1]]) for number in range(40)]
    assert len(set(company)) > 20
    groups = {frozenset(g) for n in range(40) for g in batches(n)[1].reshape(4, 2)}
    assert len(groups) == 8 * 6  # all twos of four pairs, of each identity


def test_a_batch_is_a_function_of_seed_and_number():
    forwards, backwards = toy(11)[0], toy(11)[0]
    numbers = [0, 1, 2, 3, 50, 10**12]
    last_first = [backwards(number)[1].tolist() for number in reversed(numbers)][::-1]
    assert [forwards(number)[1].tolist() for number in numbers] == last_first
    other = [toy(11, seed=1)[0](number)[1].tolist() for number in numbers]
    assert all(ours != theirs for ours, theirs in zip(last_first, other, strict=True))


def test_many_identities_take_little_memory_and_time():
    """A million images of a million identities: what is kept is three arrays."""
    labels = np.arange(1_000_000, dtype=np.int32)
    batches = sampling.identity_batches(labels, labels, batch_size=64, instances=2, seed=0)
    kept = [batches.pairs, batches.images, batches.starts]
    assert sum(array.nbytes for array in kept) <= 16 * 1_000_001
    pairs = np.concatenate([batches(number)[1] for number in range(10)])
    assert (pairs[::2] == pairs[1::2]).all()
    assert len(set(pairs.tolist())) == 320


@pytest.mark.parametrize(
    ("batch_size", "instances", "message"),
    [(8, 3, "batch_size=8 .* instances=3"), (16, 2, "needs 8 identities, and the data have 5")],
)
def test_batches_that_cannot_be_are_refused(batch_size, instances, message):
    with pytest.raises(ConfigError, match=message):
        toy(5, batch_size=batch_size, instances=instances)


def test_labels_without_pairs_do_not_count():
    with pytest.raises(ConfigError, match="the data have 2"):
        make([1, 0, 2], [0, 1, 2], 6, 2)
    batches, _, identity = make([1, 0, 2], [0, 1, 2], 4, 2)
    assert sorted(identity[batches(0)[1]]) == [0, 0, 2, 2]
