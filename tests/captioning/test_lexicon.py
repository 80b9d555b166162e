"""A language read from a file: the documented example, and every fault by its name."""

import copy
import json
import re
from pathlib import Path

import pytest

from unipt_jax.captioning import attributes, composer, lexicon
from unipt_jax.core.errors import DataError

DOCUMENT = Path(__file__).parents[2] / "docs" / "attributes.md"
EXAMPLE = re.search(r"```json\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[1]


@pytest.fixture
def load(tmp_path):
    """Writes a lexicon and loads it."""

    def write_and_load(content):
        path = tmp_path / "own.json"
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
        return lexicon.load(path)

    return write_and_load


# ------------------------------------------------------------------ the documented German example


def captions(german, template, choices):
    """All captions that a template gives, whichever alternatives are drawn."""
    found = set()
    for numbers in range(3**5):
        rest = numbers

        def pick(options):
            nonlocal rest
            rest, index = divmod(rest, 3)
            return options[index % len(options)]

        found.add(composer.write(german, template, choices, pick))
    return found


def test_the_documented_example_speaks_german(load):
    german = load(EXAMPLE)
    single, *pairs, short = german.templates
    woman = {"alter": "jung", "geschlecht": "weiblich", "kleidung": "rot Jacke"}
    man = {"alter": "alt", "geschlecht": "männlich", "kleidung": "grau Mantel", "hut": "Hut"}
    assert captions(german, single, woman) == {"Eine junge Frau trägt eine rote Jacke."}
    assert captions(german, single, man | {"tasche": "Rucksack"}) == {
        "Ein alter Mann trägt einen grauen Mantel und hat einen Rucksack und einen Hut dabei.",
        "Ein alter Mann trägt einen grauen Mantel und hat einen Tornister und einen Hut dabei.",
        "Ein alter Mann trägt einen hellgrauen Mantel und hat einen Rucksack und einen Hut dabei.",
        "Ein alter Mann trägt einen hellgrauen Mantel und hat einen Tornister und einen Hut dabei.",
    }
    assert len(pairs) == 4
    assert captions(german, pairs[0], woman | {"tasche": "Handtasche", "hut": "Hut"}) == {
        "Im Bild ist eine junge Frau. Sie trägt eine rote Jacke, eine Handtasche und einen Hut.",
        "Im Foto ist eine junge Frau. Sie trägt eine rote Jacke, eine Handtasche und einen Hut.",
    }
    shirt = {"alter": "jung", "geschlecht": "männlich", "kleidung": "blau Hemd", "hut": "Hut"}
    assert captions(german, pairs[3], shirt) == {
        "Hier geht ein junger Mann. Er trägt ein blaues Hemd; er hat einen Hut.",
        "Hier geht ein Junge. Er trägt ein blaues Hemd; er hat einen Hut.",
    }
    assert captions(german, short, man) == {
        "Er trägt einen grauen Mantel.",
        "Er trägt einen hellgrauen Mantel.",
    }
    assert short.leaves_out == {"alter", "tasche", "hut"}


def test_the_documented_examples_prompts(load):
    german = load(EXAMPLE)
    assert german.sets["tasche"].prompts(german.wrappers[0]) == (
        "Ein Foto von einer Person mit einem Rucksack.",
        "Ein Foto von einer Person mit einer Handtasche.",
        "Ein Foto von einer Person ohne Tasche.",
    )
    assert "einer Person, die ein graues Hemd trägt" in german.sets["kleidung"].prompts("{}")


def test_what_the_document_says_of_the_example_is_so(load):
    german = load(EXAMPLE)
    choices = {
        "alter": "jung", "geschlecht": "weiblich", "kleidung": "rot Jacke", "tasche": "Rucksack",
    }  # fmt: skip
    quoted = re.search(r'become, for one, "(.*?)"', DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    found = set().union(*(captions(german, template, choices) for template in german.templates))
    assert " ".join(quoted[1].split()) in found


def test_the_document_names_every_key():
    text = DOCUMENT.read_text(encoding="utf-8")
    keys = [*lexicon.LEXICON.required, *lexicon.LEXICON.optional, *lexicon.SHORT.required]
    keys += [*lexicon.attributes.SET.required, *lexicon.attributes.SET.optional]
    assert [key for key in keys if f"`{key}`" not in text and f'"{key}"' not in text] == []


# ------------------------------------------------------------------ faults

SMALL = {
    "wrappers": ["A photo of {}."],
    "joints": [", ", " and "],
    "rewrites": {"a (?=[aeiou])": "an "},
    "parts": {"colors": ["red", {"label": "gray", "word": "{gray}"}], "garments": ["coat"]},
    "sets": {
        "gender": {
            "required": True,
            "phrases": [
                {"label": "male", "prompt": "a man", "forms": {"he": "he", "noun": "man"}},
                {"label": "female", "prompt": "a woman", "forms": {"he": "she", "noun": "woman"}},
            ],
        },
        "coat": {
            "required": True,
            "parts": {"color": "colors", "garment": "garments"},
            "label": "{color} {garment}",
            "prompt": "a person in {a}",
            "forms": {"a": "a {color.word} {garment}"},
        },
        "hat": {
            "required": False,
            "prompt": "a person with {a}",
            "negatives": ["a person without a hat"],
            "phrases": [
                {"label": "hat", "forms": {"a": "a hat"}},
                {"label": "helmet", "forms": {"a": "a helmet"}},
            ],
        },
    },
    "combinations": {
        "person": {
            "of": ["gender"],
            "cases": [
                {"when": ["male"], "forms": {"x": "man"}},
                {"when": ["female"], "forms": {"x": "woman"}},
            ],
        }
    },
    "synonyms": {"gray": ["gray", "grey"]},
    "fragments": {"with hat": "[ with {hat.a}]"},
    "templates": [
        "a {person.x} in {coat.a}{with hat}.",
        [["{gender.he} is here.", "a {gender.noun}."], "{coat.a}[, {hat.a}]."],
        {"text": "a {gender.noun}{with hat}.", "leaves_out": ["coat"]},
    ],
}
DELETE = object()


def changed(*changes):
    """SMALL with values put in at paths such as `sets/hat/prompt`."""
    content = copy.deepcopy(SMALL)
    for path, value in changes:
        *parents, last = [int(k) if k.isdigit() else k for k in path.split("/")]
        place = content
        for key in parents:
            place = place[key]
        if value is DELETE:
            del place[last]
        else:
            place[last] = value
    return content


def test_the_small_lexicon_is_sound(load):
    assert len(load(SMALL).templates) == 4


FAULTS = [
    # Shape.
    (("sets/hat/requird", True), "sets.hat.requird is unknown; did you mean 'required'?"),
    (("sets/hat/required", DELETE), "sets.hat lacks 'required'"),
    (("sets/hat/required", "no"), "sets.hat.required is a text and should be true or false"),
    (("sets/hat/phrases", []), "sets.hat.phrases is empty"),
    (("sets/hat/phrases/1/forms/a", 3), "sets.hat.phrases[1].forms.a is a number and should be"),
    (("templates", DELETE), "the file lacks 'templates'"),
    (("wrappers", "A {}"), "wrappers is a text and should be a list"),
    (("synonyms/gray", []), "synonyms.gray is empty"),
    (("sets/hat/phrases/1/forms/a", "a\nhat"), "forms.a holds a line break or another character"),
    (("synonyms/gray", ["gr\ud800y"]), "synonyms.gray[0] holds a line break or another character"),
    (("sets", {}), "sets: are empty"),
    # Words.
    (("joints", [", ", " {} "]), "joints: ' {} ' holds one of {}[]<>|"),
    (("wrappers", ["A {0} of {}."]), "wrapper 'A {0} of {}.': {} must stand in it once, and no"),
    (("rewrites", {"a{99999999999999999999}": ""}), "rewrite 'a{99999999999999999999}': the repet"),
    (("sets/hat/negatives", ["no {hat}"]), "set 'hat': negative 'no {hat}' is blank or holds one"),
    (("sets/hat/negatives", [" "]), "set 'hat': negative ' ' is blank"),
    (("sets/hat/phrases/1/label", ""), "set 'hat': label '' is blank"),
    (("templates/0", "[" * 2000 + "a" + "]" * 2000), "are nested too deeply"),
    (("templates/1", [["a", "b"]] * 40), "template 1: stands for 1099511627776; at most 100000"),
    (("joints", [", "]), "joints: 2 or 3 texts are needed"),
    (("rewrites", {"(": ""}), "rewrite '(': missing )"),
    (("rewrites", {"a": r"\1"}), "rewrite 'a': invalid group reference"),
    (("wrappers", ["A photo."]), "wrapper 'A photo.': {} must stand in it once"),
    (("synonyms/gray", ["gr{e}y"]), "synonym 'gray': 'gr{e}y' is blank or holds one of"),
    (("synonyms/gray", [" "]), "synonym 'gray': ' ' is blank"),
    (("fragments/gray", "x"), "fragment 'gray': is also a synonym"),
    (("fragments/with hat", "[ with {hat.a}"), "fragment 'with hat': '[ with {hat.a}': ']' is mis"),
    # Sets and phrases.
    (("sets/hat/negatives", DELETE), "set 'hat': is optional and needs 'negatives'"),
    (("sets/gender/negatives", ["x"]), "set 'gender': is required and can have no 'negatives'"),
    (("sets/hat/phrases", DELETE), "set 'hat': needs either 'phrases' or 'parts'"),
    (("sets/coat/phrases", [{"label": "x"}]), "set 'coat': needs either 'phrases' or 'parts'"),
    (("sets/coat/label", DELETE), "set 'coat': needs 'label' with 'parts', and only then"),
    (("sets/hat/label", "x"), "set 'hat': needs 'label' with 'parts', and only then"),
    (("sets/hat/phrases/1/label", "hat"), "set 'hat': 'hat' occurs 2 times"),
    (("sets/hat/prompt", DELETE), "set 'hat', phrase 'helmet': has no 'prompt'"),
    (("sets/hat/prompt", "with {b}"), "set 'hat', phrase 'hat', prompt: {b} is neither"),
    (("sets/hat/prompt", "{gender.he}"), "phrase 'hat', prompt: can name synonyms and earlier"),
    (("sets/hat/phrases/1/forms/a", "{hat"), "set 'hat', phrase 'helmet', form 'a': '{' stands"),
    (("sets/hat/phrases/1/forms/a", "{wool}"), "phrase 'helmet', form 'a': {wool} is neither"),
    (("sets/hat/phrases/1/forms/gray", "x"), "phrase 'helmet', form 'gray': is also a synonym"),
    (("sets/hat/phrases/1/forms/a b", "x"), "set 'hat', phrase 'helmet': 'a b' is no name"),
    (("sets/hat/phrases/1/forms", DELETE), "set 'hat', phrase 'helmet', prompt: {a} is neither"),
    (("sets/h.t", SMALL["sets"]["hat"]), "set 'h.t': 'h.t' is no name"),
    (("sets/coat/parts/color", "colours"), "part 'colours' is unknown; did you mean 'colors'?"),
    (("sets/coat/forms/a", "{color.wird}"), "set 'coat': {color.wird}: no entry of the part has"),
    (("sets/coat/forms/a", "{colour}"), "set 'coat', form 'a': {colour} is neither a synonym"),
    (("parts/colors/1/label", ["a"]), "part 'colors': an entry has no label"),
    (("parts/colors/0", "gray"), "part 'colors': 'gray' occurs 2 times"),
    # Combinations.
    (("combinations/hat", SMALL["combinations"]["person"]), "combination 'hat': is also a set"),
    (("combinations/person/of/0", "hat"), "combination 'person': 'hat' is no required set"),
    (("combinations/person/cases/1", DELETE), "combination 'person': has no case for female"),
    (("combinations/person/cases/1/when", ["x"]), "'person': x are no labels of gender"),
    (("combinations/person/cases/1/when", ["male"]), "combination 'person': 'male' occurs 2 times"),
    (("combinations/person/cases/1/forms/x", "[]"), "case female, form 'x': a group or an item"),
    # Templates.
    (("templates/0", "{person.x} {coat.a} [{hat.a}"), "template 0: '{person.x} {coat.a} [{hat.a}'"),
    (("templates/0", "a {humn.x}."), "{humn.x}: 'humn' is no set; known: "),
    (("templates/0", "a {persn.x}."), "{persn.x}: 'persn' is no set; did you mean 'person'?"),
    (("templates/0", "a {coat.an}."), "{coat.an}: set 'coat' has no form 'an'; did you mean 'a'?"),
    (("templates/0", "a {person.y}."), "template 0: {person.y}: combination 'person' has no form"),
    (("sets/gender/phrases/1/forms/noun", DELETE), "set 'gender', phrase 'female': lacks 'noun'"),
    (("combinations/person/cases/0/forms", {"y": "z"}), "case 'male': lacks 'x', which templates"),
    (("templates/0", "a {person.x}{with hat}."), "{with hat}.' does not say coat; add it or"),
    (("templates/0", "a {person.x} in {coat.a}."), "'a {person.x} in {coat.a}.' does not say hat"),
    (("templates/0", "a {person.x} in {coat.a}, {hat.a}."), "does not say coat, gender; add it or"),
    (("templates/1/0/1", "nobody."), "template 1: 'nobody. {coat.a}[, {hat.a}].' does not say gen"),
    (("templates/2/leaves_out", ["coat", "hat"]), "{gender.noun}{with hat}.' says hat and claims"),
    (("templates/2/leaves_out", ["coat", "ht"]), "template 2: leaves out 'ht', which is no set; "),
    (("templates/2", SMALL["templates"][0]), "occurs twice"),
    (("templates/2", {"text": "[{hat.a}]", "leaves_out": ["coat", "gender"]}), "may say nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "fault"), FAULTS, ids=[str(c[0]) for c, _ in FAULTS])
def test_every_fault_is_named_with_file_and_place(load, tmp_path, change, fault):
    with pytest.raises(DataError, match=re.escape(fault)) as error:
        load(changed(change))
    assert str(error.value).startswith(f"{tmp_path / 'own.json'}: ")


def test_parts_that_make_too_many_phrases_are_a_fault(load, monkeypatch):
    parts = SMALL["parts"]
    ways = len(parts["colors"]) * len(parts["garments"])
    monkeypatch.setattr(attributes, "MOST_WAYS", ways)
    load(SMALL)
    monkeypatch.setattr(attributes, "MOST_WAYS", ways - 1)
    with pytest.raises(DataError, match=f"set 'coat': has {ways} phrases; at most {ways - 1}"):
        load(SMALL)


def test_all_faults_are_listed_at_once(load):
    with pytest.raises(DataError) as error:
        load(
            changed(
                ("joints", ["a"]),
                ("sets/hat/negatives", DELETE),
                ("sets/hat/phrases/1/forms/a", "[x"),
                ("templates/0", "a {person.x}."),
                ("templates/2/leaves_out", ["ht"]),
            )
        )
    faults = str(error.value).split("; ")
    for start in ("joints", "set 'hat': is optional", "set 'hat', phrase 'helmet', form 'a'",
                  "template 0", "template 2"):  # fmt: skip
        assert any(start in fault for fault in faults), start


def test_an_optional_pair_that_vanishes_together_is_a_fault(load):
    content = changed(("templates/0", "a {person.x} in {coat.a}[ with {hat.a} and {bag.a}]."))
    content["sets"]["bag"] = copy.deepcopy(SMALL["sets"]["hat"])
    with pytest.raises(DataError, match=r"template 0: .* does not say bag, hat; add it"):
        load(content)


def test_unreadable_files_are_named(tmp_path, load):
    with pytest.raises(DataError, match="no such file"):
        lexicon.load(tmp_path / "none.json")
    with pytest.raises(DataError, match="not JSON at line 1"):
        load("{")


def test_rewrites_reach_captions_and_prompts(load):
    content = changed(("parts/colors/0", "orange"), ("parts/garments", ["coat", "anorak"]))
    small = load(content)
    assert small.sets["coat"].prompts("{}")[:2] == (
        "a person in an orange coat",
        "a person in an orange anorak",
    )
    choices = {"gender": "male", "coat": "orange coat"}
    caption = composer.write(small, small.templates[0], choices, lambda options: options[0])
    assert caption == "A man in an orange coat."
