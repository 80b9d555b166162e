"""The errors a user can mend; raised where the fact is known, caught once, by the command line."""

import difflib
import re
from collections.abc import Iterable

_LINE_BREAK = re.compile(r"\s*[\r\n]\s*")
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Returns a text in one line that any terminal and page can show: names hold whatever bytes.

    Controls, line ends, halves of surrogate pairs and what turns the direction of others' letters
    are written as escapes; what languages join and part their letters by stays.
    """
    return _UNSHOWN.sub(
        lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text
    )


class UserError(Exception):
    """Base of every error whose message alone tells the user what to do (exit code 2).

    The message becomes one printable line, whatever the names and texts hold that it quotes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(_LINE_BREAK.sub(" ", message)))


class ConfigError(UserError):
    """A configuration field or a command-line flag is unknown, of a wrong type or out of range."""


class DataError(UserError):
    """An annotation, an image or a prepared data set is missing, damaged or inconsistent."""


class CheckpointError(UserError):
    """A checkpoint is missing, incomplete or does not fit the configuration."""


class ConversionError(UserError):
    """Foreign weights or a tokenizer do not fit the model they are converted to."""


class DivergenceError(Exception):
    """A metric became NaN or infinite during training (exit code 1: no flag was wrong)."""


class SaveError(Exception):
    """A checkpoint could not be written: a full disk, a lost mount (exit code 1)."""


class WorkerError(Exception):
    """A worker process ended by itself, or was killed for lack of memory (exit code 1)."""


class PreemptionError(Exception):
    """The machine was asked for by SIGTERM; what was reached is saved (exit code 143)."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the known name nearest to `name`, else all choices."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}"
