"""Errors name what is nearest to the mistake."""

import pytest

from unipt_jax.core import errors


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("stepz", ["steps", "seed", "epochs"], "; did you mean 'steps'?"),
        ("warmpu", ["decay", "warmup"], "; did you mean 'warmup'?"),
        ("zzz", ["steps", "epochs"], "; known: epochs, steps"),
    ],
)
def test_nearest(name, known, expected):
    assert errors.nearest(name, known) == expected


def test_nearest_takes_an_iterator_that_can_be_read_once():
    assert errors.nearest("zzz", iter(["b", "a"])) == "; known: a, b"


@pytest.mark.parametrize("name", ["ConfigError", "DataError", "CheckpointError", "ConversionError"])
def test_users_mistakes_share_one_base(name):
    assert issubclass(getattr(errors, name), errors.UserError)


def test_divergence_is_not_the_users_mistake():
    assert not issubclass(errors.DivergenceError, errors.UserError)
