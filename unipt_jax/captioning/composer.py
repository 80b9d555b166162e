"""The labels of an image to its caption: pure, and drawn from the seed and the image's path."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unipt_jax.captioning import templates
from unipt_jax.captioning.attributes import SPACES
from unipt_jax.captioning.lexicon import Lexicon
from unipt_jax.captioning.templates import Forms, Template
from unipt_jax.core.errors import DataError, nearest


def compose(lexicon: Lexicon, choices: Mapping[str, str | None], *, seed: int, path: str) -> str:
    """Returns a caption that says `choices`; the same arguments give the same caption.

    Args:
        lexicon: sets, templates and synonyms of a language.
        choices: the label chosen for each set; None or absent where an optional one has none.
        seed: of all captions.
        path: names the image; template and synonyms are drawn for it independently of others.

    Raises:
        DataError: a set or a label is unknown, or a required set has no label.
    """
    pick = Picker(seed, path)
    return write(lexicon, pick(lexicon.templates), choices, pick)


def write(
    lexicon: Lexicon,
    template: Template,
    choices: Mapping[str, str | None],
    pick: Callable[[Sequence], Any],
) -> str:
    """Fills `template` with `choices`; `pick` takes one of several synonyms. See `compose`."""
    chosen = _chosen(lexicon, choices)
    texts = [templates.render(piece, chosen, pick, lexicon.joints) for piece in template.pieces]
    text = lexicon.rewrite(" ".join([text for text in texts if text]))
    # A form may be empty, or end in the space that the next one begins with.
    return templates.capitalize(SPACES.sub(" ", text).strip())


class Picker:
    """Takes one of its options, each equally likely; what it takes follows from seed and path.

    The numbers come from a hash and not from a NumPy generator: captions then stay the same over
    all versions of NumPy, and making a generator would take as long as writing the caption.
    """

    def __init__(self, seed: int, path: str):
        # Names of files need not be UTF-8; what is not comes as half a surrogate pair.
        self._name = f"{seed}/{path}".encode("utf-8", "surrogatepass")
        self._bits = self._blocks = 0

    def __call__(self, options: Sequence[Any]) -> Any:
        """Returns one of `options`."""
        if self._bits < 1 << 64:  # Too few are left for a fair draw.
            salt = self._blocks.to_bytes(16, "little")
            digest = hashlib.blake2b(self._name, salt=salt).digest()
            self._bits = int.from_bytes(digest, "little")
            self._blocks += 1
        self._bits, index = divmod(self._bits, len(options))
        return options[index]


def _chosen(lexicon: Lexicon, choices: Mapping[str, str | None]) -> dict[str, Forms]:
    """Returns the forms of every chosen phrase and of every combination."""
    if not choices.keys() <= lexicon.sets.keys():
        name = min(choices.keys() - lexicon.sets.keys())
        raise DataError(f"no set is called {name!r}{nearest(name, lexicon.sets)}")
    chosen: dict[str, Forms] = {}
    for name, attributes in lexicon.sets.items():
        label = choices.get(name)
        if label in attributes.phrases:
            chosen[name] = attributes.phrases[label].forms
        elif label is not None:
            known = nearest(label, attributes.phrases)
            raise DataError(f"set {name!r} has no phrase {label!r}{known}")
        elif attributes.required:
            raise DataError(f"set {name!r} is required and nothing is chosen for it")
    for name, combination in lexicon.combinations.items():
        chosen[name] = combination.cases[tuple([choices[other] for other in combination.of])]
    return chosen
