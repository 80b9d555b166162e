"""A small model, and a gallery of the embedded sample with captions."""

import pytest

import unipt_jax

SAMPLE = "examples/pedestrians/imgs"


@pytest.fixture(scope="session")
def model():
    return unipt_jax.load("examples/small_clip")


@pytest.fixture(scope="session")
def gallery(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("index")
    return unipt_jax.Gallery.from_images(SAMPLE, model, clip=model, index_directory=place)
