"""What the captioner makes of a judgement."""

import jax
import numpy as np
import pytest

from tests.captioning.test_scorer import SPEC
from unipt_jax.captioning import lexicon
from unipt_jax.captioning.captioner import Captioner, Clip
from unipt_jax.core.errors import DataError
from unipt_jax.core.sharding import make_mesh
from unipt_jax.models.dual_encoder import DualEncoder


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_probability_that_is_no_number_names_its_image_and_attribute(value):
    """It would choose a phrase of a required set all the same."""
    words = lexicon.english()
    clip = Clip(DualEncoder(SPEC), {}, lambda texts: np.zeros((len(texts), 3), np.float32))
    captioner = Captioner(clip, words, make_mesh(devices=jax.devices()[:1]))
    indices = np.zeros(len(words.sets), np.int32)
    probabilities = np.full(len(words.sets), 0.5, np.float32)
    assert captioner.row("cam/1.jpg", indices, probabilities)["caption"]
    probabilities[2] = value
    name = list(words.sets)[2]
    with pytest.raises(DataError, match=f"cam/1.jpg: the probability of '{name}' is not finite"):
        captioner.row("cam/1.jpg", indices, probabilities)
