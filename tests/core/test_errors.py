"""Errors name what is nearest to the mistake."""

import pickle

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


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("cam/1\x1b[2J.png", "cam/1\\x1b[2J.png"),
        ("\ud800 \udce9 \u2028 \x00", "\\ud800 \\udce9 \\u2028 \\x00"),
        ("a library said:\r\n  no", "a library said: no"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("caf\u00e9 \u4eba \\n", "caf\u00e9 \u4eba \\n"),
        # What Persian, Japanese, French and families are written with stays.
        *[
            (text, text)
            for text in (
                "\u0645\u06cc\u200c\u062e",
                "\u4eba\u3000",
                "a\u00a0!",
                "\U0001f468\u200d\U0001f467",
            )
        ],
    ],
)
def test_a_message_is_one_printable_line(message, line):
    """Names of files and texts of others are quoted in it, and go to a terminal (P59)."""
    error = errors.DataError(message)
    assert str(error) == line and len(line.splitlines()) == 1
    again = pickle.loads(pickle.dumps(error))  # Workers of a preparation send theirs.
    assert type(again) is errors.DataError and str(again) == line
