"""What becomes of an input: it is taken, or refused in one clear line; all else is a crash."""

import dataclasses
import unicodedata
from collections.abc import Callable
from typing import Any

from unipt_jax.core.errors import UserError

counts = {"taken": 0, "refused": 0}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a call returned, or the message with which it refused its input."""

    value: Any = None
    refusal: str = ""


def is_one_line(text: str) -> bool:
    """Tells whether a terminal shows a text in one line, in the order of its letters."""
    return not any(
        unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(each)
        in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        for each in text
    )


def clear(call: Callable[[], Any], *, names: str = "") -> Outcome:
    """Calls, and lets every exception through but a refusal in one line that says `names`."""
    try:
        value = call()
    except UserError as error:
        message = str(error)
        assert message.strip(), "a refusal that says nothing"
        assert is_one_line(message), f"not one line of text: {message!r}"
        assert names in message, f"{names!r} is not named: {message}"
        counts["refused"] += 1
        return Outcome(refusal=message)
    counts["taken"] += 1
    return Outcome(value=value)
