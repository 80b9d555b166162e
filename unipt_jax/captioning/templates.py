"""The language of templates: text with slots, optional groups and lists; parsed once.

    {set.form}                what the phrase chosen for a set says in a form; absent if none is
    {set.form or other.form}  the first that is there
    {name}                    a synonym, or a named fragment
    [text]                    the text, or nothing if anything in it is absent
    <one | two | three>       those that are there, joined by commas and "and"; absent if none is

Text is absent if anything in it is, so what is optional stands in a group or a list, together with
the words that it needs: `A {subject.noun}[ with {bag.a}].` An item that is a list itself joins the
list around it.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

# Parsed text; a tuple is a sequence.
Node: TypeAlias = "str | tuple | Slot | Choice | Group | Series"
# What a phrase says, by the name of the form.
Forms: TypeAlias = Mapping[str, Node]

_TOKEN = re.compile(r"\{[^{}\[\]<>|]*\}|[{}\[\]<>|]|[^{}\[\]<>|]+")
_AROUND_ITEMS = re.compile(r"(?<=<)\s+|\s*(\|)\s*|\s+(?=>)")
_NEXT_SENTENCE = re.compile(r"[.!?] \w")


class TemplateError(ValueError):
    """Text breaks the rules of the language, or names what is not there."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """The first of `options`, pairs of a set and a form, for whose set something is chosen."""

    options: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of `options`, drawn anew each time."""

    options: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """`content`, or nothing."""

    content: Node


@dataclasses.dataclass(frozen=True)
class Series:
    """Those of `items` that are there, joined."""

    items: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Template:
    """A caption with blanks.

    `pieces` are joined by spaces, and one that is absent is left out; `skeleton` is the text they
    were parsed from; `leaves_out` names the sets a short template does not speak of.
    """

    pieces: tuple[Node, ...]
    skeleton: str
    leaves_out: frozenset[str] = frozenset()


class Joints(NamedTuple):
    """What joins a list: between items, before the last, before the last after one with `last`."""

    comma: str
    last: str
    parting: str


def parse(text: str, names: Mapping[str, Node]) -> Node:
    """Parses `text`; `names` are the synonyms and fragments that it may use.

    Raises:
        TemplateError: a bracket has no partner, an item is empty, or a name is unknown.
    """
    tokens = _TOKEN.findall(_AROUND_ITEMS.sub(r"\1", text))[::-1]
    return _parse_until((), tokens, names)


def alternatives(options: Sequence[Node]) -> Node:
    """Returns the choice between `options`, or the only one of them."""
    return options[0] if len(options) == 1 else Choice(tuple(options))


def slots(node: Node) -> Iterator[Slot]:
    """Yields every slot in `node`, at any depth."""
    if isinstance(node, Slot):
        yield node
    for child in _children(node):
        yield from slots(child)


def render(
    node: Node, chosen: Mapping[str, Forms], pick: Callable[[Sequence], Node], joints: Joints
) -> str | None:
    """Returns the text of `node`, or None where it is absent.

    Args:
        node: parsed text.
        chosen: the forms of each chosen phrase, by set; a set without a phrase is not in it.
        pick: takes one of several options; called in the order of the text.
        joints: what joins a list.
    """
    if isinstance(node, str):
        return node
    if isinstance(node, tuple):
        texts = []
        for child in node:
            # Half of the nodes are plain text; asking here halves the calls.
            text = child if type(child) is str else render(child, chosen, pick, joints)
            if text is None:
                return None
            texts.append(text)
        return "".join(texts)
    if isinstance(node, Slot):
        for name, form in node.options:
            if name in chosen:
                return render(chosen[name][form], chosen, pick, joints)
        return None
    if isinstance(node, Choice):
        return render(pick(node.options), chosen, pick, joints)
    if isinstance(node, Group):
        return render(node.content, chosen, pick, joints) or ""
    items = [render(item, chosen, pick, joints) for item in node.items]
    return _join([item for item in items if item is not None], joints)


def capitalize(text: str) -> str:
    """Begins each sentence with a capital letter."""
    return text[:1].upper() + _NEXT_SENTENCE.sub(lambda match: match.group().upper(), text[1:])


def _join(items: list[str], joints: Joints) -> str | None:
    if len(items) < 2:
        return items[0] if items else None
    *others, last = items
    # Two items need the longer joint only if the first is a list itself.
    nested = any(joints.last in item for item in (items if others[1:] else others))
    return joints.comma.join(others) + (joints.parting if nested else joints.last) + last


def _children(node: Node) -> Sequence[Node]:
    match node:
        case tuple():
            return node
        case Choice():
            return node.options
        case Group():
            return (node.content,)
        case Series():
            return node.items
    return ()


def _parse_until(closing: tuple[str, ...], tokens: list[str], names: Mapping[str, Node]) -> Node:
    """Parses up to a token in `closing`, which stays; `tokens` are in reverse and used up."""
    children: list[Node] = []
    while tokens and tokens[-1] not in closing:
        token = tokens.pop()
        if token == "[":
            children.append(Group(_parse_until(("]",), tokens, names)))
            _take("]", tokens)
        elif token == "<":
            children.append(_parse_series(tokens, names))
        elif token in ("{", "}", "]", ">", "|"):
            raise TemplateError(f"'{token}' stands alone")
        else:
            children.append(_parse_slot(token[1:-1], names) if token[0] == "{" else token)
    if closing and not children:
        raise TemplateError("a group or an item of a list is empty")
    return _sequence(children)


def _parse_series(tokens: list[str], names: Mapping[str, Node]) -> Series:
    items: list[Node] = []
    while True:
        item = _parse_until(("|", ">"), tokens, names)
        items += item.items if isinstance(item, Series) else (item,)
        if tokens and tokens[-1] == "|":
            tokens.pop()
        else:
            _take(">", tokens)
            return Series(tuple(items))


def _take(token: str, tokens: list[str]) -> None:
    if not tokens or tokens.pop() != token:
        raise TemplateError(f"'{token}' is missing")


def _parse_slot(text: str, names: Mapping[str, Node]) -> Node:
    options = [option.strip() for option in text.split(" or ")]
    if len(options) == 1 and "." not in text:
        if options[0] not in names:
            raise TemplateError(f"{{{text}}} is neither a synonym nor a fragment")
        return names[options[0]]
    pairs = [tuple(option.split(".")) for option in options]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise TemplateError(f"{{{text}}} is not of the shape {{set.form or set.form}}")
    return Slot(tuple(pairs))


def _sequence(children: Sequence[Node]) -> Node:
    """Returns the sequence of `children` with inner sequences and neighbouring texts united."""
    flat: list[Node] = []
    for child in children:
        for part in child if isinstance(child, tuple) else (child,):
            if isinstance(part, str) and flat and isinstance(flat[-1], str):
                flat[-1] += part
            else:
                flat.append(part)
    return flat[0] if len(flat) == 1 else tuple(flat)
