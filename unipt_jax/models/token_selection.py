"""Embeddings of the tokens that matter most to the one that stands for all.

Token selection embedding (TSE) of RDE: Qin et al., "Noisy-Correspondence Learning for Text-to-Image
Person Re-identification" (CVPR 2024), section 3.2.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from unipt_jax.core.errors import ConfigError
from unipt_jax.core.sharding import Axis, constrain
from unipt_jax.models.checks import require_fields
from unipt_jax.models.heads import masked_max, unit_rows
from unipt_jax.models.layers import TOKENS, dense


@dataclasses.dataclass(frozen=True)
class TokenSelectionSpec:
    """Shape of the token selection embedding; the defaults are those of the published code.

    Attributes:
        ratio: how many tokens are selected, as a fraction of the candidates of the longest input,
            in (0, 1].
        feature_dim: width of the embedding.

    Raises:
        ConfigError: a value is not what its field is declared to be, or `ratio` is above 1.
    """

    ratio: float = 0.3
    feature_dim: int = 1024

    def __post_init__(self):
        require_fields(self)
        if self.ratio > 1:
            raise ConfigError(f"ratio={self.ratio} is not a fraction in (0, 1]")


def words_before(end: Int[Array, "B"], text_mask: Bool[Array, "B L"]) -> Bool[Array, "B L"]:
    """Returns True at a text's candidates: its tokens between the first and that at `end`."""
    place = jnp.arange(text_mask.shape[1])[None]
    return text_mask & (place > 0) & (place < end[:, None])


class TokenSelection(nn.Module):
    """Selects tokens by attention, maps each, and takes the maximum over them.

    Each modality has a module of its own. The published MLP normalises its hidden layer by batch
    statistics; here it does not, so that a row never depends on the others. (Trained statistics
    are a scale and a shift, which `fc1` can express.)

    Attributes:
        spec: the shape.
        longest: number of candidates of the longest input, from which the number of selected tokens
            follows for every input: patches of an image (RDE: 192, of which 57 are selected), or
            the text encoder's positions less the first and the end-of-text token (75, 22).
        dtype: compute dtype; embeddings are float32 whatever it is.
    """

    spec: TokenSelectionSpec
    longest: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B L D"],
        attention: Float[Array, "B L"],
        candidates: Bool[Array, "C L"],
    ) -> Float[Array, "B E"]:
        """Returns float32 embeddings, not normalised.

        An input with fewer candidates than are to be selected gives all that it has; one without
        any (a text without a word) gives zeros. No gradient flows through the selection.

        Args:
            tokens: projected to the common space; their lengths do not matter.
            attention: of the class or end-of-text token, from the encoder; NaN gives NaN.
            candidates: the tokens that may be selected: an image's patches, a text's
                `words_before` its end. C is B, or 1 where it is the same for all rows.
        """
        selected = min(max(1, int(self.longest * self.spec.ratio)), tokens.shape[1])
        # Attention is never negative, so that candidates come before all others. A sort, for which
        # no device needs another's rows, as it does for `top_k`.
        scores = jnp.where(candidates, attention, -1.0)
        places = jnp.argsort(scores, axis=1, descending=True)[:, :selected]
        scores = jnp.take_along_axis(scores, places, axis=1)
        places = jnp.where(jnp.isnan(scores), tokens.shape[1], places)
        x = jnp.take_along_axis(tokens, places[:, :, None], axis=1, mode="fill", fill_value=jnp.nan)
        x = unit_rows(constrain(x, TOKENS).astype(jnp.float32))
        width, hidden = self.spec.feature_dim, self.spec.feature_dim // 2
        linear = dense(width, (Axis.EMBED, Axis.OUTPUT), dtype=self.dtype, name="projection")
        fc1 = dense(hidden, (Axis.EMBED, Axis.MLP), dtype=self.dtype, name="fc1")
        fc2 = dense(width, (Axis.MLP, Axis.OUTPUT), dtype=self.dtype, name="fc2")
        x = constrain(fc2(nn.relu(fc1(x))) + linear(x), TOKENS)
        return masked_max(x.astype(jnp.float32), ~(scores < 0))
