"""The nearest rows against a full sort."""

import numpy as np
import pytest

from unipt_jax.search import neighbours


def brute(features, query, k, numbers):
    scores = features[numbers] @ query
    order = sorted(range(len(numbers)), key=lambda at: (-scores[at], numbers[at]))[:k]
    return numbers[order], scores[order]


@pytest.mark.parametrize("block", [1, 3, 16, 1000])
@pytest.mark.parametrize("k", [1, 4, 60, 200])
def test_exact_is_a_full_sort(block, k, monkeypatch):
    """Whole numbers make many ties, which the earlier row wins, across blocks too."""
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    random = np.random.default_rng(block + k)
    features = random.integers(-2, 3, (100, 3)).astype(np.float32)
    query = random.integers(-2, 3, 3).astype(np.float32)
    for numbers in (np.arange(100), np.sort(random.choice(100, 37, replace=False))):
        rows, scores = neighbours.exact(features, query, k, numbers)
        wanted = brute(features, query, k, numbers)
        assert rows.tolist() == wanted[0].tolist() and scores.tolist() == wanted[1].tolist()


def test_of_no_rows_none_is_nearest():
    rows, scores = neighbours.exact(
        np.zeros((3, 2), np.float32), np.ones(2, np.float32), 5, np.arange(0)
    )
    assert len(rows) == len(scores) == 0


@pytest.fixture
def clustered(monkeypatch):
    """Unit rows around 60 centres, as persons are with several images each."""
    monkeypatch.setattr(neighbours, "LARGE", 1000)
    random = np.random.default_rng(0)
    centres = random.normal(size=(60, 32))
    features = centres[random.integers(60, size=6000)] + 0.3 * random.normal(size=(6000, 32))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def share_found(made, features, numbers, queries=40):
    random, shares = np.random.default_rng(1), []
    for _ in range(queries):
        query = features[random.integers(len(features))]
        rows, scores = made.nearest(query, 10)
        wanted, _ = neighbours.exact(features, query, 10, numbers)
        np.testing.assert_allclose(scores, features[rows] @ query, rtol=1e-6)
        assert (np.diff(scores) <= 0).all() and np.isin(rows, numbers).all()
        shares.append(np.isin(wanted, rows).mean())
    return np.mean(shares)


def test_lists_find_nearly_what_a_full_sort_finds(clustered, tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    numbers = np.flatnonzero(np.arange(6000) % 7)  # Some rows are superseded.
    made = neighbours.Neighbours(clustered, numbers, tmp_path)
    monkeypatch.setattr(neighbours, "exact", watched := Watched(neighbours.exact))
    assert share_found(made, clustered, numbers) > 0.95
    assert min(watched.sizes) < 1000  # It was not a full sort that found them.


class Watched:
    """Notes how many rows `exact` was given."""

    def __init__(self, function):
        self.function, self.sizes = function, []

    def __call__(self, features, query, k, numbers):
        self.sizes.append(len(numbers))
        return self.function(features, query, k, numbers)


def test_lists_are_kept_and_take_new_rows(clustered, tmp_path):
    faiss = pytest.importorskip("faiss")
    neighbours.Neighbours(clustered[:4000], np.arange(4000), tmp_path)
    first = (tmp_path / neighbours.APPROXIMATE).stat().st_mtime_ns
    neighbours.Neighbours(clustered[:4000], np.arange(4000), tmp_path)
    assert (tmp_path / neighbours.APPROXIMATE).stat().st_mtime_ns == first
    made = neighbours.Neighbours(clustered, np.arange(6000), tmp_path)
    kept = faiss.read_index(str(tmp_path / neighbours.APPROXIMATE))
    assert kept.ntotal == 6000
    assert share_found(made, clustered, np.arange(6000)) > 0.95


@pytest.mark.parametrize("damage", [b"", b"IwSq", None])
def test_damaged_lists_are_made_again(clustered, tmp_path, damage):
    pytest.importorskip("faiss")
    path = tmp_path / neighbours.APPROXIMATE
    neighbours.Neighbours(clustered, np.arange(6000), tmp_path)
    path.write_bytes(path.read_bytes()[:5000] if damage is None else damage)
    made = neighbours.Neighbours(clustered, np.arange(6000), tmp_path)
    assert share_found(made, clustered, np.arange(6000)) > 0.95


def test_lists_of_more_rows_than_there_are_are_made_again(clustered, tmp_path):
    pytest.importorskip("faiss")
    neighbours.Neighbours(clustered, np.arange(6000), tmp_path)
    made = neighbours.Neighbours(clustered[::2], np.arange(3000), tmp_path)
    assert share_found(made, clustered[::2], np.arange(3000)) > 0.95


def test_many_are_found_where_many_are_asked_for(clustered, tmp_path):
    pytest.importorskip("faiss")
    made = neighbours.Neighbours(clustered, np.arange(6000), tmp_path)
    assert len(made.nearest(clustered[0], 5000)[0]) == 5000


def test_what_is_not_allowed_is_not_found(clustered, tmp_path):
    pytest.importorskip("faiss")
    made = neighbours.Neighbours(clustered, np.arange(6000), tmp_path)
    for allowed in (np.arange(6000) % 3 == 0, np.arange(6000) < 5, np.zeros(6000, bool)):
        rows, _ = made.nearest(clustered[1], 10, allowed)
        assert allowed[rows].all() and len(rows) == min(10, allowed.sum())


def test_without_faiss_all_are_compared(clustered, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    made = neighbours.Neighbours(clustered, np.arange(6000), tmp_path)
    assert "pip install 'unipt-jax[search]'" in caplog.text
    assert share_found(made, clustered, np.arange(6000)) == 1
