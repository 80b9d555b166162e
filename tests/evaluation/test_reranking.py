"""Re-ranking against the paper's formulas on whole matrices, with sets and sorted lists."""

import math
import tracemalloc

import numpy as np
import pytest

from unipt_jax.core.errors import ConfigError, DataError
from unipt_jax.evaluation.reranking import reranked_blocks
from unipt_jax.evaluation.retrieval import rank_blocks, rank_features

SHAPES = [(6, 25), (30, 12), (1, 40), (3, 2)]


def features(queries, gallery, identities=6, width=8, noise=0.6):
    """Clusters, one an identity, and each item's label."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(identities, width))
    labels = [np.arange(count) % identities for count in (queries, gallery)]
    rows = [
        (centres[each] + noise * rng.normal(size=(len(each), width))).astype(np.float32)
        for each in labels
    ]
    return *rows, *labels


def rerank(*arguments, **options):
    return np.concatenate(list(reranked_blocks(*arguments, **options)))


def by_the_paper(query, gallery, k1, k2, weight):
    """The final distance [Q, G], from all distances [N, N]; no two of a row may be equal."""
    rows = np.concatenate([query, gallery]).astype(float)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    size = len(rows)
    distance = np.array([[((a - b) ** 2).sum() for b in rows] for a in rows])
    distance /= distance.max(axis=1, keepdims=True)
    ranked = [sorted(range(size), key=lambda j, i=i: distance[i, j]) for i in range(size)]

    def reciprocal(item, k):
        # The item itself stands at the head of its list, before its k neighbours.
        return {j for j in ranked[item][: k + 1] if item in ranked[j][: k + 1]}

    vectors = np.zeros((size, size))
    for item in range(size):
        own = reciprocal(item, k1)
        expanded = set(own)
        for other in own:
            closer = reciprocal(other, round(k1 / 2))
            if len(own & closer) > 2 / 3 * len(closer):
                expanded |= closer
        for other in expanded:
            vectors[item, other] = math.exp(-distance[item, other])
        vectors[item] /= vectors[item].sum()
    vectors = np.array([sum(vectors[j] for j in ranked[i][:k2]) / k2 for i in range(size)])

    final = np.zeros((len(query), len(gallery)))
    for i in range(len(query)):
        for j in range(len(gallery)):
            a, b = vectors[i], vectors[len(query) + j]
            jaccard = 1 - np.minimum(a, b).sum() / np.maximum(a, b).sum()
            final[i, j] = (1 - weight) * jaccard + weight * distance[i, len(query) + j]
    return final


@pytest.mark.parametrize(("k1", "k2", "weight"), [(6, 3, 0.3), (5, 1, 0.0), (3, 5, 0.8)])
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_distances_equal_the_papers(shape, k1, k2, weight):
    query, gallery, *_ = features(*shape)
    have = rerank(query, gallery, k1=k1, k2=k2, weight=weight)
    assert have.dtype == np.float32
    want = -by_the_paper(query, gallery, k1, k2, weight)
    np.testing.assert_allclose(have, want, atol=2e-6)
    assert len(np.unique(want.round(4))) > 5


def test_defaults_are_the_papers():
    query, gallery, *_ = features(40, 40)
    want = -by_the_paper(query, gallery, k1=20, k2=6, weight=0.3)
    np.testing.assert_allclose(rerank(query, gallery), want, atol=2e-6)


def test_fewer_items_than_neighbours():
    """All are each other's neighbours: with equal weights, the original order is left."""
    query, gallery, query_identity, gallery_identity = features(3, 2)
    blocks = reranked_blocks(query, gallery)
    have = rank_blocks(blocks, query_identity, gallery_identity)
    want = rank_features(query, gallery, query_identity, gallery_identity)
    assert have.first_hit.tolist() == want.first_hit.tolist()


def test_weight_1_keeps_the_ranks():
    arguments = features(30, 24, noise=1.0)
    have = rank_blocks(reranked_blocks(*arguments[:2], weight=1.0), *arguments[2:])
    assert have.metrics() == rank_features(*arguments).metrics()
    assert have.metrics()["mAP"] < 99
    changed = rank_blocks(reranked_blocks(*arguments[:2], weight=0.3), *arguments[2:])
    assert changed.metrics() != have.metrics()


def test_company_brings_a_far_match_near():
    """A match lies beyond another's item as seen from the query, but in its identity's company.

    On a circle, in degrees: the query at 0, its matches from 5 to 40, the other's at -25 and on.
    """
    matches, others = np.arange(5, 45, 5), np.arange(-25, -65, -5)
    degrees = np.deg2rad(np.concatenate([matches, others]))
    gallery = np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)
    query, query_identity = np.array([[1, 0]], np.float32), np.array([0])
    gallery_identity = np.repeat([0, 1], 8)
    before = rank_features(query, gallery, query_identity, gallery_identity).metrics()
    blocks = reranked_blocks(query, gallery, k1=6, k2=3)
    after = rank_blocks(blocks, query_identity, gallery_identity).metrics()
    assert before["mAP"] < 90
    assert after["mAP"] == 100


def test_sides_that_lie_apart_keep_their_ranks_until_centred():
    query, gallery, *labels = features(30, 30, noise=1.0)
    gap = np.full(8, 20, np.float32)
    apart = rank_blocks(reranked_blocks(query + gap, gallery - gap, k1=6, k2=3), *labels)
    assert apart.metrics() == rank_features(query + gap, gallery - gap, *labels).metrics()
    sides = [side - side.mean(axis=0) for side in (query + gap, gallery - gap)]
    centred = rank_blocks(reranked_blocks(*sides, k1=6, k2=3), *labels)
    assert centred.metrics()["mAP"] > rank_features(*sides, *labels).metrics()["mAP"] + 1


@pytest.mark.parametrize("chunk", [1, 7, 30])
def test_the_chunk_changes_no_bit(chunk):
    """Those that divide the queries and those that do not (P92)."""
    query, gallery, *_ = features(30, 24)
    blocks = list(reranked_blocks(query, gallery, k1=6, chunk=chunk))
    assert {len(block) for block in blocks[:-1]} <= {chunk}
    np.testing.assert_array_equal(np.concatenate(blocks), rerank(query, gallery, k1=6))


def test_no_order_changes_a_figure():
    """Corners and edges of a cube: each is as near to many others, and some are there twice."""
    rng = np.random.default_rng(0)
    query, gallery = (rng.choice([-1, 1], size=(n, 4)).astype(np.float32) for n in (12, 40))
    gallery[::2, 0] = 0
    query_identity, gallery_identity = np.arange(12) % 5, np.arange(40) % 5
    want = rerank(query, gallery, k1=4, k2=3)
    figures = rank_blocks([want], query_identity, gallery_identity).metrics()
    for _ in range(5):
        q, g = rng.permutation(12), rng.permutation(40)
        have = rerank(query[q], gallery[g], k1=4, k2=3)
        np.testing.assert_allclose(have, want[q][:, g], atol=1e-6)
        ranking = rank_blocks([have], query_identity[q], gallery_identity[g])
        assert ranking.metrics() == figures


def test_equal_features_give_equal_similarities():
    rows = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(rerank(rows[:1], rows), np.zeros((1, 4)))
    assert np.isfinite(rerank(0 * rows[:1], 0 * rows)).all()


def test_no_matrix_of_all_is_held():
    """1200 items: 12 MB for all distances in float64; references hold several (P92)."""
    query, gallery, *_ = features(600, 600, identities=100)
    tracemalloc.start()
    for _ in reranked_blocks(query, gallery, k1=4, k2=2, chunk=16):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6


@pytest.mark.parametrize(
    "options", [{"k1": 0}, {"k2": 0}, {"weight": -0.1}, {"weight": 1.1}, {"weight": np.nan}]
)
def test_numbers_out_of_range_are_named(options):
    query, gallery, *_ = features(3, 3)
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        rerank(query, gallery, **options)


def test_the_first_feature_that_is_not_finite_is_named():
    """Re-ranking ranks no NaN either (P67)."""
    query, gallery, *_ = features(3, 3)
    gallery[2, 1] = np.nan
    with pytest.raises(DataError, match="gallery features: row 2 is not finite"):
        rerank(query, gallery)


def test_an_empty_gallery_is_told():
    """And no queries have no blocks (P67)."""
    query, gallery, *_ = features(3, 3)
    with pytest.raises(DataError, match="gallery features: there are none"):
        rerank(query, gallery[:0])
    assert list(reranked_blocks(query[:0], gallery)) == []
