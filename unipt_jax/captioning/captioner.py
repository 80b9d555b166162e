"""A frozen CLIP and a lexicon put together: pixels become attributes, and these a sentence."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from unipt_jax.captioning import composer, scorer
from unipt_jax.captioning.lexicon import Lexicon
from unipt_jax.core import trees
from unipt_jax.core.errors import ConfigError, DataError
from unipt_jax.core.sharding import batch_sharding
from unipt_jax.models import specs
from unipt_jax.models.dual_encoder import DualEncoder


@dataclasses.dataclass(frozen=True)
class Clip:
    """The model that judges: `encode_texts` gives unit rows, as `Encoder.encode_texts` does."""

    model: DualEncoder
    params: Any
    encode_texts: Callable[[Sequence[str]], np.ndarray]


def require_temperature(model: DualEncoder) -> None:
    """Checks that a model's similarities tell how sure it is.

    Raises:
        ConfigError: they have no temperature: among cosines no phrase is ever likelier than 0.9.
    """
    if model.spec.temperature == "none":
        raise ConfigError(
            "the model of `clip` has no temperature, so that no optional attribute would ever be "
            "kept; take a CLIP, or a run with similarity.temperature=learned"
        )


class Captioner:
    """Judges batches of images that are this process's own, on the devices of `mesh`.

    Args:
        clip: the model, with a temperature (`require_temperature`).
        words: attributes, templates and prompts.
        mesh: devices of this process.
        wrappers: prompts around each phrase over which its feature is averaged (paper: 1).
        threshold: probability above which an optional attribute is kept.
        seed: of templates and synonyms.
    """

    def __init__(
        self,
        clip: Clip,
        words: Lexicon,
        mesh: Mesh,
        *,
        wrappers: int = 1,
        threshold: float = scorer.THRESHOLD,
        seed: int = 0,
    ):
        self.image_size = clip.model.spec.image.image_size
        self._clip, self._words, self._mesh = clip, words, mesh
        self._wrappers, self._threshold, self._seed = words.wrappers[:wrappers], threshold, seed
        self._labels = {name: tuple(each.phrases) for name, each in words.sets.items()}

    @cached_property
    def fingerprint(self) -> str:
        """What tells its judgements from others': weights, how they are used, and prompts."""
        prompts = [
            each.prompts(wrapper)
            for each in self._words.sets.values()
            for wrapper in self._wrappers
        ]
        spec = specs.to_dict(self._clip.model.spec)
        asked = json.dumps([spec, prompts, self._threshold]).encode()
        return trees.fingerprint([np.frombuffer(asked, np.uint8), self._clip.params])

    @cached_property
    def _score(self) -> Callable[[np.ndarray], tuple[Array, Array]]:
        """Encodes the prompts, once a first image is there to be judged."""
        clip, sets = self._clip, self._words.sets
        everywhere, split = NamedSharding(self._mesh, PartitionSpec()), batch_sharding(self._mesh)
        features = scorer.prompt_features(clip.encode_texts, sets, self._wrappers)
        given = jax.device_put((clip.params, features), everywhere)
        score = scorer.make_scorer(clip.model, scorer.layout(sets), self._mesh, self._threshold)
        # Not `put_batch`: the mesh is this process's own, and so is the whole batch.
        return lambda image: score(*given, jax.device_put(image, split))

    def judge(
        self, image: UInt8[np.ndarray, "B H W 3"]
    ) -> tuple[Int[Array, "B A"], Float[Array, "B A"]]:
        """Returns what `scorer.decide` returns, without waiting for it; B splits evenly."""
        return self._score(image)

    def row(
        self, path: str, indices: Int[np.ndarray, " A"], probabilities: Float[np.ndarray, " A"]
    ) -> dict[str, Any]:
        """Returns the line of `captions.jsonl` of one judged image: path, caption, attributes.

        Raises:
            DataError: a probability is not finite.
        """
        if not np.isfinite(probabilities).all():
            name = list(self._labels)[int(np.argmin(np.isfinite(probabilities)))]
            raise DataError(
                f"{path}: the probability of {name!r} is not finite; the weights of `clip`, or its "
                "temperature, are damaged"
            )
        attributes = {
            name: {
                "phrase": phrases[index] if index >= 0 else None,
                "probability": round(float(probability), 4),
            }
            for (name, phrases), index, probability in zip(
                self._labels.items(), indices, probabilities, strict=True
            )
        }
        choices = {name: chosen["phrase"] for name, chosen in attributes.items()}
        text = composer.compose(self._words, choices, seed=self._seed, path=path)
        return {"image": path, "caption": text, "attributes": attributes}
