"""Identity-balanced batches: some identities, and as many pairs of each.

Batch `k` is a pure function of the pairs, the seed and `k`, found without looking at other batches.
"""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Int

from unipt_jax.core.errors import ConfigError
from unipt_jax.core.random import host_generator


@dataclasses.dataclass(frozen=True, eq=False)
class IdentityBatches:
    """Maps a batch's number to the positions of its examples and to their pairs.

    A batch is `groups` groups of `instances` pairs, each group of another identity. Identities
    come in rounds of whole batches: a round is a random permutation of all of them but a remainder
    that would not fill a batch, and the remainder wanders, so that after every round all identities
    have had the same number of groups, or one less. So it is with the pairs of an identity, at any
    time: none comes the n + 1st time before all have come n times. Where an identity's images have
    equally many captions and there are no fewer images than `instances`, the pairs of a group show
    different images; otherwise captions of one image are as far apart as they can be on average.

    `pairs` are the numbers of the pairs sorted by identity, `images` their images, and the pairs
    of identity i are those from `starts[i]` to `starts[i + 1]`.
    """

    pairs: Int[np.ndarray, "P"]
    images: Int[np.ndarray, "P"]
    starts: Int[np.ndarray, "S"]
    groups: int
    instances: int
    seed: int

    def __call__(self, number: int) -> tuple[Int[np.ndarray, "B"], Int[np.ndarray, "B"]]:
        """Returns the batch's positions, counted over all batches, and its pairs."""
        identities = len(self.starts) - 1
        left_out = identities % self.groups
        per_round = identities - left_out
        turn, batch = divmod(number, per_round // self.groups)
        order = _permutation(self.seed, turn, per_round)
        kept = order[batch * self.groups : (batch + 1) * self.groups].astype(np.int64)
        # Round r leaves out `left_out` identities from number r * left_out on, all round.
        chosen = (kept + (turn + 1) * left_out) % identities
        missed = (turn * left_out + identities - 1 - chosen) // identities
        pairs = [
            self._group(identity, visit)
            for identity, visit in zip(chosen.tolist(), (turn - missed).tolist(), strict=True)
        ]
        size = self.groups * self.instances
        return number * size + np.arange(size), np.concatenate(pairs)

    def _group(self, identity: int, visit: int) -> Int[np.ndarray, "K"]:
        """Returns the pairs of an identity when its turn comes for the `visit`-th time, from 0.

        They are read off a circle of all its pairs, on from where the visit before ended; once a
        visit ends where the circle begins, the circle is arranged anew.
        """
        first, last = self.starts[identity], self.starts[identity + 1]
        size = int(last - first)
        circle, place = divmod(visit * self.instances, math.lcm(size, self.instances))
        rng = host_generator(self.seed, f"identity {identity}", circle)
        order = _spread(self.images[first:last], rng)
        return self.pairs[first + order[(place + np.arange(self.instances)) % size]]


def identity_batches(
    pair_images: Int[np.ndarray, "P"],
    image_identities: Int[np.ndarray, "N"],
    *,
    batch_size: int,
    instances: int,
    seed: int,
) -> IdentityBatches:
    """Returns the batches of `batch_size / instances` identities with `instances` pairs each.

    Args:
        pair_images: each pair's image.
        image_identities: each image's identity.
        batch_size: pairs in a batch.
        instances: pairs of an identity in a batch; one with fewer pairs repeats them.
        seed: of the run.

    Raises:
        ConfigError: `instances` does not divide the batch, or there are too few identities.
    """
    if batch_size % instances:
        raise ConfigError(
            f"batch_size={batch_size} cannot hold instances={instances} pairs of each of its "
            "identities; make it a multiple"
        )
    identity = image_identities[pair_images]
    pairs = np.argsort(identity, kind="stable")
    _, counts = np.unique(identity, return_counts=True)
    groups = batch_size // instances
    if groups > len(counts):
        raise ConfigError(
            f"batch_size={batch_size} with instances={instances} needs {groups} identities, and "
            f"the data have {len(counts)}; lower batch_size or raise instances"
        )
    return IdentityBatches(
        pairs=pairs.astype(np.int32),
        images=pair_images[pairs],
        starts=np.concatenate([[0], np.cumsum(counts)]),
        groups=groups,
        instances=instances,
        seed=seed,
    )


# A round is shared by many batches; reading ahead may be in two rounds at once.
@functools.lru_cache(maxsize=2)
def _permutation(seed: int, turn: int, size: int) -> Int[np.ndarray, "I"]:
    rng = host_generator(seed, "identities", turn)
    return rng.permutation(np.arange(size, dtype=np.int32))


def _spread(images: Int[np.ndarray, "P"], rng: np.random.Generator) -> Int[np.ndarray, "P"]:
    """Returns a random order in which the pairs of each image are evenly spaced on a circle."""
    _, image, counts = np.unique(images, return_inverse=True, return_counts=True)
    shuffled = rng.permutation(len(images))
    by_image = shuffled[np.argsort(image[shuffled], kind="stable")]
    rank = np.empty(len(images), np.int64)
    rank[by_image] = np.arange(len(images)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.argsort((rank + rng.random(len(counts))[image]) / counts[image])
