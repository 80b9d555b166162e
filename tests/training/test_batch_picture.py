"""The picture of a batch: its own pixels, and its texts."""

import numpy as np
import pytest

from unipt_jax.data import builders, pipeline, tokenization
from unipt_jax.training import batch_picture


@pytest.fixture(scope="module")
def tokenizer():
    return tokenization.load("examples/tokenizer")


@pytest.fixture(scope="module")
def batch(data, tokenizer):
    how = pipeline.Preprocess(64, 24, 0.5, 64, (), 0.15, False, padding=4, erase=0.5)
    split = builders.open_split(data, "train")
    return pipeline.train_batches(split, tokenizer, how, batch_size=16, seed=0)[0]


def drawn(batch, tokenizer, **how):
    how = {"title": "t", "masked": True} | how
    return np.asarray(batch_picture.draw(batch, tokenizer, **how))


def places(picture, image, scale):
    """Where an image stands in the picture, enlarged."""
    found = image.repeat(scale, axis=0).repeat(scale, axis=1)
    corner = (picture[: -len(found), : -found.shape[1]] == found[0, 0]).all(axis=2)
    return [
        (top, left)
        for top, left in np.argwhere(corner).tolist()
        if (picture[top : top + len(found), left : left + found.shape[1]] == found).all()
    ]


def test_each_image_stands_there_once_unaltered(batch, tokenizer):
    picture = drawn(batch, tokenizer, most=5)
    found = [places(picture, batch["image"][row], 4) for row in range(6)]
    assert [len(each) for each in found] == [1, 1, 1, 1, 1, 0]
    assert len({tuple(each[0]) for each in found[:5]}) == 5


def test_few_examples_make_a_small_picture(batch, tokenizer):
    one = {name: array[:1] for name, array in batch.items()}
    assert drawn(one, tokenizer).shape[1] < 600
    assert drawn(batch, tokenizer).shape[1] <= 1600


def test_the_text_is_what_the_model_reads(batch, tokenizer):
    """The caption's words, in order, of which the masked ones are predicted."""
    for row in range(16):
        (_, *lines) = batch_picture._lines(batch, row, tokenizer, masked=False)
        words = "".join(text for line in lines for text, _ in line).split()
        ids = batch["text"][row][batch["text_mask"][row]].tolist()
        assert words == tokenizer.backend.decode(ids, skip_special_tokens=True).split()
        lines = batch_picture._lines(batch, row, tokenizer, masked=True)
        off = [text for line in lines for text, manner in line if manner == "set off"]
        assert len(off) == batch["mlm_mask"][row].sum() > 0
        note = "".join(text for line in lines[lines.index([]) :] for text, _ in line)
        labels = batch["mlm_labels"][row][batch["mlm_mask"][row]].tolist()
        answers = [tokenizer.backend.id_to_token(label) for label in labels]
        assert note.split(maxsplit=1)[1].split(" · ") == answers


def test_lines_fit_their_column(batch, tokenizer):
    for row in range(16):
        for line in batch_picture._lines(batch, row, tokenizer, masked=True):
            assert batch_picture._length(line) <= batch_picture._TEXT


def test_what_is_set_off_has_a_colour(batch, tokenizer):
    for masked in (True, False):
        picture = drawn(batch, tokenizer, masked=masked)
        assert (picture == (0xFF, 0xC4, 0x6B)).all(axis=2).any() == masked


def test_an_example_that_cannot_be_read_says_so(batch, tokenizer):
    damaged = batch | {"valid": np.zeros(16, bool)}
    ((head,),) = batch_picture._lines(damaged, 3, tokenizer, masked=True)
    assert head[0] == f"pair {batch['record'][3]}, person {batch['identity'][3]}: cannot be read"
    drawn(damaged, tokenizer)
