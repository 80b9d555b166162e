"""The language of templates, and every English template with every subset of what is optional."""

import inspect
import itertools
import json
import random
import re
from collections import Counter

import pytest

from tests.captioning import english
from unipt_jax.captioning import composer, lexicon, templates
from unipt_jax.captioning.templates import Choice, Group, Joints, Series, Slot, TemplateError

JOINTS = Joints(", ", " and ", ", and ")
NAMES = {
    "wears": Choice(("wears", "has on")),
    "worn": Series((Slot((("hat", "a"),)), Slot((("gloves", "a"),)))),
    "red": "red",
}
FORMS = {
    "hat": {"a": "a hat"},
    "gloves": {"a": "gloves"},
    "coat": {"a": ("a ", Choice(("grey", "gray")), " coat"), "s": ""},
    "bike": {"ing": "riding"},
    "action": {"ing": "walking"},
}


def render(text, *present, joints=JOINTS):
    """The text with the forms of `present` and the first of all alternatives."""
    chosen = {name: FORMS[name] for name in present}
    return templates.render(templates.parse(text, NAMES), chosen, lambda o: o[0], joints)


# ------------------------------------------------------------------ the language, by hand


@pytest.mark.parametrize(
    ("text", "present", "expected"),
    [
        ("plain", [], "plain"),
        ("", [], ""),
        ("{red} {wears} {coat.a}", ["coat"], "red wears a grey coat"),
        ("{coat.s}", ["coat"], ""),
        ("with {hat.a}", [], None),
        ("x[ with {hat.a}].", [], "x."),
        ("x[ with {hat.a}].", ["hat"], "x with a hat."),
        ("x[ with {hat.a}[ and {gloves.a}]].", ["hat"], "x with a hat."),
        ("x[ with {hat.a}[ and {gloves.a}]].", ["gloves"], "x."),
        ("is {bike.ing or action.ing}", ["action"], "is walking"),
        ("is {bike.ing or action.ing}", ["action", "bike"], "is riding"),
        ("is {bike.ing or action.ing}", [], None),
        ("<{hat.a} | {gloves.a}>", [], None),
        ("<{hat.a} | {gloves.a}>", ["gloves"], "gloves"),
        ("<{hat.a} | {gloves.a}>", ["gloves", "hat"], "a hat and gloves"),
        ("<{coat.a}|{hat.a}|x>", ["hat", "coat"], "a grey coat, a hat and x"),
        ("< a |b| c > d", [], "a, b and c d"),
        # A list that is an item joins the list around it; one with words of its own does not.
        ("<{coat.a} | {worn}>", ["gloves", "hat", "coat"], "a grey coat, a hat and gloves"),
        ("<wears {worn} | runs>", ["gloves", "hat"], "wears a hat and gloves, and runs"),
        ("<runs | wears {worn}>", ["gloves", "hat"], "runs and wears a hat and gloves"),
        ("<x | y | wears {worn}>", ["gloves", "hat"], "x, y, and wears a hat and gloves"),
        ("<wears {worn} | runs>", ["hat"], "wears a hat and runs"),
        ("[, <{worn}>]", [], ""),
        ("[, {worn}]", ["hat"], ", a hat"),
    ],
)  # fmt: skip
def test_render_by_hand(text, present, expected):
    assert render(text, *present) == expected


def test_joints_are_the_languages_own():
    joints = Joints("; ", " und ", " sowie ")
    present = ("coat", "hat", "gloves")
    assert render("<{coat.a} | {worn}>", *present, joints=joints) == "a grey coat; a hat und gloves"
    assert render("<x {worn} | y>", *present, joints=joints) == "x a hat und gloves sowie y"


def test_alternatives_are_drawn_one_by_one_in_the_order_of_the_text():
    seen = []

    def pick(options):
        seen.append(options)
        return options[-1]

    node = templates.parse("{wears} {coat.a} {wears}", NAMES)
    assert templates.render(node, FORMS, pick, JOINTS) == "has on a gray coat has on"
    assert seen == [("wears", "has on"), ("grey", "gray"), ("wears", "has on")]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[x", "']' is missing"),
        ("<x | y", "'>' is missing"),
        ("<x [y> z]", "'>' stands alone"),
        ("x]", "']' stands alone"),
        ("x>", "'>' stands alone"),
        ("a | b", "'|' stands alone"),
        ("{x", "'{' stands alone"),
        ("x}", "'}' stands alone"),
        ("{[x]}", "'{' stands alone"),
        ("x[]", "empty"),
        ("<x | >", "empty"),
        ("<>", "empty"),
        ("{wares}", "{wares} is neither a synonym nor a fragment"),
        ("{}", "{} is neither"),
        ("{hat.a or red}", "not of the shape"),
        ("{hat.}", "not of the shape"),
        ("{hat.a.b}", "not of the shape"),
    ],
)
def test_broken_texts_are_named(text, fault):
    with pytest.raises(TemplateError, match=re.escape(fault)):
        templates.parse(text, NAMES)


def test_slots_are_found_at_any_depth():
    node = templates.parse("{a.b} [x {c.d} <{e.f or g.h} | y>] {worn}", NAMES)
    found = [option for slot in templates.slots(node) for option in slot.options]
    assert found == [("a", "b"), ("c", "d"), ("e", "f"), ("g", "h"), ("hat", "a"), ("gloves", "a")]


def test_parsing_unites_texts_and_flattens():
    assert templates.parse("a {red} b", NAMES) == "a red b"
    assert templates.parse("a[ b]", NAMES) == ("a", Group(" b"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a man. he runs.", "A man. He runs."),
        ("über allem. ärmel", "Über allem. Ärmel"),
        ("t-shirt; red: blue.", "T-shirt; red: blue."),
        ("", ""),
    ],
)
def test_capitalize(text, expected):
    assert templates.capitalize(text) == expected


# ------------------------------------------------------------------ the English templates

ENGLISH = lexicon.english()
LABELS = {name: tuple(value.phrases) for name, value in ENGLISH.sets.items()}
SUBSETS = [set(s) for n in range(9) for s in itertools.combinations(sorted(english.OPTIONAL), n)]


def plain(template, choices):
    """The caption with the first of all alternatives."""
    return composer.write(ENGLISH, template, choices, lambda options: options[0])


@pytest.fixture
def unchecked(monkeypatch):
    """Takes the checks of types off, which make rendering ten times slower."""
    for owner in (templates, composer, lexicon, lexicon.Lexicon):
        for name, function in inspect.getmembers(owner, inspect.isfunction):
            if function.__module__.startswith("unipt_jax.captioning"):
                monkeypatch.setattr(owner, name, inspect.unwrap(function))


def test_every_template_with_every_subset_of_what_is_optional_reads_clean(unchecked):
    """More than 456 x 256 captions; labels and synonyms vary from one to the next."""
    pick = random.Random(0).choice
    plural = 0
    assert len(SUBSETS) == 256
    for template in ENGLISH.templates:
        for subset in SUBSETS:
            choices = english.draw_choices(LABELS, pick, subset)
            caption = composer.write(ENGLISH, template, choices, pick)
            faults = english.faults(caption, choices, template.leaves_out)
            assert not faults, (template.skeleton, caption, faults)
            plural += english.plural_subjects(caption)
    assert plural > 500  # The check of number has something to look at.


def test_456_templates_and_more_were_written_by_hand():
    """As one text each: what stands for all combinations of its pieces does not count."""
    texts = [e for e in json.loads(lexicon.ENGLISH.read_text())["templates"] if isinstance(e, str)]
    assert len(set(texts)) == len(texts) >= 456
    assert set(texts) <= {t.skeleton for t in ENGLISH.templates if not t.leaves_out}
    # Nor are they combinations that were written out: even short sentences are in few of them,
    sentences = Counter(s for text in texts for s in re.split(r"(?<=\.)(?= |\[ )", text))
    assert max(sentences.values()) <= 5
    assert sum(n for n in sentences.values() if n > 1) < 0.1 * sentences.total()
    # and no two share more than three fifths of their pairs of neighbouring words and marks.
    pairs = []
    for text in texts:
        words = re.findall(r"\{[^}]*\}|[\w'-]+|[^\s\w]", text)
        pairs.append(set(itertools.pairwise(["", *words, ""])))
    near = [
        (texts[i], texts[j])
        for i, j in itertools.combinations(range(len(texts)), 2)
        if len(pairs[i] & pairs[j]) > 0.6 * len(pairs[i] | pairs[j])
    ]
    assert near == []


@pytest.mark.parametrize(("present", "shortest", "longest"), [(0, 8, 26), (7, 20, 45)])
def test_complete_templates_differ_in_more_than_words(present, shortest, longest):
    """One and the same person, without synonyms: each gives a text of its own, none too long."""
    names = sorted(english.OPTIONAL - {"vehicle"})[:present]
    choices = english.draw_choices(LABELS, composer.Picker(1, ""), set(names))
    complete = [t for t in ENGLISH.templates if not t.leaves_out]
    texts = {plain(template, choices) for template in complete}
    assert len(texts) == len(complete) >= 456
    lengths = {len(text.split()) for text in texts}
    assert min(lengths) >= shortest and max(lengths) <= longest
    assert len(lengths) >= 15


def test_templates_vary_in_what_the_issue_names():
    """Order, voice, number of sentences, pronouns, register and length."""
    choices = {
        "age": "young", "gender": "female", "upper_clothes": "red shirt",
        "lower_clothes": "blue jeans", "action": "running", "hair": "long hair",
    }  # fmt: skip
    texts = [plain(t, choices) for t in ENGLISH.templates]
    share = {
        "upper before lower": lambda t: t.index("ed shirt") < (t + "blue jeans").index("lue jeans"),
        "person before clothes": lambda t: "oman" in t.split("ed shirt")[0],
        "clothes before hair": lambda t: "ong" in t.split("ed shirt")[-1],
        "passive": lambda t: re.search(r"\b(is|are|was|been) (worn|photographed|dressed)", t),
        "one sentence": lambda t: t.count(".") == 1,
        "two sentences": lambda t: t.count(".") == 2,
        "three sentences": lambda t: t.count(".") == 3,
        "pronoun": lambda t: re.search(r"\b[Ss]he\b", t),
        "the noun again": lambda t: "The woman" in t,
        "speaks of the picture": lambda t: re.search("picture|camera|frame|photographed", t),
        "relative clause": lambda t: re.search(r"\b(who|whose)\b", t),
        "no finite verb": lambda t: not re.search(
            r"\b(is|are|was|has|wears|runs|shows|holds|combines|see|make|mark|go|goes|find|look)\b",
            t, re.IGNORECASE,
        ),
        "short": lambda t: len(t.split()) < 12,
        "long": lambda t: len(t.split()) > 22,
    }  # fmt: skip
    for what, holds in share.items():
        count = sum(bool(holds(text)) for text in texts)
        assert 5 <= count <= len(texts) - 20, (what, count)


def test_short_templates_are_few_and_say_what_they_leave_out():
    short = [t for t in ENGLISH.templates if t.leaves_out]
    assert 0 < len(short) < 0.05 * len(ENGLISH.templates)
    assert all("upper_clothes" not in t.leaves_out for t in short)


# ------------------------------------------------------------------ the checks can fail

GIRL = {
    "age": "kid", "gender": "female", "upper_clothes": "red stripe shirt",
    "lower_clothes": "blue jeans", "action": "walking", "hair": "long hair",
    "bag": "backpack", "hat": None, "vehicle": None,
}  # fmt: skip
GOOD = "A girl in a red striped shirt and blue jeans is walking with a backpack. Her hair is long."


def test_a_good_caption_has_no_fault():
    assert english.faults(GOOD, GIRL) == []
    assert english.plural_subjects("A girl. Her blue jeans are plain; her shirt is red.") == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("is walking", "is  walking"),
        ("girl in", "girl , in"),
        ("backpack.", "backpack ."),
        ("backpack.", "backpack,."),
        ("and blue", "and and blue"),
        ("with a backpack", "with an backpack"),
        ("A girl", "An girl"),
        ("blue jeans", "a blue jeans"),
        ("in a red", "wearing red"),
        ("A girl", "A old girl"),
        ("A girl", "a girl"),
        ("Her hair", "her hair"),
        ("Her hair", "His hair"),
        ("is walking", "is walking; he is here"),
        ("long.", "long"),
        ("girl", "{girl}"),
        ("girl", "woman"),
        ("girl", "boy"),
        ("with a backpack", "with"),
        ("a backpack", "a handbag"),
        ("a backpack", "a backpack and a cap"),
        ("a backpack", "a backpack and glasses"),
        ("red striped", "red plaid"),
        ("red striped", "striped"),
        ("blue jeans", "blue shorts"),
        ("walking", "running"),
        ("hair is long", "hair is short"),
        ("hair is long", "blue jeans is worn with a red striped shirt and long hair"),
        ("walking", "riding a bike"),
    ],
)  # fmt: skip
def test_the_checks_see(old, new):
    assert old in GOOD
    assert english.faults(GOOD.replace(old, new, 1), GIRL)


# What readers found in captions made so far, and the like; each with a sound way to say it.
STYLE = [
    (
        "rides on foot", {"vehicle": "motorcycle"},
        "The pedestrian in a red striped shirt and blue jeans is a long-haired girl who rides a "
        "motorbike with a backpack.",
        "The rider in a red striped shirt and blue jeans is a long-haired girl who rides a "
        "motorbike with a backpack.",
    ),
    (
        "wrong upper_clothes", {"upper_clothes": "red wind coat"},
        "A long-haired girl in a red windbreaker and blue jeans is walking with a backpack.",
        "A long-haired girl in a red trench coat and blue jeans is walking with a backpack.",
    ),
    (
        "says", {"hat": "ordinary hat"},
        "A long-haired girl in a red striped shirt and blue jeans walks with a backpack and a cap.",
        "A long-haired girl in a red striped shirt and blue jeans walks with a backpack and a hat.",
    ),
    (
        "wrong lower_clothes", {"lower_clothes": "blue long pants"},
        "A long-haired girl in a red striped shirt and blue long pants is walking with a backpack.",
        "A long-haired girl in a red striped shirt and long blue pants is walking with a backpack.",
    ),
    (
        "again", {"upper_clothes": "red sleeveless tank top"},
        "A red tank top on top, blue jeans below: a long-haired girl walks with a backpack.",
        "A red tank top above, blue jeans below: a long-haired girl walks with a backpack.",
    ),
    (
        "list: her long hair and a backpack", {},
        "A girl is in a red striped shirt and blue jeans. Note her long hair and a backpack; she "
        "walks.",
        "A girl is in a red striped shirt and blue jeans. Note the long hair and a backpack; she "
        "walks.",
    ),
    (
        "she shows", {},
        "A girl wears a red striped shirt with blue jeans. While walking, she shows long hair and "
        "a backpack.",
        "A girl wears a red striped shirt with blue jeans. The picture shows long hair and a "
        "backpack; she is walking.",
    ),
    (
        "above or below", {},
        "A girl with long hair is walking. Above her blue jeans, she wears a red striped shirt and "
        "has a backpack.",
        "A girl with long hair is walking. Above her blue jeans, she wears a red striped shirt; "
        "she has a backpack.",
    ),
    (
        "participle", {},
        "One sees a girl with long hair, dressed in a red striped shirt and blue jeans and "
        "walking, carrying a backpack.",
        "One sees a girl with long hair, dressed in a red striped shirt and blue jeans, who is "
        "walking, carrying a backpack.",
    ),
    (
        "she before walking, a long-haired girl", {},
        "While she is walking, a long-haired girl wears a red striped shirt with blue jeans and "
        "has a backpack.",
        "She is a long-haired girl; while walking, she wears a red striped shirt with blue jeans "
        "and has a backpack.",
    ),
    (
        "gray and grey", {"upper_clothes": "gray shirt", "lower_clothes": "gray jeans"},
        "A long-haired girl in a gray shirt and grey jeans is walking with a backpack.",
        "A long-haired girl in a grey shirt and grey jeans is walking with a backpack.",
    ),
    (
        "a pair of twice", {"gloves": "gloves"},
        "A long-haired girl in a red striped shirt and a pair of blue jeans is walking with a "
        "backpack and a pair of gloves.",
        "A long-haired girl in a red striped shirt and blue jeans is walking with a backpack and a "
        "pair of gloves.",
    ),
    (
        "wear twice", {"gloves": "gloves"},
        "A long-haired girl wears a red striped shirt and blue jeans and is walking with a "
        "backpack, wearing gloves.",
        "A long-haired girl wears a red striped shirt and blue jeans and is walking with a "
        "backpack; she also wears gloves.",
    ),
    (
        "have twice", {},
        "A girl who has long hair and is walking has on a red striped shirt and blue jeans, and a "
        "backpack.",
        "A girl with long hair who is walking has on a red striped shirt and blue jeans, and a "
        "backpack.",
    ),
    (
        "more than is known", {},
        "A long-haired girl in a red striped shirt and blue jeans passes, walking with a backpack.",
        "A long-haired girl in a red striped shirt and blue jeans appears, walking with a "
        "backpack.",
    ),
    (
        "number", {},
        "A girl walks with a backpack. Her blue jeans goes with a red striped shirt and long hair.",
        "A girl walks with a backpack. Her blue jeans go with a red striped shirt and long hair.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "change", "bad", "good"), STYLE, ids=[fault for fault, *_ in STYLE]
)
def test_the_checks_see_bad_style(fault, change, bad, good):
    assert any(fault in found for found in english.faults(bad, GIRL | change))
    assert english.faults(good, GIRL | change) == []
