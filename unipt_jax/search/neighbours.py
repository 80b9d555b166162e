"""The nearest rows of a matrix that is mapped into memory: all are compared, or a sample of lists.

Up to `LARGE` rows a query meets every one, in blocks. Beyond that faiss, where it is installed,
names candidates from inverted lists of 8-bit rows, and these are compared in float32.
"""

import contextlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from unipt_jax.core.files import write_bytes

log = logging.getLogger(__name__)

LARGE = 1_000_000
APPROXIMATE = "neighbours.faiss"

_BLOCK = 1 << 16
_CANDIDATES = 20  # for each that is asked for
_PROBED = 8  # of the lists, one in so many

Found = tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]


def exact(
    features: Float[np.ndarray, "rows D"],
    query: Float[np.ndarray, " D"],
    k: int,
    numbers: Int[np.ndarray, " N"],
) -> Found:
    """Returns the `k` of the rows `numbers`, ascending, that are most similar to a query.

    Fewer where `numbers` has fewer; of equals the earlier row comes first.

    Returns:
        Row numbers and similarities (dot products), most similar first.
    """
    best, scores = numbers[:0], np.zeros(0, np.float32)
    for at in range(0, len(numbers), _BLOCK):
        block = numbers[at : at + _BLOCK]
        whole = block[-1] - block[0] + 1 == len(block)
        rows = features[block[0] : block[-1] + 1] if whole else features[block]
        best, scores = np.concatenate([best, block]), np.concatenate([scores, rows @ query])
        if len(best) > k:
            # All that reach the k-th similarity: which of equals stay is for the stable sort.
            reach = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
            best, scores = best[reach], scores[reach]
        order = np.argsort(-scores, kind="stable")[:k]
        best, scores = best[order], scores[order]
    return best, scores


class Neighbours:
    """Finds the rows most similar to a query, among `numbers` or a part of them.

    Args:
        features: unit rows.
        numbers: those that count, ascending.
        place: directory that keeps faiss's lists, which are made there if they are not yet.
    """

    def __init__(
        self,
        features: Float[np.ndarray, "rows D"],
        numbers: Int[np.ndarray, " N"],
        place: Path,
    ):
        self._features, self._numbers = features, numbers
        self._lists = None if len(numbers) <= LARGE else _open_lists(features, place)

    def nearest(
        self, query: Float[np.ndarray, " D"], k: int, among: Bool[np.ndarray, " N"] | None = None
    ) -> Found:
        """Returns what `exact` returns, or nearly so: of `numbers`, those that `among` marks."""
        numbers = self._numbers if among is None else self._numbers[among]
        if self._lists is None or len(numbers) <= LARGE:
            return exact(self._features, query, k, numbers)
        candidates = self._candidates(query, _CANDIDATES * k, numbers)
        if len(candidates) < k:  # The lists that were looked at have no more.
            candidates = numbers
        return exact(self._features, query, k, np.sort(candidates))

    def _candidates(self, query: np.ndarray, count: int, numbers: np.ndarray) -> np.ndarray:
        import faiss

        marks = np.zeros(len(self._features), bool)
        marks[numbers] = True
        chosen = faiss.IDSelectorBitmap(np.packbits(marks, bitorder="little"))
        probed = -(-self._lists.nlist // _PROBED)
        how = faiss.SearchParametersIVF(sel=chosen, nprobe=probed)
        _, found = self._lists.search(query[None], count, params=how)
        return found[0][found[0] >= 0]


def _open_lists(features: np.ndarray, place: Path) -> Any:
    """Reads faiss's lists, or makes them, and adds the rows that they lack."""
    try:
        import faiss  # an extra: small galleries do without
    except ImportError:
        log.warning(
            "each query is compared with all %d images; pip install 'unipt-jax[search]' for an "
            "index that is faster",
            len(features),
        )
        return None
    path, lists = place / APPROXIMATE, None
    if path.exists():
        # What is damaged is made again.
        with contextlib.suppress(RuntimeError):
            lists = faiss.deserialize_index(np.fromfile(path, np.uint8))
    if lists is None or lists.d != features.shape[1] or lists.ntotal > len(features):
        log.info("sorting %d images into lists", len(features))
        count = 2 * round(len(features) ** 0.5)
        lists = faiss.index_factory(
            features.shape[1], f"IVF{count},SQ8", faiss.METRIC_INNER_PRODUCT
        )
        sample = np.random.default_rng(0).choice(len(features), min(len(features), 40 * count))
        lists.train(features[np.sort(sample)])
    if lists.ntotal < len(features):
        for at in range(lists.ntotal, len(features), _BLOCK):
            lists.add(np.ascontiguousarray(features[at : at + _BLOCK]))
        write_bytes(path, faiss.serialize_index(lists).tobytes())
    return lists
