"""The ranks of 60,000 queries in a gallery of 20,000 against a full argsort, in time and memory.

Features are random, 512 wide, in clusters of three gallery items an identity. The peer is what
retrieval code commonly does: cosines in float32, the whole order of the gallery by argsort, metrics
from the matches along it; in chunks of queries too, else its order alone would take 9.6 GB
(`--peer_chunk=0` lets it try). Each runs in a process of its own, in turn; times are medians, and
memory is the most that the process ever held beyond the features.

Usage: python benchmarks/evaluation.py [--queries=60000] [--gallery=20000] [--dimensions=512]
    [--chunk=256] [--peer_chunk=256] [--rounds=3]
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time

import numpy as np

from unipt_jax.evaluation.retrieval import rank_features

MATCHES = 3
# Linux counts the peak in KiB, macOS in bytes.
UNIT = 1 if sys.platform == "darwin" else 1024


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


def by_argsort(query, gallery, query_identity, gallery_identity, chunk: int) -> dict[str, float]:
    """Ranks the whole gallery for each query."""
    query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    sums, place = np.zeros(5), np.arange(1, len(gallery) + 1)
    for at in range(0, len(query), chunk or len(query)):
        part = slice(at, at + (chunk or len(query)))
        order = np.argsort(-(query[part] @ gallery.T), axis=1)
        match = gallery_identity[order] == query_identity[part, None]
        hits = match.cumsum(axis=1)
        count = hits[:, -1]
        last = len(gallery) - match[:, ::-1].argmax(axis=1)
        sums += [
            *((hits[:, min(k, len(gallery)) - 1] > 0).sum() for k in (1, 5, 10)),
            ((hits / place[None] * match).sum(axis=1) / count).sum(),
            (count / last).sum(),
        ]
    names = ("R1", "R5", "R10", "mAP", "mINP")
    return dict(zip(names, (100 * sums / len(query)).tolist(), strict=True))


def measure(peer: bool, sizes: tuple[int, int, int], chunk: int):
    """Returns seconds, bytes beyond the features, and the metrics."""
    data = clusters(*sizes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    metrics = by_argsort(*data, chunk) if peer else rank_features(*data, chunk=chunk).metrics()
    seconds = time.perf_counter() - started
    return seconds, UNIT * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), metrics


def alone(*arguments):
    """Runs `measure` in a process of its own, whose peak is not another's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def compare(sizes: tuple[int, int, int], chunk: int, peer_chunk: int, rounds: int):
    """Measures both in turn."""
    runs = [(alone(False, sizes, chunk), alone(True, sizes, peer_chunk)) for _ in range(rounds)]
    ours, peer = zip(*runs, strict=True)
    seconds = [float(np.median([run[0] for run in side])) for side in (ours, peer)]
    gigabytes = [max(run[1] for run in side) / 1e9 for side in (ours, peer)]
    return {
        "queries": sizes[0],
        "gallery": sizes[1],
        "ours_s": seconds[0],
        "argsort_s": seconds[1],
        "ratio": seconds[1] / seconds[0],
        "ours_gb": gigabytes[0],
        "argsort_gb": gigabytes[1],
        "memory_ratio": gigabytes[1] / gigabytes[0],
        "ours_metrics": ours[0][2],
        "argsort_metrics": peer[0][2],
        "command": f"python benchmarks/evaluation.py {' '.join(sys.argv[1:])}".strip(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=60_000)
    parser.add_argument("--gallery", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--peer_chunk", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    sizes = (flags.queries, flags.gallery, flags.dimensions)
    print(json.dumps(compare(sizes, flags.chunk, flags.peer_chunk, flags.rounds), indent=1))
