"""Ranks of the matches, and the metrics drawn from them: R1, R5, R10, mAP and mINP.

A query's matches are the gallery items of its identity. Ties count against the query: an item of
another identity that is exactly as similar as a match ranks before it. So neither the gallery's
order nor the queries' can matter, and an encoder that embeds everything alike earns the lowest
figures, not the highest.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from unipt_jax.core.errors import DataError
from unipt_jax.core.random import host_generator

RANKS = (1, 5, 10)
# What the figures mean, by a number that grows with any change: those of two definitions do not
# compare.
DEFINITION = (
    "1: by cosine; ties count against the query; average precision is the mean precision at the "
    "matches of the whole ranking; queries without a match are excluded"
)
# Queries compared with the gallery at once.
CHUNK = 256

# With at least as many matches, sorting a row once is faster than a pass over it for each match.
_SORTED_FROM = 16
# Unit rows become multiples of 1 / _GRID: products are then multiples of 2**-52, and any sum of a
# row's products stays below 2 (Cauchy-Schwarz), so float64 holds each exactly, in any order. The
# cosine moves by some 1e-8, less than its own rounding to float32.
_GRID = 2.0**26
_PART = 2**24  # Numbers of the gallery that are float64 at once: 128 MiB.
# Up to so many matches a query, and such a part of a block that is computed pair by pair, products
# in float32 and exact pairs are faster than exact blocks.
_FEW_MATCHES = 10
_FEW_PAIRS = 1 / 64


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What the queries with a match found, in the order of the queries.

    Attributes:
        query: each one's row among all queries.
        identity: its identity.
        first_hit: rank of its first match, from 1.
        average_precision: mean, over its matches, of the precision at their ranks, in (0, 1]; the
            whole ranking counts. Matches at ranks 1, 2, 4 and 7 give 0.83036, as in IRRA, where
            Market-1501's trapezoids give 0.81101.
        inverse_negative_penalty: number of its matches over the rank of the last, in (0, 1] (Ye et
            al., TPAMI 2021).
        excluded_queries: number of queries without a match, which count in no metric.
        gallery: number of gallery items.
    """

    query: Int[np.ndarray, "N"]
    identity: Integer[np.ndarray, "N"]
    first_hit: Int[np.ndarray, "N"]
    average_precision: Float[np.ndarray, "N"]
    inverse_negative_penalty: Float[np.ndarray, "N"]
    excluded_queries: int
    gallery: int

    def per_query(self) -> dict[str, Float[np.ndarray, "N"]]:
        """Returns what each query adds to each metric, in [0, 1]."""
        hits = {f"R{rank}": (self.first_hit <= rank).astype(np.float64) for rank in RANKS}
        return {**hits, "mAP": self.average_precision, "mINP": self.inverse_negative_penalty}

    def metrics(self) -> dict[str, float]:
        """Returns R1, R5, R10 (any match within so many), mAP and mINP in percent."""
        # An exact sum: the order of the queries changes not even the last bit.
        return {
            name: 100.0 * math.fsum(values) / len(values)
            for name, values in self.per_query().items()
        }


def evaluate_ranks(
    similarity: Float[np.ndarray | Array, "Q G"],
    query_identities: Integer[np.ndarray | Array, "Q"],
    gallery_identities: Integer[np.ndarray | Array, "G"],
) -> dict[str, float]:
    """Returns R1, R5, R10, mAP and mINP in percent; see `rank_similarity`."""
    return rank_similarity(similarity, query_identities, gallery_identities).metrics()


def rank_similarity(
    similarity: Float[np.ndarray | Array, "Q G"],
    query_identities: Integer[np.ndarray | Array, "Q"],
    gallery_identities: Integer[np.ndarray | Array, "G"],
) -> Ranking:
    """Ranks the gallery for each query; the other direction takes the transpose.

    Args:
        similarity: finite, of any scale, higher is nearer; of any float type, compared as it is. A
            matrix that was computed in 16 bits has ties, which count against the query.
        query_identities: one for each row.
        gallery_identities: one for each column.

    Raises:
        DataError: shapes or types do not fit, a similarity is not finite, or no query has a match.
    """
    similarity = _matrix(similarity, "similarity", "Q, G")
    identities = _identities(query_identities, "query"), _identities(gallery_identities, "gallery")
    _require_fit(similarity.shape, identities, "similarity has")
    blocks = (similarity[at : at + CHUNK] for at in range(0, len(similarity), CHUNK))
    return rank_blocks(blocks, *identities)


def rank_features(
    query: Float[np.ndarray | Array, "Q D"],
    gallery: Float[np.ndarray | Array, "G D"],
    query_identities: Integer[np.ndarray | Array, "Q"],
    gallery_identities: Integer[np.ndarray | Array, "G"],
    *,
    chunk: int = CHUNK,
) -> Ranking:
    """Ranks the gallery for each query by cosine similarity in float32.

    Beyond the features it needs a copy of them in 32 bits, and `rank_rows`' memory.

    Args:
        query: any length, any float type.
        gallery: the same.
        query_identities: one for each query.
        gallery_identities: one for each gallery item.
        chunk: queries compared at once, at least 1; changes no figure, see `cosine_blocks`.

    Raises:
        DataError: shapes or types do not fit, a feature is not finite, or no query has a match.
    """
    rows = unit_rows(query, "query"), unit_rows(gallery, "gallery")
    return rank_rows(*rows, query_identities, gallery_identities, chunk=chunk)


def rank_rows(
    query: Int[np.ndarray, "Q D"],
    gallery: Int[np.ndarray, "G D"],
    query_identities: Integer[np.ndarray | Array, "Q"],
    gallery_identities: Integer[np.ndarray | Array, "G"],
    *,
    chunk: int = CHUNK,
) -> Ranking:
    """Ranks as `rank_blocks` does from `cosine_blocks`, to the last bit, in less time.

    Beyond the rows it needs another copy of the gallery's in float32, and some 12 bytes times
    `chunk` times G; of a gallery with many near-duplicates or matches, `cosine_blocks`' 128 MiB.

    Args:
        query: from `unit_rows`.
        gallery: the same.
        query_identities: one for each query.
        gallery_identities: one for each gallery item.
        chunk: queries compared at once, at least 1; changes no figure.

    Raises:
        DataError: shapes do not fit, or no query has a match.
    """
    identities = _identities(query_identities, "query"), _identities(gallery_identities, "gallery")
    _require_fit((len(query), len(gallery)), identities, "the features have")
    matches = _Matches.of(*identities)
    if matches.counts.sum() <= _FEW_MATCHES * len(query):
        blocks = _decided_blocks(query, gallery, matches, chunk)
    else:
        blocks = cosine_blocks(query, gallery, chunk=chunk)
    return rank_blocks(blocks, *identities)


def rank_blocks(
    blocks: Iterable[Float[np.ndarray, "C G"]],
    query_identities: Integer[np.ndarray | Array, "Q"],
    gallery_identities: Integer[np.ndarray | Array, "G"],
) -> Ranking:
    """Ranks as `rank_similarity` does, from consecutive rows of the matrix.

    Raises:
        DataError: as `rank_similarity`.
    """
    queries = _identities(query_identities, "query")
    gallery = _identities(gallery_identities, "gallery")
    matches = _Matches.of(queries, gallery)
    matched = np.flatnonzero(matches.counts)
    if not len(matched):
        raise DataError(
            f"none of the {len(queries)} queries has its identity among the {len(gallery)} of the "
            "gallery; check that both come from one split"
        )
    found, done = np.zeros((3, len(queries))), 0
    for block in blocks:
        shape = (done + len(block), block.shape[1])
        if shape[0] > len(queries) or shape[1] != len(gallery):
            _require_fit(shape, (queries, gallery), "similarity has")
        # Comparisons in 16 bits are slow; no value changes.
        block = block.astype(np.result_type(block.dtype, np.float32), copy=False)
        bad = np.flatnonzero(~np.isfinite(block.max(axis=1)) | ~np.isfinite(block.min(axis=1)))
        if len(bad):
            raise DataError(f"similarity: row {done + bad[0]} holds NaN or infinity")
        for rows, own in matches.by_count(done, len(block)):
            ranks = _ranks(block[rows], own)
            precision = np.arange(1, own.shape[1] + 1) / ranks
            found[:, done + rows] = ranks[:, 0], precision.mean(axis=1), precision[:, -1]
        done += len(block)
    _require_fit((done, len(gallery)), (queries, gallery), "similarity has")
    first_hit, average_precision, inverse_negative_penalty = found[:, matched]
    return Ranking(
        query=matched,
        identity=queries[matched],
        first_hit=first_hit.astype(np.int64),
        average_precision=average_precision,
        inverse_negative_penalty=inverse_negative_penalty,
        excluded_queries=len(queries) - len(matched),
        gallery=len(gallery),
    )


def unit_rows(features: Float[np.ndarray | Array, "N D"], side: str) -> Int[np.ndarray, "N D"]:
    """Scales features to length 1, in whole numbers (int32) of the grid that `exact` tells.

    Zeros stay zeros: their cosine with any row is 0.

    Args:
        features: any length, any float type.
        side: "query" or "gallery", for errors.

    Raises:
        DataError: they are no matrix of floats, or not finite in float32.
    """
    features = _matrix(features, f"{side} features", f"{side[0].upper()}, D")
    features = features.astype(np.float32, copy=False)
    starts = range(0, len(features), CHUNK)
    finite = [np.isfinite(features[at : at + CHUNK]).all(axis=1) for at in starts]
    bad = np.flatnonzero(~np.concatenate([np.ones(0, np.bool_), *finite]))
    if len(bad):
        raise DataError(f"{side} features: row {bad[0]} is not finite ({len(bad)} such rows)")
    units = np.empty(features.shape, np.int32)
    for at in starts:
        rows = features[at : at + CHUNK].astype(np.float64)
        length = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        rows *= (_GRID / np.where(length > 0, length, 1.0))[:, None]
        units[at : at + CHUNK] = np.rint(rows)
    return units


def require_same_width(query: np.ndarray, gallery: np.ndarray) -> None:
    """Checks that both sides' features have as many numbers.

    Raises:
        DataError: they have not.
    """
    if query.shape[1] != gallery.shape[1]:
        raise DataError(
            f"query features have {query.shape[1]} dimensions, those of the gallery "
            f"{gallery.shape[1]}; take both from one model"
        )


def exact(rows: Int[np.ndarray, "*N D"]) -> Float[np.ndarray, "*N D"]:
    """Returns rows from `unit_rows` as float64, which holds their products and sums too."""
    return rows / _GRID


def cosine_blocks(
    query: Int[np.ndarray, "Q D"], gallery: Int[np.ndarray, "G D"], *, chunk: int = CHUNK
) -> Iterator[Float[np.ndarray, "C G"]]:
    """Yields the cosines of `chunk` queries after another with the whole gallery, in float32.

    Exact but for one rounding, since every product and sum is: the same two rows have the same
    cosine, to the last bit, at any place in a gallery, with any `chunk`, on any machine. A float32
    product depends on each, by a bit or so, and with it whether a duplicate ties.

    Args:
        query: from `unit_rows`.
        gallery: the same.
        chunk: at least 1.

    Raises:
        DataError: their widths differ.
    """
    require_same_width(query, gallery)
    # A large gallery is made float64 part by part, for each chunk anew; a small one once.
    step = max(1, _PART // max(1, gallery.shape[1]))
    parts = [slice(at, at + step) for at in range(0, len(gallery), step)]
    kept = [exact(gallery[part]) for part in parts] if len(parts) == 1 else None
    # Kept from chunk to chunk: new memory costs a page fault every 4 KiB.
    products = np.empty((min(chunk, len(query)), min(step, len(gallery))))
    for at in range(0, len(query), chunk):
        part = exact(query[at : at + chunk])
        block = np.empty((len(part), len(gallery)), np.float32)
        for number, where in enumerate(parts):
            rows = kept[number] if kept else exact(gallery[where])
            block[:, where] = np.matmul(part, rows.T, out=products[: len(part), : len(rows)])
            del rows  # Or two parts would be there at once.
        yield block


def cosines(
    query: Int[np.ndarray, "Q D"],
    gallery: Int[np.ndarray, "G D"],
    rows: Int[np.ndarray, "P"],
    items: Int[np.ndarray, "P"],
) -> Float[np.ndarray, "P"]:
    """Returns the cosines of some pairs as `cosine_blocks` does, to the last bit.

    Args:
        query: from `unit_rows`.
        gallery: the same.
        rows: each pair's row in `query`.
        items: its row in `gallery`.
    """
    found = np.empty(len(rows), np.float32)
    for at in range(0, len(rows), CHUNK):
        part = slice(at, at + CHUNK)
        products = np.vecdot(query[rows[part]], gallery[items[part]], dtype=np.float64)
        found[part] = products / _GRID**2
    return found


def bootstrap(
    ranking: Ranking,
    *,
    seed: int,
    unit: Literal["identity", "query"] = "identity",
    samples: int = 1000,
) -> dict[str, tuple[float, float]]:
    """Returns each metric's 95 % percentile interval, in percent, by resampling queries.

    The queries of one identity search for the same images, and succeed or fail together: drawn one
    by one they would pass for more evidence than they are. So whole identities are drawn, with all
    their queries. The gallery stays as it is. With few identities (the embedded sample's test has
    five) an interval is rough, and rather too narrow than too wide.

    Args:
        ranking: at least two identities.
        seed: the same gives the same interval, whatever the order of queries and gallery.
        unit: what is drawn; "query" takes the queries for independent.
        samples: number of resamplings.

    Raises:
        DataError: there are fewer than two units.
    """
    names, values = zip(*ranking.per_query().items(), strict=True)
    order = np.lexsort((*values, ranking.identity))
    values = np.stack([*values, np.ones(len(order))], axis=1)[order]
    if unit == "identity":
        _, starts = np.unique(ranking.identity[order], return_index=True)
        values = np.add.reduceat(values, starts, axis=0)
    if len(values) < 2:
        raise DataError(f"an interval needs two {unit} units or more, not {len(values)}")
    rng = host_generator(seed, "bootstrap", 0)
    drawn = (rng.integers(len(values), size=len(values)) for _ in range(samples))
    totals = np.stack([values[rows].sum(axis=0) for rows in drawn])
    low, high = np.percentile(100.0 * totals[:, :-1] / totals[:, -1:], [2.5, 97.5], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}


class _Matches(NamedTuple):
    """The matches of query `i`: the `counts[i]` of `items` from `starts[i]` on."""

    items: Int[np.ndarray, "G"]
    starts: Int[np.ndarray, "Q"]
    counts: Int[np.ndarray, "Q"]

    @classmethod
    def of(cls, queries: np.ndarray, gallery: np.ndarray) -> "_Matches":
        # One type for both: of int64 and uint64 NumPy would compare the floats that are nearest.
        queries, gallery = (side.astype(np.int64, copy=False) for side in (queries, gallery))
        items = np.argsort(gallery, kind="stable")
        starts, ends = (
            np.searchsorted(gallery[items], queries, side) for side in ("left", "right")
        )
        return cls(items, starts, ends - starts)

    def by_count(self, at: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the rows, of `size` from `at` on, that have equally many matches, and those."""
        starts, counts = self.starts[at : at + size], self.counts[at : at + size]
        for count in np.unique(counts[counts > 0]):
            rows = np.flatnonzero(counts == count)
            yield rows, self.items[starts[rows, None] + np.arange(count)]


def _decided_blocks(
    query: np.ndarray, gallery: np.ndarray, matches: _Matches, chunk: int
) -> Iterator[Float[np.ndarray, "C G"]]:
    """Yields cosines that rank as those of `cosine_blocks` do; most are mere float32 products.

    These take half as long, and are off by less than a known bound. So an item that lies farther
    from a match than that is on its right side; the others, and matches, get their exact cosines.
    """
    require_same_width(query, gallery)
    # Of rows of length 1, a sum of n products is off by at most n u / (1 - n u), in any order, with
    # u = 2**-24 (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). Four more roundings:
    # of both rows, of the exact cosine and of a band's end; the last is for lengths a bit above 1.
    error = (query.shape[1] + 5) * 2.0**-24
    bound = np.float32(error / (1.0 - error))
    gallery32 = gallery.astype(np.float32)
    gallery32 /= _GRID**2
    for at in range(0, len(query), chunk):
        part = query[at : at + chunk]
        block = part.astype(np.float32) @ gallery32.T
        pairs = []
        for rows, own in matches.by_count(at, len(block)):
            hits = cosines(part, gallery, rows.repeat(own.shape[1]), own.ravel()).reshape(own.shape)
            near = block[rows]
            block[rows[:, None], own] = hits
            np.put_along_axis(near, own, -np.inf, axis=1)
            bands = ((near >= hit - bound) & (near <= hit + bound) for hit in hits.T[:, :, None])
            open_ = np.flatnonzero(functools.reduce(np.bitwise_or, bands))
            row, item = np.divmod(open_, len(gallery))
            pairs.append((rows[row], item))
        row, item = np.concatenate([np.empty((2, 0), int), *pairs], axis=1)
        if len(row) <= _FEW_PAIRS * block.size:
            block[row, item] = cosines(part, gallery, row, item)
        else:
            (block,) = cosine_blocks(part, gallery, chunk=chunk)
        yield block


def _ranks(rows: Float[np.ndarray, "N G"], own: Int[np.ndarray, "N M"]) -> Int[np.ndarray, "N M"]:
    """Returns the ranks, ascending from 1, of each query's M matches; ties count against them."""
    hits = np.sort(np.take_along_axis(rows, own, axis=1), axis=1)

    def at_least(values: np.ndarray) -> np.ndarray:
        """Counts those of each row that are as great as each of its hits, or greater."""
        if hits.shape[1] >= _SORTED_FROM:
            return values.shape[1] - _below(np.sort(values, axis=1), hits)
        # `count_nonzero` would take twice as long.
        counts = [np.sum(values >= hit[:, None], axis=1, dtype=np.int32) for hit in hits.T]
        return np.stack(counts, axis=1)

    others = at_least(rows) - at_least(hits)
    return others[:, ::-1] + np.arange(1, hits.shape[1] + 1)


def _below(
    rows: Float[np.ndarray, "N G"], values: Float[np.ndarray, "N M"]
) -> Int[np.ndarray, "N M"]:
    """Returns how many numbers of each ascending row are below each of its values."""
    return np.array([np.searchsorted(*pair) for pair in zip(rows, values, strict=True)])


def _matrix(values: np.ndarray | Array, name: str, shape: str) -> np.ndarray:
    values = _array(values, name)
    if values.ndim != 2 or not jnp.issubdtype(values.dtype, jnp.floating):
        raise DataError(f"{name}: {values.dtype}{list(values.shape)}, expected float[{shape}]")
    return values


def _array(values: np.ndarray | Array, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:  # Lists of different lengths.
        raise DataError(f"{name}: {error}") from None


def _identities(values: np.ndarray | Array, side: str) -> np.ndarray:
    values = _array(values, f"{side} identities")
    if values.ndim != 1 or not jnp.issubdtype(values.dtype, jnp.integer):
        raise DataError(f"{side} identities: {values.dtype}{list(values.shape)}, expected int[N]")
    return values


def _require_fit(
    shape: tuple[int, int], identities: tuple[np.ndarray, np.ndarray], subject: str
) -> None:
    """Compares queries and gallery items with their identities, and names all that do not fit."""
    faults = [
        f"{count} {what} and there are {len(labels)} identities for them"
        for count, what, labels in zip(shape, ("queries", "gallery items"), identities, strict=True)
        if count != len(labels)
    ]
    if faults:
        raise DataError(f"{subject} {'; '.join(faults)}")
