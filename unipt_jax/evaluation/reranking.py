"""k-reciprocal re-ranking: items that are among each other's nearest belong together.

After Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding" (CVPR 2017),
with texts and images as one set: neighbours follow from the similarities of queries to gallery, of
gallery to gallery and of queries to queries. A query's result so depends on the other queries: its
figures do not compare with those of methods that answer each query alone. Where an encoder keeps
texts and images apart, no text is an image's neighbour and the ranks stay as they were; subtract
each side's mean first.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Array, Float

from unipt_jax.core.errors import ConfigError, DataError
from unipt_jax.evaluation.retrieval import (
    CHUNK,
    cosine_blocks,
    exact,
    require_same_width,
    unit_rows,
)

# One array an item: items near it, or what it is made of.
Ragged = list[np.ndarray]


def reranked_blocks(
    query: Float[np.ndarray | Array, "Q D"],
    gallery: Float[np.ndarray | Array, "G D"],
    *,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    chunk: int = CHUNK,
) -> Iterator[Float[np.ndarray, "C G"]]:
    """Yields re-ranked similarities in [-1, 0], `chunk` queries after another, for `rank_blocks`.

    They are the negative of the paper's final distance: `weight` parts of the original one, here 2
    minus twice the cosine over the greatest of its row, and the rest the Jaccard distance of the
    k-reciprocal neighbours; neighbours are counted and weighed as in the authors' code. Items tied
    with the last neighbour are neighbours too, so that the order of the gallery does not matter.

    Every cosine is computed, none kept but a block's: with N = Q + G, memory is 16 N D bytes for
    copies of the features, then half, and 12 N `chunk` for a block, and some hundred neighbours of
    16 bytes an item (more with many duplicates); time grows with N * N.

    Args:
        query: any length, any float type.
        gallery: the same.
        k1: neighbours of an item beside itself (paper: 20).
        k2: neighbours, itself included, over which an item's neighbourhood is averaged (paper: 6).
        weight: the paper's lambda, in [0, 1] (paper: 0.3); 1 keeps the original ranks.
        chunk: at least 1.

    Raises:
        ConfigError: `k1`, `k2` or `weight` is out of range.
        DataError: the features' shapes or types do not fit, one is not finite, or there is none of
            the gallery.
    """
    if k1 < 1 or k2 < 1 or not 0.0 <= weight <= 1.0:
        raise ConfigError(
            f"k1={k1} and k2={k2} must be at least 1, and weight={weight} within 0 and 1"
        )
    rows = [unit_rows(query, "query"), unit_rows(gallery, "gallery")]
    require_same_width(*rows)
    if not len(gallery):
        raise DataError("gallery features: there are none to rank")
    rows = np.concatenate(rows)
    queries, size = len(query), len(gallery)
    (near, half, top), farthest = _neighbours(rows, (k1 + 1, round(k1 / 2) + 1, k2), chunk)
    members = _expanded(_reciprocal(near), _reciprocal(half))
    members, shares = _averaged(members, _shares(rows, members, farthest), top)

    # For each item, the gallery items that it is part of.
    parts = np.concatenate(members[queries:])
    holders = np.repeat(np.arange(size), [len(each) for each in members[queries:]])
    order = np.argsort(parts, kind="stable")
    holders, held = holders[order], np.concatenate(shares[queries:])[order]
    starts = np.searchsorted(parts[order], np.arange(len(rows) + 1))

    done = 0
    for block in cosine_blocks(rows[:queries], rows[queries:], chunk=chunk):
        for row, cosine in enumerate(block, done):
            spans = [slice(starts[part], starts[part + 1]) for part in members[row]]
            both = [np.minimum(held[s], share) for s, share in zip(spans, shares[row], strict=True)]
            where = np.concatenate([holders[s] for s in spans])
            shared = np.bincount(where, np.concatenate(both), minlength=size)
            jaccard = 1.0 - shared / (2.0 - shared)
            distance = _distance(cosine, farthest[row])
            block[row - done] = -((1.0 - weight) * jaccard + weight * distance)
        done += len(block)
        yield block


def _neighbours(
    rows: np.ndarray, counts: tuple[int, ...], chunk: int
) -> tuple[tuple[Ragged, ...], np.ndarray]:
    """Finds each item's nearest, once for each of `counts`, and its greatest distance to any."""
    found, farthest = tuple([] for _ in counts), []
    for block in cosine_blocks(rows, rows, chunk=chunk):
        farthest.append(_distance(block.min(axis=1), 1.0))
        for cosine in block:
            near = np.flatnonzero(_nearest(cosine, max(counts)))
            for lists, count in zip(found, counts, strict=True):
                lists.append(near[_nearest(cosine[near], count)])
    # Where all are equal, all distances are 0, whatever divides them.
    return found, np.maximum(np.concatenate(farthest), 1e-12)


def _nearest(cosine: np.ndarray, count: int) -> np.ndarray:
    """Marks the `count` greatest, and those that tie with the last of them."""
    count = min(count, len(cosine))
    return cosine >= np.partition(cosine, -count)[-count]


def _distance(cosine: np.ndarray, farthest: np.ndarray | float) -> np.ndarray:
    """Returns squared Euclidean distances between unit rows, as parts of the greatest."""
    return np.maximum(2.0 - 2.0 * cosine.astype(np.float64), 0.0) / farthest


def _reciprocal(near: Ragged) -> Ragged:
    """Keeps those of an item's neighbours that have it as theirs (the paper's R)."""
    items = np.repeat(np.arange(len(near)), [len(each) for each in near])
    others = np.concatenate(near)
    kept = np.isin(items * len(near) + others, others * len(near) + items)
    ends = np.cumsum(np.bincount(items[kept], minlength=len(near)))
    return np.split(others[kept], ends[:-1])


def _expanded(reciprocal: Ragged, half: Ragged) -> Ragged:
    """Adds the neighbours' own closer neighbours where over two thirds are shared (R*)."""
    inside, expanded = np.zeros(len(half), bool), []
    for own in reciprocal:
        inside[own] = True
        joined = [
            half[other]
            for other in own
            if 3 * np.count_nonzero(inside[half[other]]) > 2 * len(half[other])
        ]
        inside[own] = False
        expanded.append(np.unique(np.concatenate([own, *joined])))
    return expanded


def _shares(rows: np.ndarray, members: Ragged, farthest: np.ndarray) -> Ragged:
    """Weighs the members of each neighbourhood by their distance; they sum to 1 (V)."""
    shares = []
    for item, own in enumerate(members):
        # In float32, as in the blocks: a distance is the same wherever it is computed.
        cosine = (exact(rows[own]) @ exact(rows[item])).astype(np.float32)
        weights = np.exp(-_distance(cosine, farthest[item]))
        shares.append(weights / weights.sum())
    return shares


def _averaged(members: Ragged, shares: Ragged, top: Ragged) -> tuple[Ragged, Ragged]:
    """Replaces each neighbourhood by the mean over the item's nearest (its query expansion)."""
    averaged_members, averaged_shares = [], []
    for nearest in top:
        every, where = np.unique(
            np.concatenate([members[other] for other in nearest]), return_inverse=True
        )
        total = np.bincount(where, np.concatenate([shares[other] for other in nearest]))
        averaged_members.append(every)
        averaged_shares.append(total / len(nearest))
    return averaged_members, averaged_shares
