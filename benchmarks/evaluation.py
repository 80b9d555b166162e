"""The ranks of queries in a gallery against a full argsort, in time and memory.

The peers do what published evaluators do: all cosines in float32, the whole order of the gallery
for all queries by `torch.argsort` or `numpy.argsort`, metrics from the matches along it. They lose
no time on loops over queries, as some of those do. Features are random, 512 wide, in clusters of
three gallery items an identity. Each side has a process of its own: its first run tells its memory,
the most that it held beyond the features; the next are timed, in turn.

The first size is CUHK-PEDES's test. The second is a slice of 60,000 queries, of which the peers
would need some 40 GB: the memory that they take grows with the queries, and ours does not.

Usage: python benchmarks/evaluation.py [--queries=4000] [--gallery=20000] [--dimensions=512]
    [--rounds=3]
"""

import contextlib
import functools
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import compare
import numpy as np
import torch

from unipt_jax.evaluation.retrieval import rank_features

MATCHES = 3
NAMES = ("R1", "R5", "R10", "mAP", "mINP")


@functools.cache
def clusters(queries: int, gallery: int, dimensions: int):
    """Returns features of queries and gallery, and the identities of both."""
    rng = np.random.default_rng(0)
    identities = max(gallery // MATCHES, 1)
    centres = rng.standard_normal((identities, dimensions), dtype=np.float32)
    rows, labels = [], []
    for count in (queries, gallery):
        labels.append(np.arange(count) % identities)
        features = rng.standard_normal((count, dimensions), dtype=np.float32)
        for feature, label in zip(features, labels[-1], strict=True):
            feature *= 2.5
            feature += centres[label]
        rows.append(features)
    return *rows, *labels


def ours(*data) -> dict[str, float]:
    """Counts what ranks before each match."""
    return rank_features(*data).metrics()


def by_torch(*data) -> dict[str, float]:
    """Ranks the whole gallery for all queries."""
    query, gallery, query_identity, gallery_identity = map(torch.from_numpy, data)
    query, gallery = (torch.nn.functional.normalize(x, dim=1) for x in (query, gallery))
    order = torch.argsort(query @ gallery.T, dim=1, descending=True)
    match = gallery_identity[order] == query_identity[:, None]
    hits, place = match.cumsum(dim=1), torch.arange(1, len(gallery) + 1)
    count, last = hits[:, -1], len(gallery) - match.flip(1).int().argmax(dim=1)
    precision = (hits / place * match).sum(dim=1) / count
    return _percent(hits[:, [0, 4, 9]].numpy(), precision.numpy(), (count / last).numpy())


def by_numpy(query, gallery, query_identity, gallery_identity) -> dict[str, float]:
    """Ranks the whole gallery for all queries."""
    query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    order = np.argsort(-(query @ gallery.T), axis=1)
    match = gallery_identity[order] == query_identity[:, None]
    hits, place = match.cumsum(axis=1), np.arange(1, len(gallery) + 1)
    count, last = hits[:, -1], len(gallery) - match[:, ::-1].argmax(axis=1)
    precision = (hits / place * match).sum(axis=1) / count
    return _percent(hits[:, [0, 4, 9]], precision, count / last)


def _percent(hits: np.ndarray, precision: np.ndarray, penalty: np.ndarray) -> dict[str, float]:
    """Averages over queries: hits within 1, 5 and 10, average precision, inverse penalty."""
    values = (*(hits > 0).T, precision, penalty)
    return {name: 100 * float(np.mean(each)) for name, each in zip(NAMES, values, strict=True)}


SIDES = (ours, by_torch, by_numpy)


def held(what: str) -> int:
    """Returns what Linux counts of this process's memory, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{what}:")[1].split()[0])


def begin(side: int, sizes: tuple[int, int, int]) -> tuple[float, dict[str, float]]:
    """Returns the gigabytes that one of `SIDES` held beyond the features, and its metrics."""
    data = clusters(*sizes)
    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # The peak counts from here.
    metrics = SIDES[side](*data)
    return (held("VmHWM") - before) / 1e9, metrics


def again(side: int, sizes: tuple[int, int, int]) -> float:
    """Returns the seconds of one of `SIDES`."""
    data = clusters(*sizes)
    return compare.seconds(lambda: SIDES[side](*data))


def measure(queries: int, gallery: int, dimensions: int, rounds: int) -> Sequence[compare.Row]:
    """Measures all in turn, each in a process of its own, whose peak is not another's.

    Raises:
        ValueError: their metrics differ.
    """
    rows = []
    small, large = (6156, 3074, dimensions), (queries, gallery, dimensions)
    for sizes, repeats in ((small, 3 * rounds), (large, rounds)):
        with contextlib.ExitStack() as stack:
            spawn = multiprocessing.get_context("spawn")
            pools = [stack.enter_context(spawn.Pool(1)) for _ in SIDES]
            begun = [pool.apply(begin, (side, sizes)) for side, pool in enumerate(pools)]
            memory, metrics = zip(*begun, strict=True)
            for found in metrics[1:]:
                if not np.allclose(list(found.values()), list(metrics[0].values()), rtol=1e-5):
                    raise ValueError(f"metrics differ: {found} and {metrics[0]}")
            times = [
                [pool.apply(again, (side, sizes)) for side, pool in enumerate(pools)]
                for _ in range(repeats)
            ]
        mine, *theirs = zip(np.transpose(times), memory, strict=True)
        for name, (time, most) in zip(("torch", "numpy"), theirs, strict=True):
            task = f"ranks of {sizes[0]} queries in a gallery of {sizes[1]}, against {name}.argsort"
            rows.append(compare.row(task, mine[0], time, 3.0))
            ratio = most / mine[1]
            rows.append(compare.Row(f"{task}: memory", mine[1], most, "GB", ratio, 10.0))
    return rows


if __name__ == "__main__":
    compare.main(__doc__, measure, queries=4000, gallery=20_000, dimensions=512, rounds=3)
