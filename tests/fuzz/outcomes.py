"""What becomes of an input: it is taken, or refused in one clear line; all else is a crash."""

import dataclasses
from collections.abc import Callable
from typing import Any

from unipt_jax.core.errors import UserError

counts = {"taken": 0, "refused": 0}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a call returned, or the message with which it refused its input."""

    value: Any = None
    refusal: str = ""


def clear(call: Callable[[], Any], *, names: str = "") -> Outcome:
    """Calls, and lets every exception through but a refusal in one line that says `names`."""
    try:
        value = call()
    except UserError as error:
        message = str(error)
        assert message.strip(), "a refusal that says nothing"
        assert message.isprintable(), f"not one line of text: {message!r}"
        assert names in message, f"{names!r} is not named: {message}"
        counts["refused"] += 1
        return Outcome(refusal=message)
    counts["taken"] += 1
    return Outcome(value=value)
