"""Ranks and metrics against a brute force that sorts lists and adds fractions."""

import subprocess
import sys
import tracemalloc
from fractions import Fraction

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import unipt_jax
from unipt_jax.core.errors import DataError
from unipt_jax.evaluation import retrieval
from unipt_jax.evaluation.retrieval import (
    bootstrap,
    cosine_blocks,
    cosines,
    exact,
    rank_blocks,
    rank_features,
    rank_rows,
    rank_similarity,
    unit_rows,
)

METRICS = ["R1", "R5", "R10", "mAP", "mINP"]


@pytest.fixture
def unchecked():
    """As users run the package: without the type checks of the tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def hit_ranks(similarity, identity, gallery):
    """Sorts the gallery, others before matches where equal, and lists the matches' ranks."""
    ranked = sorted(
        (-float(s), bool(other == identity)) for s, other in zip(similarity, gallery, strict=True)
    )
    return [rank for rank, (_, match) in enumerate(ranked, 1) if match]


def brute_force(similarity, queries, gallery):
    """Metrics in percent and the number of excluded queries; None where no query has a match."""
    every = [hit_ranks(s, q, gallery) for s, q in zip(similarity, queries, strict=True)]
    every = [ranks for ranks in every if ranks]
    if not every:
        return None, len(queries)
    sums = dict.fromkeys(METRICS, Fraction(0))
    for ranks in every:
        for k in (1, 5, 10):
            sums[f"R{k}"] += any(rank <= k for rank in ranks)
        precisions = [Fraction(found, rank) for found, rank in enumerate(ranks, 1)]
        sums["mAP"] += sum(precisions) / len(ranks)
        sums["mINP"] += Fraction(len(ranks), ranks[-1])
    metrics = {name: float(100 * total / len(every)) for name, total in sums.items()}
    return metrics, len(queries) - len(every)


@st.composite
def cases(draw):
    """A similarity of few values, so that many tie; few identities, so that many repeat."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    values = st.sampled_from([-1.0, -0.25, 0.0, 0.5, 0.75])
    if draw(st.booleans()):
        values = st.floats(-1, 1, width=32)
    similarity = draw(hnp.arrays(np.float32, (rows, columns), elements=values))
    people = st.integers(0, draw(st.sampled_from([1, 3, 12])))
    return (
        similarity,
        np.array(draw(st.lists(people, min_size=rows, max_size=rows))),
        np.array(draw(st.lists(people, min_size=columns, max_size=columns))),
    )


def features(queries=40, gallery=30, identities=8, width=16, seed=0, noise=0.5):
    """Clusters, one an identity, that overlap; the last query's identity is not in the gallery."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(identities + 1, width))
    labels = [rng.permutation(np.arange(count) % identities) for count in (queries, gallery)]
    labels[0][-1] = identities
    rows = [
        (centres[each] + noise * rng.normal(size=(len(each), width))).astype(np.float32)
        for each in labels
    ]
    return *rows, *labels


# ---------------------------------------------------------------------------- the figures


@settings(max_examples=300, deadline=None)
@given(cases())
def test_metrics_equal_a_brute_force(case):
    """All of them, over the same queries: those that have a match (P108)."""
    want, excluded = brute_force(*case)
    if want is None:
        with pytest.raises(DataError, match=f"none of the {excluded} queries"):
            rank_similarity(*case)
        return
    ranking = rank_similarity(*case)
    assert ranking.metrics() == pytest.approx(want, rel=1e-12)
    assert ranking.excluded_queries == excluded
    assert ranking.gallery == case[0].shape[1]


def test_both_ways_to_count_are_among_the_cases():
    """One match to more than can be counted one by one, with ties and without."""
    rng = np.random.default_rng(0)
    for matches in (1, 2, 15, 16, 17, 60):
        gallery = np.array([0] * matches + [1] * 40)
        for similarity in (rng.normal(size=(3, len(gallery))), rng.integers(5, size=(3, 100)) / 4):
            case = similarity[:, : len(gallery)].astype(np.float32), np.zeros(3, int), gallery
            assert rank_similarity(*case).metrics() == pytest.approx(brute_force(*case)[0])


def test_queries_ranked_together_find_what_each_finds_alone():
    """To the last bit, with one match to 40 a query, in an order that mixes them, and with ties."""
    rng = np.random.default_rng(0)
    gallery = rng.permutation(np.repeat(np.arange(40), np.arange(1, 41)))
    queries = rng.integers(41, size=300)
    similarity = np.round(rng.normal(size=(300, len(gallery))), 2).astype(np.float32)
    together = rank_similarity(similarity, queries, gallery)
    assert together.excluded_queries == np.count_nonzero(queries == 40) > 0
    for place, query in enumerate(together.query):
        ranks = hit_ranks(similarity[query], queries[query], gallery)
        precision = np.arange(1, len(ranks) + 1) / ranks
        assert together.first_hit[place] == ranks[0]
        assert together.average_precision[place] == precision.mean()
        assert together.inverse_negative_penalty[place] == precision[-1]


def test_one_query_by_hand():
    """Matches at ranks 1, 2, 4 and 7 of 8: AP (1 + 1 + 3/4 + 4/7) / 4, INP 4/7 (P62)."""
    similarity = np.array([[8, 7, 6, 5, 4, 3, 2, 1]], np.float32)
    gallery = np.array([5, 5, 0, 5, 0, 1, 5, 0])
    metrics = unipt_jax.evaluate_ranks(similarity, np.array([5]), gallery)
    assert list(metrics) == METRICS
    assert metrics["mAP"] == pytest.approx(83.036, abs=5e-4)
    assert metrics["mINP"] == pytest.approx(400 / 7)
    assert metrics["R1"] == metrics["R5"] == 100


def test_what_each_query_found_is_kept():
    """Of three queries the second has no match, and counts in no metric (P108)."""
    similarity = np.array([[1, 2, 3, 4], [4, 3, 2, 1], [4, 3, 2, 1]], np.float32)
    ranking = rank_similarity(similarity, np.array([7, 9, 8]), np.array([7, 8, 7, 8]))
    assert ranking.query.tolist() == [0, 2]
    assert ranking.identity.tolist() == [7, 8]
    assert ranking.first_hit.tolist() == [2, 2]
    assert ranking.average_precision.tolist() == [(1 / 2 + 2 / 4) / 2] * 2
    assert ranking.inverse_negative_penalty.tolist() == [2 / 4] * 2
    assert ranking.excluded_queries == 1
    assert ranking.metrics() == {"R1": 0, "R5": 100, "R10": 100, "mAP": 50, "mINP": 50}


def test_any_match_within_k_counts_once():
    """Two copies of the match on top are one hit, and three matches in ten are one, too (P64)."""
    metrics = unipt_jax.evaluate_ranks(
        np.array([[1, 1, 1, 0], [0, 1, 1, 1]], np.float32), np.array([0, 1]), np.array([0, 0, 0, 1])
    )
    assert [metrics[name] for name in ("R1", "R5", "R10")] == [50, 100, 100]


def test_one_of_ten_queries_without_a_match():
    """It is left out of every mean, and counted; the other nine are as good as without it (P61)."""
    gallery = np.arange(9)
    similarity = np.eye(10, 9, dtype=np.float32)
    similarity[:3] = -similarity[:3]  # Three of the nine find theirs last.
    ranking = rank_similarity(similarity, np.arange(10), gallery)
    assert (ranking.excluded_queries, len(ranking.query)) == (1, 9)
    third = {"R1": 600 / 9, "R5": 600 / 9, "R10": 100, "mAP": 100 * (6 + 3 / 9) / 9}
    assert ranking.metrics() == pytest.approx(third | {"mINP": third["mAP"]})


def test_matches_beyond_rank_10_count():
    """Twelve matches, of which two come at ranks 21 and 22: no mean over the first ten (P65)."""
    gallery = np.array([0] * 10 + [1] * 10 + [0] * 2)
    similarity = -np.arange(22, dtype=np.float32)[None]
    metrics = unipt_jax.evaluate_ranks(similarity, np.array([0]), gallery)
    assert metrics["mAP"] == pytest.approx(100 * (10 + 11 / 21 + 12 / 22) / 12)
    assert metrics["mINP"] == pytest.approx(100 * 12 / 22)


def test_a_tie_is_no_hit():
    gallery = np.array([0, 1, 2, 3])
    metrics = unipt_jax.evaluate_ranks(np.ones((4, 4), np.float32), gallery, gallery)
    assert metrics == {"R1": 0, "R5": 100, "R10": 100, "mAP": 25, "mINP": 25}


def test_queries_without_a_match_count_nowhere():
    query, gallery, query_identity, gallery_identity = features()
    every = rank_features(query, gallery, query_identity, gallery_identity)
    rest = rank_features(query[:-1], gallery, query_identity[:-1], gallery_identity)
    assert every.metrics() == rest.metrics()
    assert (every.excluded_queries, rest.excluded_queries) == (1, 0)


def test_the_other_direction_differs():
    query, gallery, query_identity, gallery_identity = features(identities=12)
    there = rank_features(query, gallery, query_identity, gallery_identity).metrics()
    back = rank_features(gallery, query, gallery_identity, query_identity).metrics()
    cosine = np.concatenate(
        list(cosine_blocks(unit_rows(query, "query"), unit_rows(gallery, "gallery")))
    )
    assert unipt_jax.evaluate_ranks(cosine.T, gallery_identity, query_identity) == back != there


def test_the_sign_counts():
    """What was first is last, where nearness is turned round (P66)."""
    query, gallery, query_identity, gallery_identity = features(noise=0.1)
    near = rank_features(query, gallery, query_identity, gallery_identity).metrics()
    far = rank_features(-query, gallery, query_identity, gallery_identity).metrics()
    assert near["R1"] == 100
    assert far["R1"] == 0


# ---------------------------------------------------------------------------- what must not matter


def near_ties():
    """A gallery whose every row is there four times, twice as another person, and shuffled."""
    query, gallery, query_identity, gallery_identity = features(width=67, noise=2.0)
    gallery = np.tile(gallery, (4, 1))
    gallery_identity = np.concatenate([gallery_identity, gallery_identity + 1] * 2)
    order = np.random.default_rng(1).permutation(len(gallery))
    return query, gallery[order], query_identity, gallery_identity[order]


@pytest.mark.parametrize("chunk", [1, 7, 39, 40, 1000])
def test_the_chunk_changes_no_bit(chunk):
    """Those that divide the queries and those that do not, and one larger than all (P92)."""
    query, gallery, query_identity, gallery_identity = near_ties()
    rows = unit_rows(query, "query"), unit_rows(gallery, "gallery")
    blocks = list(cosine_blocks(*rows, chunk=chunk))
    assert {len(block) for block in blocks[:-1]} <= {chunk}
    cosine = np.concatenate(blocks)
    assert cosine.dtype == np.float32
    whole = exact(rows[0]) @ exact(rows[1]).T
    np.testing.assert_array_equal(cosine, whole.astype(np.float32))
    ranking = rank_features(query, gallery, query_identity, gallery_identity, chunk=chunk)
    whole = rank_similarity(cosine, query_identity, gallery_identity)
    for name, values in ranking.per_query().items():
        np.testing.assert_array_equal(values, whole.per_query()[name])


@pytest.mark.parametrize("size", [1, 67 * 7, 67 * 40])
def test_the_gallerys_parts_change_no_bit(monkeypatch, size):
    query, gallery, *_ = near_ties()
    rows = unit_rows(query, "query"), unit_rows(gallery, "gallery")
    want = np.concatenate(list(cosine_blocks(*rows, chunk=9)))
    monkeypatch.setattr(retrieval, "_PART", size)
    have = np.concatenate(list(cosine_blocks(*rows, chunk=9)))
    np.testing.assert_array_equal(have, want)


def test_no_order_changes_a_figure():
    query, gallery, query_identity, gallery_identity = near_ties()
    want = rank_features(query, gallery, query_identity, gallery_identity)
    rng = np.random.default_rng(2)
    for _ in range(5):
        q, g = rng.permutation(len(query)), rng.permutation(len(gallery))
        have = rank_features(query[q], gallery[g], query_identity[q], gallery_identity[g])
        assert have.metrics() == want.metrics()
        assert bootstrap(have, seed=3, samples=50) == bootstrap(want, seed=3, samples=50)
        assert bootstrap(have, seed=3, samples=50, unit="query") == bootstrap(
            want, seed=3, samples=50, unit="query"
        )


def test_cosines_are_exact_but_for_one_rounding():
    """Each sum in integers of any size; a duplicate's cosine is the same at any place."""
    query, gallery, *_ = near_ties()
    rows = unit_rows(query, "query"), unit_rows(gallery, "gallery")
    (cosine,) = cosine_blocks(*rows)
    whole = [side.tolist() for side in rows]
    for i, j in np.random.default_rng(0).integers(40, size=(50, 2)):
        product = sum(a * b for a, b in zip(whole[0][i], whole[1][j], strict=True))
        assert cosine[i, j] == np.float32(product / 2**52)
    expected = query.astype(float) @ gallery.astype(float).T
    expected /= np.outer(np.linalg.norm(query, axis=1), np.linalg.norm(gallery, axis=1))
    np.testing.assert_allclose(cosine, expected, atol=1e-7)


def test_the_cosines_of_pairs_are_those_of_the_blocks():
    query, gallery, *_ = near_ties()
    rows = unit_rows(query, "query"), unit_rows(gallery, "gallery")
    (block,) = cosine_blocks(*rows)
    pairs = np.random.default_rng(0).integers(40, size=(2, 700))
    np.testing.assert_array_equal(cosines(*rows, *pairs), block[tuple(pairs)])
    assert cosines(*rows, *pairs[:, :0]).shape == (0,)


def hard_to_rank(kind, width, seed):
    """Unit rows of 90 queries and 150 gallery items, and identities with 1 to some dozen matches.

    Most cosines of a query lie closer together than float32 products are exact.
    """
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, width))
    if kind == "one sign":  # The sum's errors add up.
        centres = np.abs(centres) + 1.0
    elif kind == "collapsed":
        centres[:] = centres[0]
    query, gallery = (
        unit_rows(centres[rng.integers(4, size=n)].astype(np.float32), "query") for n in (90, 150)
    )
    if kind == "unlike":
        query = unit_rows(rng.normal(size=query.shape).astype(np.float32), "query")
    if kind != "collapsed":  # Steps of the grid, from 1 to beyond what float32 products tell apart.
        step = 2.0 ** rng.integers(0, 10, size=(len(gallery), 1))
        gallery += np.rint(step * rng.normal(size=gallery.shape)).astype(np.int32)
    gallery[100:120] = gallery[:20]
    gallery[[7, 130]] = query[[5, 60]] = 0
    identities = rng.geometric(0.15, size=240)
    return query, gallery, identities[:90], identities[90:]


@pytest.mark.parametrize("width", [1, 2, 67, 512, 2048])
@pytest.mark.parametrize("kind", ["one sign", "both signs", "unlike", "collapsed"])
def test_float32_decides_nothing_that_it_cannot_tell(monkeypatch, kind, width):
    """With a filter of any strictness, each query finds what it finds by exact cosines."""
    for seed in range(5):
        query, gallery, *labels = hard_to_rank(kind, width, seed)
        want = rank_blocks(cosine_blocks(query, gallery), *labels)
        for pairs, matches in ((1, 100), (1 / 8, 100), (0, 100), (1, 0)):
            monkeypatch.setattr(retrieval, "_FEW_PAIRS", pairs)
            monkeypatch.setattr(retrieval, "_FEW_MATCHES", matches)
            have = rank_rows(query, gallery, *labels, chunk=32)
            for name, values in want.per_query().items():
                np.testing.assert_array_equal(have.per_query()[name], values)


def test_float32_alone_would_rank_them_otherwise():
    query, gallery, *labels = hard_to_rank("one sign", 512, 0)
    block = exact(query).astype(np.float32) @ exact(gallery).astype(np.float32).T
    want = rank_rows(query, gallery, *labels).metrics()
    assert rank_blocks([block], *labels).metrics() != want


def test_all_is_exact_only_where_float32_leaves_much_open(monkeypatch):
    """Few of 3000 clusters' items are near a match; all are where all are alike."""
    query, gallery, *labels = features(30, 3000, identities=1500, width=64)
    exact_rows = []

    def counted(query, gallery, **options):
        exact_rows.append(len(query))
        return cosine_blocks(query, gallery, **options)

    monkeypatch.setattr(retrieval, "cosine_blocks", counted)
    rank_features(query, gallery, *labels)
    assert not exact_rows
    query[16:] = query[0]
    gallery[:] = query[0] + 1e-4 * gallery
    rank_features(query, gallery, *labels, chunk=16)
    assert exact_rows == [16, 14]


def test_features_stored_in_float16_rank_as_their_values():
    """Their length is beyond what float16 can square (P91)."""
    query, gallery, *labels = features(noise=2.0)
    half = [(300 * side).astype(np.float16) for side in (query, gallery)]
    assert np.linalg.norm(half[0].astype(float), axis=1).min() > np.finfo(np.float16).max ** 0.5
    want = rank_features(*[side.astype(np.float32) for side in half], *labels)
    assert rank_features(*half, *labels).metrics() == want.metrics()
    assert 0 < want.metrics()["mAP"] < 100


def test_neighbours_that_16_bits_cannot_tell_apart_are_told_apart():
    """2000 items within 1e-3 of each other, stored in bfloat16; the query is one of them (P91)."""
    rng = np.random.default_rng(0)
    gallery = jnp.asarray(rng.normal(size=64) + 0.02 * rng.normal(size=(2000, 64)), jnp.bfloat16)
    labels = np.arange(2000)
    wide = np.asarray(gallery, np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    assert (wide[:20] @ wide.T).min() > 1 - 2e-3
    assert rank_features(gallery[:20], gallery, labels[:20], labels).metrics()["R1"] == 100
    coarse = jnp.asarray(wide[:20] @ wide.T, jnp.bfloat16)
    assert rank_similarity(coarse, labels[:20], labels).metrics()["R1"] < 100


@pytest.mark.parametrize("dtype", [np.float64, np.float16, jnp.bfloat16])
def test_any_float_type_is_compared_as_it_is(dtype):
    similarity = np.array([[0.5, 0.25, 1.0]]).astype(dtype)
    ranking = rank_similarity(similarity, np.array([1], np.int32), np.array([1, 0, 0], np.uint8))
    assert ranking.first_hit.tolist() == [2]


def test_float64_is_not_rounded():
    similarity = np.array([[1.0 + 1e-12, 1.0]])
    assert rank_similarity(similarity, np.array([1]), np.array([1, 0])).first_hit.tolist() == [1]


def test_zeros_rank_behind_all():
    """A query without direction finds all alike; so does an item that has none."""
    rows = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    ranking = rank_features(rows, rows, np.arange(3), np.arange(3))
    assert ranking.first_hit.tolist() == [3, 1, 1]


def test_no_matrix_of_all_is_held():
    """The whole would be 16 MB in float32; a block takes 0.8, the features' copies 0.3 (P92)."""
    rng = np.random.default_rng(0)
    query, gallery = (rng.normal(size=(n, 8)).astype(np.float32) for n in (4000, 1000))
    labels = [np.arange(len(side)) % 500 for side in (query, gallery)]
    tracemalloc.start()
    rank_features(query, gallery, *labels, chunk=64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6


def test_unit_rows_take_one_copy_and_a_chunk():
    """A large model's features of 60,000 captions are 0.9 GB."""
    features = np.random.default_rng(0).normal(size=(6000, 300)).astype(np.float32)
    tracemalloc.start()
    unit_rows(features, "query")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * features.nbytes


# ---------------------------------------------------------------------------- intervals


def test_identities_are_drawn_whole():
    """Two identities, of 3 hits and of 1 miss: a draw gives 0, 3/4 or 1, whatever the seed."""
    similarity = np.array([[1, 0], [1, 0], [1, 0], [1, 0]], np.float32)
    ranking = rank_similarity(similarity, np.array([0, 0, 0, 1]), np.array([0, 1]))
    assert bootstrap(ranking, seed=0, samples=200)["R1"] == (0, 100)
    assert bootstrap(ranking, seed=0, samples=1)["R1"][0] in (0, 75, 100)
    lows = {bootstrap(ranking, seed=seed, samples=1)["R1"][0] for seed in range(40)}
    assert lows == {0, 75, 100}
    by_query = {bootstrap(ranking, seed=s, samples=1, unit="query")["R1"][0] for s in range(40)}
    assert {25, 50} & by_query


def test_intervals_have_the_width_of_the_binomial():
    """400 queries of an identity each, half of them hits: 50 % and 1.96 * 2.5 % to each side."""
    gallery = np.arange(400)
    similarity = np.eye(400, dtype=np.float32)
    similarity[::2] = -similarity[::2]
    ranking = rank_similarity(similarity, gallery, gallery)
    intervals = bootstrap(ranking, seed=0, samples=4000)
    assert list(intervals) == METRICS
    assert intervals["R1"] == pytest.approx((45.1, 54.9), abs=0.6)
    assert intervals == bootstrap(ranking, seed=0, samples=4000)
    assert intervals != bootstrap(ranking, seed=1, samples=4000)


def test_queries_of_one_identity_are_no_more_evidence_than_one():
    """Each of 20 identities ten times over: as wide by identity, narrower by query."""
    gallery = np.arange(20)
    similarity = np.eye(20, dtype=np.float32)
    similarity[::2] = -similarity[::2]

    def width(times, unit):
        ranking = rank_similarity(
            np.repeat(similarity, times, axis=0), np.repeat(gallery, times), gallery
        )
        low, high = bootstrap(ranking, seed=0, unit=unit)["R1"]
        return high - low

    assert width(10, "identity") == width(1, "identity")
    assert width(10, "query") < width(10, "identity") / 2


def test_an_interval_needs_two_identities():
    ranking = rank_similarity(np.eye(2, dtype=np.float32), np.array([4, 4]), np.array([4, 5]))
    with pytest.raises(DataError, match="two identity units or more, not 1"):
        bootstrap(ranking, seed=0)


# ---------------------------------------------------------------------------- bad input


def test_without_any_match_there_is_no_figure():
    """Nor where there is no gallery or no query, but a line that says so (P61, P67)."""
    with pytest.raises(DataError, match=r"none of the 2 queries .* 3 of the gallery"):
        rank_similarity(np.ones((2, 3), np.float32), np.array([1, 2]), np.array([3, 4, 5]))
    with pytest.raises(DataError, match=r"none of the 2 queries .* 0 of the gallery"):
        rank_similarity(np.ones((2, 0), np.float32), np.array([1, 2]), np.zeros(0, int))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_row_that_is_not_finite_is_named(value):
    """Beyond the first chunk, in a query without a match: still an error (P67)."""
    similarity = np.ones((600, 3), np.float16)
    similarity[300, 1] = similarity[500] = value
    queries = np.zeros(600, int)
    queries[300] = 9
    with pytest.raises(DataError, match="similarity: row 300 holds NaN or infinity"):
        rank_similarity(similarity, queries, np.array([0, 1, 2]))


@pytest.mark.parametrize("types", [(np.int64, np.uint64), (np.uint64, np.int64)])
def test_large_identities_are_told_apart(types):
    """Hashes, beyond the whole numbers that a float holds; the nearest float is the same for both.

    The match is the first item, and the other one is more similar.
    """
    queries, gallery = np.array([2**53], types[0]), np.array([2**53, 2**53 + 1], types[1])
    assert float(gallery[0]) == float(gallery[1])
    assert unipt_jax.evaluate_ranks(np.array([[0.0, 1.0]]), queries, gallery)["R1"] == 0


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_feature_that_is_not_finite_is_named(side, value):
    """Of queries and of the gallery, NaN and infinity (P67)."""
    arguments = list(features())
    arguments[side][7, 2] = arguments[side][11, 0] = value
    name = ("query", "gallery")[side]
    with pytest.raises(DataError, match=rf"{name} features: row 7 is not finite \(2 such rows\)"):
        rank_features(*arguments)


def test_all_shapes_that_do_not_fit_are_named(unchecked):
    similarity = np.ones((600, 3), np.float32)
    with pytest.raises(DataError, match="has 600 queries and there are 4 identities"):
        unipt_jax.evaluate_ranks(similarity, np.zeros(4, int), np.zeros(3, int))
    with pytest.raises(DataError, match="4 identities for them; 3 gallery items and there are 6 "):
        unipt_jax.evaluate_ranks(similarity, np.zeros(4, int), np.zeros(6, int))
    with pytest.raises(DataError, match="features have 3 gallery items and there are 2 identities"):
        rank_features(similarity, similarity[:3], np.zeros(600, int), np.zeros(2, int))
    with pytest.raises(DataError, match="3 dimensions, those of the gallery 2"):
        rank_features(similarity, similarity[:, :2], np.zeros(600, int), np.zeros(600, int))
    with pytest.raises(DataError, match="3 dimensions, those of the gallery 2"):
        rank_features(similarity, similarity[:, :2], np.arange(600), np.arange(600))


@pytest.mark.parametrize(
    ("shapes", "fault"),
    [
        ([(2, 3), (2, 3)], "has 4 queries and there are 3 identities"),
        ([(2, 3)], "has 2 queries and there are 3 identities"),
        ([(1, 3), (2, 4)], "4 gallery items and there are 3 identities"),
    ],
)
def test_blocks_must_be_the_whole_matrix(shapes, fault):
    blocks = (np.ones(shape, np.float32) for shape in shapes)
    with pytest.raises(DataError, match=fault):
        rank_blocks(blocks, np.zeros(3, int), np.zeros(3, int))


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ((np.ones((1, 2), int), np.array([1]), np.array([1, 2])), r"similarity: int64\[1, 2\]"),
        ((np.ones(2), np.array([1]), np.array([1, 2])), r"float64\[2\], expected float\[Q, G\]"),
        ((np.ones((1, 2)), np.array([1.0]), np.array([1, 2])), r"query identities: float64\[1\]"),
        ((np.ones((1, 2)), np.array([1]), np.array(["1", "2"])), "gallery identities: <U1"),
        ((np.ones((1, 2)), np.array([[1]]), np.array([1, 2])), r"int64\[1, 1\], expected int\[N\]"),
        (([[1.0, 2.0], [3.0]], np.array([1, 2]), np.array([1, 2])), "similarity: .*inhomogeneous"),
        ((np.ones((1, 2)), [[1], [2, 3]], np.array([1, 2])), "query identities: .*inhomogeneous"),
        ((None, np.array([1]), np.array([1, 2])), r"similarity: object\[\]"),
    ],
)
def test_types_are_not_guessed(unchecked, arguments, fault):
    """Whole numbers, texts, floats and ragged lists, each where it does not fit (P67)."""
    with pytest.raises(DataError, match=fault):
        unipt_jax.evaluate_ranks(*arguments)


def test_ranks_need_no_encoder():
    code = (
        "import sys, unipt_jax; unipt_jax.evaluate_ranks; sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'rank'"):
        unipt_jax.rank  # noqa: B018
