"""All that captions need in one language, read from one JSON file and checked.

The file holds sets of attributes, templates and synonyms. `english.json` is the one that comes with
the package; `docs/attributes.md` describes the format. No language is built into the code.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from unipt_jax.captioning import attributes, templates
from unipt_jax.captioning.attributes import (
    AttributeReader,
    AttributeSet,
    Combination,
    Fault,
    as_list,
)
from unipt_jax.captioning.shapes import AnyOf, Record, faults_of_shape
from unipt_jax.captioning.templates import Forms, Joints, Node, Template, TemplateError
from unipt_jax.core.errors import DataError, nearest
from unipt_jax.core.files import read_json

ENGLISH = epath.Path(__file__).parent / "english.json"

# A template is a text, or pieces to be joined, or either with the sets that it leaves out.
PIECES = [attributes.TEXTS]
SHORT = Record({"text": AnyOf((str, PIECES)), "leaves_out": [str]})
LEXICON = Record(
    {
        "wrappers": [str],
        "joints": [str],
        "sets": {str: attributes.SET},
        "templates": [AnyOf((str, PIECES, SHORT))],
    },
    {
        "rewrites": {str: str},
        "parts": {str: attributes.PART},
        "combinations": {str: attributes.COMBINATION},
        "fragments": {str: str},
        "synonyms": {str: [str]},
    },
)

_MARK = re.compile("\0([^\0]+)\0")


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """Sets and combinations by name, templates, and what holds for every text.

    `wrappers` make a sentence of a prompt, the plainest first. `rewrites` are patterns and their
    replacements, applied to every text in turn ("a" to "an").
    """

    sets: Mapping[str, AttributeSet]
    combinations: Mapping[str, Combination]
    templates: tuple[Template, ...]
    wrappers: tuple[str, ...]
    joints: Joints
    rewrites: tuple[tuple[re.Pattern, str], ...]

    def rewrite(self, text: str) -> str:
        """Applies the rewrites."""
        return _rewrite(text, self.rewrites)


def fingerprint(path: epath.PathLike = ENGLISH) -> str:
    """Returns 32 hexadecimal digits that follow from a lexicon's file."""
    return hashlib.blake2b(epath.Path(path).read_bytes(), digest_size=16).hexdigest()


@functools.cache
def english() -> Lexicon:
    """Returns the lexicon that comes with the package."""
    return load(ENGLISH)


def load(path: epath.PathLike) -> Lexicon:
    """Reads a lexicon and checks it.

    Raises:
        DataError: the file cannot be read, or something in it is wrong. All faults of shape (a
            missing or unknown key, a value of another type) are listed, or else all others.
    """
    return parse(read_json(path), str(path))


def parse(content: Any, name: str) -> Lexicon:
    """Returns the lexicon in a file's `content`; errors, those of `load`, start with `name`."""
    faults = list(faults_of_shape(content, LEXICON))
    if not faults:
        try:
            lexicon = _read(content, lambda where, what: faults.append(f"{where}: {what}"))
        except RecursionError:
            faults.append("groups, lists, forms or fragments are nested too deeply")
    if faults:
        raise DataError(f"{name}: {'; '.join(dict.fromkeys(faults))}")
    return lexicon


def _read(content: Mapping[str, Any], fault: Fault) -> Lexicon:
    """Returns the lexicon in `content`, to be used only if `fault` was not called."""
    if not content["sets"]:
        fault("sets", "are empty")
    joints = _read_joints(content["joints"], fault)
    rewrites = tuple(_read_rewrites(content.get("rewrites", {}), fault))
    synonyms = _read_synonyms(content.get("synonyms", {}), fault)

    def render(node: Node) -> str | None:
        text = templates.render(node, {}, lambda options: options[0], joints)
        return None if text is None else _rewrite(text, rewrites)

    reader = AttributeReader(content.get("parts", {}), synonyms, render, fault)
    sets = {name: reader.read_set(name, value) for name, value in content["sets"].items()}
    combinations = {
        name: reader.read_combination(name, value, sets)
        for name, value in content.get("combinations", {}).items()
    }
    checker = _TemplateChecker(sets, combinations, joints, fault)
    names = _read_fragments(content.get("fragments", {}), synonyms, checker)
    for wrapper in content["wrappers"]:
        before, *after = wrapper.split("{}")
        if len(after) != 1 or attributes.SYNTAX.search(before + after[0]):
            fault(f"wrapper {wrapper!r}", "{} must stand in it once, and no other of {}[]<>|")
    return Lexicon(
        sets,
        combinations,
        tuple(_read_templates(content["templates"], names, checker)),
        tuple(content["wrappers"]),
        joints,
        rewrites,
    )


def _read_joints(joints: list[str], fault: Fault) -> Joints:
    if len(joints) not in (2, 3):
        fault("joints", "2 or 3 texts are needed: comma, last, last after a nested list")
    for joint in joints:
        if attributes.SYNTAX.search(joint):
            fault("joints", f"{joint!r} holds one of {{}}[]<>|")
    return Joints(joints[0], joints[min(1, len(joints) - 1)], joints[-1])


def _read_rewrites(rewrites: Mapping[str, str], fault: Fault) -> Iterator[tuple[re.Pattern, str]]:
    for pattern, replacement in rewrites.items():
        try:
            compiled = re.compile(pattern)
            compiled.sub(replacement, "")  # Refuses references to groups that are not there.
            yield compiled, replacement
        except (re.error, IndexError, OverflowError, RecursionError) as error:
            fault(f"rewrite {pattern!r}", error)


def _read_synonyms(synonyms: Mapping[str, list[str]], fault: Fault) -> dict[str, Node]:
    for name, words in synonyms.items():
        for word in words:
            if not word.strip() or attributes.SYNTAX.search(word):
                fault(f"synonym {name!r}", f"{word!r} is blank or holds one of {{}}[]<>|")
    return {name: templates.alternatives(words) for name, words in synonyms.items()}


def _read_fragments(
    fragments: Mapping[str, str], synonyms: Mapping[str, Node], checker: "_TemplateChecker"
) -> dict[str, Node]:
    """Returns what templates may name: synonyms and fragments, which may use earlier ones."""
    names = dict(synonyms)
    for name, text in fragments.items():
        where = f"fragment {name!r}"
        if name in names:
            checker.fault(where, "is also a synonym")
        names[name] = checker.parse(where, text, names)
    return names


def _read_templates(
    entries: Sequence[Any], names: Mapping[str, Node], checker: "_TemplateChecker"
) -> Iterator[Template]:
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        where = f"template {index}"
        text, left_out = entry, frozenset()
        if isinstance(entry, dict):
            text, left_out = entry["text"], frozenset(entry["leaves_out"])
        pieces = [
            [(option, checker.parse(where, option, names)) for option in as_list(piece)]
            for piece in as_list(text)
        ]
        expansions = []
        ways = math.prod(map(len, pieces))
        if ways > attributes.MOST_WAYS:
            checker.fault(where, f"stands for {ways}; at most {attributes.MOST_WAYS} are taken")
            continue
        for chosen in itertools.product(*pieces):
            skeleton = " ".join(option for option, _ in chosen)
            if skeleton in seen:
                checker.fault(where, f"{skeleton!r} occurs twice")
            seen.add(skeleton)
            expansions.append(Template(tuple(node for _, node in chosen), skeleton, left_out))
        checker.check_said(where, left_out, expansions)
        yield from expansions


class _TemplateChecker:
    """Parses templates and finds slots that cannot be filled and sets that are not spoken of."""

    def __init__(
        self,
        sets: Mapping[str, AttributeSet],
        combinations: Mapping[str, Combination],
        joints: Joints,
        fault: Fault,
    ):
        self.fault = fault
        self._sets = sets
        self._combinations = combinations
        self._joints = joints
        self._fillable: dict[tuple[str, str], bool] = {}
        marked = {name: _Marked((name,)) for name in sets}
        self._required = {name: marked[name] for name, value in sets.items() if value.required}
        self._optional = {name: marked[name] for name in sets.keys() - self._required.keys()}
        self._always = self._required | {n: _Marked(c.of) for n, c in combinations.items()}

    def parse(self, where: str, text: str, names: Mapping[str, Node]) -> Node:
        """Returns the parsed text; a slot without a filling is a fault where it occurs first."""
        try:
            node = templates.parse(text, names)
        except TemplateError as error:
            self.fault(where, f"{text!r}: {error}")
            return ""
        for slot in templates.slots(node):
            for option in slot.options:
                if option not in self._fillable:
                    self._fillable[option] = self._is_fillable(where, *option)
        return node

    def check_said(self, where: str, left_out: frozenset[str], same: Sequence[Template]) -> None:
        """Notes what the expansions of one entry fail to say, or say and claim to leave out."""
        for name in sorted(left_out - self._sets.keys()):
            self.fault(where, f"leaves out {name!r}, which is no set{nearest(name, self._sets)}")
        for template in same:
            slots = [option for slot in templates.slots(template.pieces) for option in slot.options]
            if not all(self._fillable[option] for option in slots):
                return
            missing = ", ".join(sorted(self._unsaid(template)))
            idle = ", ".join(sorted(left_out & self._said(template, self._always | self._optional)))
            if missing:
                self.fault(
                    where,
                    f"{template.skeleton!r} does not say {missing}; add it or name it in "
                    "'leaves_out', and put what is optional in [ ] or < >",
                )
            if idle:
                self.fault(where, f"{template.skeleton!r} says {idle} and claims to leave it out")
            silent = not self._text(template, self._always)
            if silent and not missing:
                self.fault(where, f"{template.skeleton!r} may say nothing at all")
            if missing or idle or silent:
                return  # One expansion is enough to show what is wrong with the entry.

    def _unsaid(self, template: Template) -> set[str]:
        unsaid = self._required.keys() - self._said(template, self._always)
        for name, forms in self._optional.items():
            if name not in self._said(template, self._always | {name: forms}):
                unsaid.add(name)
        return unsaid - template.leaves_out

    def _said(self, template: Template, chosen: Mapping[str, Forms]) -> set[str]:
        """Returns the sets that the template speaks of if there is something in `chosen` alone."""
        return set(_MARK.findall(self._text(template, chosen)))

    def _text(self, template: Template, chosen: Mapping[str, Forms]) -> str:
        texts = [
            templates.render(piece, chosen, lambda options: options[0], self._joints) or ""
            for piece in template.pieces
        ]
        return "".join(texts).strip()

    def _is_fillable(self, where: str, name: str, form: str) -> bool:
        if name in self._sets:
            owner, kind = f"set {name!r}", "phrase"
            having = {p.label: p.forms for p in self._sets[name].phrases.values()}
        elif name in self._combinations:
            owner, kind = f"combination {name!r}", "case"
            having = {" + ".join(c): f for c, f in self._combinations[name].cases.items()}
        else:
            known = [*self._sets, *self._combinations]
            self.fault(where, f"{{{name}.{form}}}: {name!r} is no set{nearest(name, known)}")
            return False
        lacking = [label for label, forms in having.items() if form not in forms]
        if len(lacking) == len(having):
            known = set().union(*having.values())
            self.fault(
                where, f"{{{name}.{form}}}: {owner} has no form {form!r}{nearest(form, known)}"
            )
        else:
            for label in lacking:
                self.fault(f"{owner}, {kind} {label!r}", f"lacks {form!r}, which templates use")
        return not lacking


class _Marked(dict):
    """Forms that all say nothing but which sets they speak of."""

    def __init__(self, names: Iterable[str]):
        self._mark = "".join(f"\0{name}\0" for name in names)

    def __missing__(self, form: str) -> str:
        return self._mark


def _rewrite(text: str, rewrites: Iterable[tuple[re.Pattern, str]]) -> str:
    for pattern, replacement in rewrites:
        text = pattern.sub(replacement, text)
    return text
