"""The attributes of a pedestrian: sets of phrases that exclude each other, and their reading."""

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from unipt_jax.captioning import templates
from unipt_jax.captioning.shapes import AnyOf, Record
from unipt_jax.captioning.templates import Forms, Node, TemplateError
from unipt_jax.core.errors import nearest

TEXTS = AnyOf((str, [str]))  # Of several, one is drawn.
FORMS = {str: TEXTS}
SET = Record(
    {"required": bool},
    {
        "phrases": [Record({"label": str}, {"prompt": str, "forms": FORMS})],
        "parts": {str: str},
        "label": str,
        "prompt": str,
        "forms": FORMS,
        "negatives": [str],
    },
)
PART = [AnyOf((str, FORMS))]
COMBINATION = Record({"of": [str], "cases": [Record({"when": [str], "forms": FORMS})]})

# What one entry of a file may stand for: a slip of the pen, in product, could fill the memory.
MOST_WAYS = 100_000

# Is told a place in the file and what is wrong there.
Fault: TypeAlias = Callable[[str, object], None]

SYNTAX = re.compile(r"[{}\[\]<>|]")  # Of the language of templates.
_FIELD = re.compile(r"\{(\w+)(?:\.(\w+))?\}")
SPACES = re.compile(" {2,}")


@dataclasses.dataclass(frozen=True)
class Phrase:
    """One thing a set may say of a person.

    `prompt` describes an image of it ("a person wearing a red striped shirt"); `forms` are what
    captions say; `parts` are the labels of a composed phrase (`{"color": "red", ...}`), else empty.
    """

    label: str
    prompt: str
    forms: Forms
    parts: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class AttributeSet:
    """Phrases by label, in order.

    Of a required set one phrase always holds. Of an optional set none may hold, which is what the
    prompts in `negatives` say; a required one has no negatives.
    """

    name: str
    required: bool
    phrases: Mapping[str, Phrase]
    negatives: tuple[str, ...]

    def prompts(self, wrapper: str) -> tuple[str, ...]:
        """Returns `wrapper` around each phrase's prompt, in order, then around the negatives."""
        bare = (*(phrase.prompt for phrase in self.phrases.values()), *self.negatives)
        return tuple(wrapper.replace("{}", prompt) for prompt in bare)


@dataclasses.dataclass(frozen=True)
class Combination:
    """Forms that depend on several required sets, `of`: a noun, on age and gender."""

    of: tuple[str, ...]
    cases: Mapping[tuple[str, ...], Forms]


@dataclasses.dataclass(frozen=True)
class AttributeReader:
    """Reads sets and combinations whose shape is right.

    `parts` are what composed phrases are made of, `synonyms` the words that texts may name,
    `render` makes plain text of a parsed one (None where it is absent), and `fault` is told a place
    and what is wrong there.
    """

    parts: Mapping[str, list]
    synonyms: Mapping[str, Node]
    render: Callable[[Node], str | None]
    fault: Fault

    def read_set(self, name: str, value: Mapping[str, Any]) -> AttributeSet:
        """Returns the set called `name`."""
        where = f"set {name!r}"
        self._check_names(where, [name, *value.get("parts", ())])
        if value["required"] and "negatives" in value:
            self.fault(where, "is required and can have no 'negatives'")
        if not value["required"] and "negatives" not in value:
            self.fault(where, "is optional and needs 'negatives', prompts that say it is absent")
        if ("phrases" in value) == ("parts" in value):
            self.fault(where, "needs either 'phrases' or 'parts'")
        if ("label" in value) != ("parts" in value):
            self.fault(where, "needs 'label' with 'parts', and only then")
        for text in value.get("negatives", ()):
            if not text.strip() or SYNTAX.search(text):
                self.fault(where, f"negative {text!r} is blank or holds one of {{}}[]<>|")
        phrases = [*self._listed(where, value), *self._composed(where, value)]
        self._check_distinct(where, [phrase.label for phrase in phrases])
        return AttributeSet(
            name,
            value["required"],
            {phrase.label: phrase for phrase in phrases},
            tuple(value.get("negatives", ())),
        )

    def read_combination(
        self, name: str, value: Mapping[str, Any], sets: Mapping[str, AttributeSet]
    ) -> Combination:
        """Returns the combination called `name` of some of `sets`."""
        where = f"combination {name!r}"
        self._check_names(where, [name])
        if name in sets:
            self.fault(where, "is also a set")
        of = tuple(value["of"])
        cases = [tuple(case["when"]) for case in value["cases"]]
        self._check_distinct(where, [" + ".join(case) for case in cases])
        wrong = [other for other in of if other not in sets or not sets[other].required]
        for other in wrong:
            self.fault(where, f"{other!r} is no required set")
        if not wrong:
            needed = set(itertools.product(*(sets[other].phrases for other in of)))
            for case in sorted(needed - set(cases)):
                self.fault(where, f"has no case for {' + '.join(case)}")
            for case in sorted(set(cases) - needed):
                self.fault(where, f"{' + '.join(case)} are no labels of {' + '.join(of)}")
        forms = [
            self._forms(f"{where}, case {' + '.join(case)}", item["forms"])
            for case, item in zip(cases, value["cases"], strict=True)
        ]
        return Combination(of, dict(zip(cases, forms, strict=True)))

    def _listed(self, where: str, value: Mapping[str, Any]) -> Iterator[Phrase]:
        common = value.get("forms", {})
        for phrase in value.get("phrases", ()):
            place = f"{where}, phrase {phrase['label']!r}"
            own = phrase.get("forms", {})
            # A phrase's own forms come first: the common ones may be made of them.
            forms = self._forms(place, {**own, **common, **own})
            prompt = self._prompt(place, phrase.get("prompt", value.get("prompt")), forms)
            yield Phrase(phrase["label"], prompt, forms, {})

    def _composed(self, where: str, value: Mapping[str, Any]) -> Iterator[Phrase]:
        roles = value.get("parts", {})
        unknown = [part for part in roles.values() if part not in self.parts]
        for part in unknown:
            self.fault(where, f"part {part!r} is unknown{nearest(part, self.parts)}")
        if unknown or not roles or "label" not in value:
            return
        entries = {role: self._entries(part) for role, part in roles.items()}
        ways = math.prod(map(len, entries.values()))
        if ways > MOST_WAYS:
            self.fault(where, f"has {ways} phrases; at most {MOST_WAYS} are taken")
            return
        texts = {form: as_list(options) for form, options in value.get("forms", {}).items()}
        asked = itertools.chain([value["label"]], *texts.values())
        for field in _missing_fields(entries, asked):
            self.fault(where, f"{{{field}}}: no entry of the part has this field")
        for combined in itertools.product(*entries.values()):
            chosen = dict(zip(entries, combined, strict=True))
            filled = {
                form: [text for option in options for text in _filled(option, chosen)]
                for form, options in texts.items()
            }
            forms = self._forms(where, filled)
            yield Phrase(
                next(_filled(value["label"], chosen)),
                self._prompt(where, value.get("prompt"), forms),
                forms,
                {role: entry["label"] for role, entry in chosen.items()},
            )

    def _entries(self, part: str) -> list[dict[str, Any]]:
        """Returns the entries of a part, each with its label."""
        entries = [{"label": e} if isinstance(e, str) else e for e in self.parts[part]]
        sound = [entry for entry in entries if isinstance(entry.get("label"), str)]
        if len(sound) < len(entries):
            self.fault(f"part {part!r}", "an entry has no label, or more than one")
        self._check_distinct(f"part {part!r}", [entry["label"] for entry in sound])
        return sound

    def _forms(self, where: str, texts: Mapping[str, str | list[str]]) -> dict[str, Node]:
        self._check_names(where, texts)
        forms: dict[str, Node] = {}
        for form, options in texts.items():
            place = f"{where}, form {form!r}"
            if form in self.synonyms:
                self.fault(place, "is also a synonym")
            forms[form] = self._parse(place, as_list(options), forms)
        return forms

    def _prompt(self, where: str, text: str | None, forms: Forms) -> str:
        if text is None:
            self.fault(where, "has no 'prompt', and neither has its set")
            return ""
        return self.render(self._parse(f"{where}, prompt", [text], forms)) or ""

    def _parse(self, where: str, texts: list[str], forms: Forms) -> Node:
        names = {**self.synonyms, **forms}
        try:
            node = templates.alternatives([templates.parse(text, names) for text in texts])
        except TemplateError as error:
            self.fault(where, error)
            return ""
        if any(templates.slots(node)):
            self.fault(where, "can name synonyms and earlier forms, but not other sets")
            return ""
        return node

    def _check_names(self, where: str, names: Iterable[str]) -> None:
        for name in names:
            if not name.isidentifier():
                self.fault(where, f"{name!r} is no name: letters, digits and _ alone")

    def _check_distinct(self, where: str, labels: list[str]) -> None:
        for label in labels:
            if not label.strip():
                self.fault(where, f"label {label!r} is blank")
        for label, count in Counter(labels).items():
            if count > 1:
                self.fault(where, f"{label!r} occurs {count} times")


def as_list(value: Any) -> list:
    """Returns a text as a list of it alone, and a list as it is."""
    return [value] if isinstance(value, str) else value


def _missing_fields(
    entries: Mapping[str, list[dict[str, Any]]], texts: Iterable[str]
) -> Iterator[str]:
    """Yields the fields that `texts` ask of a part and that none of its entries has."""
    for role, field in dict.fromkeys(found for text in texts for found in _FIELD.findall(text)):
        if field and role in entries and not any(field in entry for entry in entries[role]):
            yield f"{role}.{field}"


def _filled(text: str, entries: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yields `text` with each field of an entry in its place, once for each alternative.

    A field that an entry does not have is its label. Spaces that an empty field leaves are removed.
    """
    pieces = _FIELD.split(text)  # text, role, field, text, role, field, ..., text
    options = [[pieces[0]]]
    for role, field, after in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        if role in entries:
            entry = entries[role]
            options.append(as_list(entry.get(field or "label", entry["label"])))
        else:
            options.append([f"{{{role}.{field}}}" if field else f"{{{role}}}"])
        options.append([after])
    for choice in itertools.product(*options):
        yield SPACES.sub(" ", "".join(choice)).strip()
