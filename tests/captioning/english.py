"""What makes an English caption of given choices right, written down apart from `english.json`.

The words are listed by hand, so that a wrong synonym, article or number in the data shows.
"""

import functools
import itertools
import re

COLORS = {
    "black": "black|dark",
    "white": "white",
    "gray": "gray|grey",
    "red": "red",
    "orange": "orange",
    "yellow": "yellow",
    "green": "green",
    "blue": "blue",
    "purple": "purple",
    "pink": "pink",
    "brown": "brown",
    "khaki": "khaki|khaki-colored",
}
PATTERNS = {
    "stripe": "COLOR (?:striped|stripy)",
    "plaid": "COLOR (?:plaid|checked|checkered)",
    "patterned": "COLOR (?:patterned|printed)",
    "": "(?:plain )?COLOR",
}
GARMENTS = {
    "t-shirt": "t-shirt|tee shirt|tee",
    "shirt": "shirt",
    "sweater": "sweater|pullover|jumper",
    "hoodie": "hoodie|hooded sweatshirt",
    "jacket": "jacket",
    "suit jacket": "suit (?:jacket|coat)",
    "down jacket": "(?:down|puffer|padded) jacket",
    "wind coat": "(?:wind|trench) coat",
    "sleeveless tank top": "(?:sleeveless |tank |sleeveless tank )top",
    "long pants": "pants|trousers",
    "jeans": "(?:denim )?jeans|denim (?:pants|trousers)",
    "shorts": "shorts|short pants",
    "short skirt": "skirt",
    "long skirt": "skirt",
}
# How long a garment is comes before its colour: "a short red skirt", "long black pants".
LENGTHS = {"long pants": "(?:long )?", "short skirt": "short ", "long skirt": "long "}
PLURAL = ("pants", "trousers", "jeans", "shorts")
SUBJECTS = {
    ("kid", "male"): "(?:young )?boy|male child",
    ("kid", "female"): "(?:young )?girl|female child",
    ("young", "male"): "young (?:man|male)",
    ("young", "female"): "young (?:woman|female|lady)",
    ("middle-aged", "male"): "middle-aged (?:man|male|gentleman)",
    ("middle-aged", "female"): "middle-aged (?:woman|female|lady)",
    ("old", "male"): "(?:old|older|elderly) (?:man|male|gentleman)",
    ("old", "female"): "(?:old|older|elderly) (?:woman|female|lady)",
}
HAIR = {
    "short hair": "short hair|short-haired|hair is (?:cut )?short|hair (?:cut )?short",
    "long hair": "long hair|long-haired|hair is long|hair long",
    "bald head": "bald|bald-headed|shaved",
}
# The word by which each phrase of the other sets is known; no word belongs to two.
WORDS = {
    ("action", "standing"): "standing stands stand stood",
    ("action", "walking"): "walking walks walk walked foot",
    ("action", "running"): "running runs run ran jogging jogs jog jogged",
    ("action", "squatting"): "squatting squats squat crouching crouches crouch",
    ("bag", "backpack"): "backpack rucksack knapsack",
    ("bag", "single-shoulder bag"): "bag",
    ("bag", "handbag"): "handbag purse",
    ("glasses", "glasses"): "glasses spectacles eyeglasses",
    ("glasses", "sunglasses"): "sunglasses",
    ("smoke", "cigarette"): "cigarette",
    ("hat", "ordinary hat"): "hat",
    ("hat", "helmet"): "helmet",
    ("cellphone", "cellphone"): "cellphone phone",
    ("umbrella", "umbrella"): "umbrella",
    ("gloves", "gloves"): "gloves",
    ("vehicle", "bicycle"): "bicycle bike",
    ("vehicle", "motorcycle"): "motorcycle motorbike",
}
OPTIONAL = {"bag", "glasses", "smoke", "hat", "cellphone", "umbrella", "gloves", "vehicle"}
PHRASES = {word: phrase for phrase, words in WORDS.items() for word in words.split()}
# One thing has an article, with at most these words after it; "glasses" and "gloves" need none.
ONE_THING = {
    word for word, (name, _) in PHRASES.items() if name in OPTIONAL - {"glasses", "gloves"}
}
BETWEEN = {"single-shoulder", "shoulder", "mobile", "cell", "lit", "protective"}
FEMALE = {"she", "her", "hers", "herself", "woman", "lady", "female", "girl"}
MALE = {"he", "his", "him", "himself", "man", "gentleman", "male", "boy"}
WEARS = ("wears ", "wearing ", "has on ", "dressed in ", "clad in ", "attired in ", "over ")
NEEDS_MORE = {
    "and", "with", "in", "a", "an", "the", "of", "by", "as", "plus", "has", "had", "wears", "wore",
    "wearing", "carries", "carried", "carrying", "holds", "held", "holding",
}  # fmt: skip
HOLES = ["  ", " ,", " .", " ;", " :", ",,", ",.", ".,", ";.", ":.", "..", ";;", ", and and"]
# Nobody rides on foot or walks in a saddle.
ON_FOOT = {"pedestrian", "passer-by", "walker"}
RIDING = {"rider", "cyclist", "motorcyclist"}
# What the choices do not tell no template and no synonym may tell: where somebody is or goes, when,
# and how well it looks; nor a special kind of the thing chosen (a hat need not be a cap).
UNKNOWN = {
    "passes", "passing", "passed", "moves", "moving", "moved", "heads", "heading", "headed",
    "steps", "stepping", "sits", "sitting", "waits", "waiting", "stops", "comes", "coming",
    "came", "strolls", "strolling", "street", "road", "sidewalk", "pavement", "shop", "station",
    "morning", "evening", "day", "night", "today", "yesterday", "alone", "slowly", "quickly",
    "calmly", "casual", "elegant", "nice", "beautiful", "pretty", "stylish", "cap",
    "windbreaker", "blazer", "slacks", "miniskirt", "full-length", "smartphone",
    "violet", "youthful", "little",
}  # fmt: skip
SOMEONE = {"man", "woman", "male", "female", "lady", "gentleman", "boy", "girl", "child", "kid"}
SHOWS = {"shows", "presents", "depicts", "displays"}
# Of each, one in a clause is enough.
ONCE = {"wear": {"wears", "wearing", "wore", "worn"}, "have": {"has", "had"}}

_GARMENT_WORDS = set(re.findall(r"[a-z-]+", " ".join(GARMENTS.values())))
_CLOTH_WORDS = re.findall(r"[a-z-]+", " ".join([*COLORS.values(), *PATTERNS.values()]))
_MODIFIERS = "|".join(
    sorted({*_CLOTH_WORDS, *_GARMENT_WORDS, *BETWEEN, "long", "short", "bald", "shaved", "pair of"})
)
_NOUNS = "|".join(
    sorted({"hair", "head", *_GARMENT_WORDS})
    + [word for word, (name, _) in PHRASES.items() if name in OPTIONAL]
)
_THING = rf"(?:(?:an?|his|her|the) )?(?:(?:{_MODIFIERS}) )*(?:{_NOUNS})"
# In "a shirt, and her hair is long" the last is no item.
_LIST = re.compile(
    rf"\b(?P<things>{_THING}(?:, {_THING})*,? and {_THING})\b(?P<verb> (?:is|are|was|were)\b)?"
)
_DETERMINER = re.compile(r"\b(an?|his|her)\b")
_ABOVE = ("above ", "over ", "below ", "under ", "beneath ")
_HOLDS = re.compile(r", .*\b(?:ha[sd](?! on\b)|holds|carries|smokes|holding|carrying|smoking)\b")
_PARTICIPLE = re.compile(
    r" and [^,]* and (?:standing|walking|going|taking|running|jogging|squatting|crouching|riding"
    r"|carrying|holding|smoking|wearing)\b"
)
_PRONOUN = re.compile(r"\b(?:s?he|his|her|him)\b")
_NEWCOMER = re.compile(rf"(\S+) an? (?:[a-z-]+ ){{0,2}}(?:{'|'.join(sorted(SOMEONE))})\b")
NUMBER = re.compile(
    rf"(?:^|, and )(?:his|her|the) (?:(?:{_MODIFIERS}) )*(?P<noun>{_NOUNS}) "
    r"(?P<verb>is|are|was|were|goes|go|completes?)\b"
)
PLURAL_VERBS = {"are", "were", "go", "complete"}
CHARACTERS = re.compile(r"[A-Z][A-Za-z ,.;:'-]*[a-z]\.")


def draw_choices(labels, pick, optional):
    """A label for every set in `labels` but the optional ones that are not in `optional`."""
    return {
        name: None if name in OPTIONAL and name not in optional else pick(options)
        for name, options in labels.items()
    }


def plural_subjects(caption):
    """How often a verb follows a plural garment that is its subject."""
    found = map(NUMBER.search, clauses(caption.lower()))
    return sum(match["noun"] in PLURAL for match in found if match)


def clauses(text):
    """What stands between full stops, semicolons and colons."""
    return re.split(r"[.;:] ?", text)


def words_of(text):
    """The words without marks."""
    return [token.strip(",.;:").removesuffix("'s") for token in text.split()]


def faults(caption, choices, left_out=frozenset()):
    """Everything that is wrong with the caption."""
    found = [f"{hole!r}" for hole in HOLES if hole in caption]
    if not CHARACTERS.fullmatch(caption):
        found.append("a capital, then letters and marks, then a full stop")
    if any(sentence[0].islower() for sentence in caption.split(". ")):
        found.append("small letter")
    lower = caption.lower()
    words = words_of(lower)
    found += _word_faults(lower.split(), words)
    found += _style_faults(lower)
    for clause in clauses(lower):
        found += _clause_faults(clause)
    if not (MALE if choices["gender"] == "female" else FEMALE).isdisjoint(words):
        found.append("gender")
    if not (ON_FOOT if choices["vehicle"] else RIDING).isdisjoint(words):
        found.append("rides on foot")
    if not UNKNOWN.isdisjoint(words):
        found.append("more than is known")
    return [*found, *_unsaid(lower, words, choices, left_out)]


def _style_faults(lower):
    if "gray" in lower and "grey" in lower:
        yield "both gray and grey"
    if lower.count("a pair of ") > 1:
        yield "a pair of twice"
    # "While he stands, a man wears" reads as two people; "he is a man" does not.
    pronoun = _PRONOUN.search(lower)
    newcomer = pronoun and _NEWCOMER.search(lower, pronoun.start())
    if newcomer and newcomer[1] not in ("is", "was"):
        yield f"{pronoun[0]} before {newcomer[0]}"


def _clause_faults(clause):
    words = words_of(clause)
    for verb, forms in ONCE.items():
        if sum(word in forms for word in words) > 1:
            yield f"{verb} twice"
    if clause.startswith(_ABOVE) and _HOLDS.search(clause):
        yield "things held above or below clothes"  # "Above his shorts, he has a bag."
    if _PARTICIPLE.search(clause):
        yield "a participle after nouns"  # "dressed in a shirt and jeans and standing"
    for things in _LIST.finditer(clause):
        determiners = {word[:1] for word in _DETERMINER.findall(things["things"])}
        if determiners == {"a", "h"} and not things["verb"]:
            yield f"list: {things[0]}"  # "her bald head and a hat"
    number = NUMBER.search(clause)
    if number and (number["noun"] in PLURAL) != (number["verb"] in PLURAL_VERBS):
        yield "number"


def _word_faults(tokens, words):
    for position, (word, after) in enumerate(itertools.pairwise(words)):
        if word == after:
            yield f"{word} twice"
        if after in SHOWS and word in SOMEONE | {"he", "she"}:
            yield f"{word} {after}"  # A picture shows; she has.
        # No word of this vocabulary begins with a silent h, a "yoo" or a "won".
        if word in ("a", "an") and (word == "an") != (after[:1] in "aeiou"):
            yield f"{word} {after}"
        if word in NEEDS_MORE and tokens[position] != word:
            yield f"{tokens[position]} {after}"
        if after in ONE_THING:
            before = position
            while words[before] in BETWEEN:
                before -= 1
            if words[before] not in ("a", "an"):
                yield f"no article before {after}"


def _unsaid(lower, words, choices, left_out):
    said = {PHRASES[word] for word in words if word in PHRASES}
    expected = {
        (name, label)
        for name, label in choices.items()
        if (name, label) in WORDS and name not in left_out
    }
    if choices["vehicle"] and "vehicle" not in left_out:
        expected.discard(("action", choices["action"]))  # Who rides does not walk.
    if said != expected:
        yield f"says {sorted(said)} for {sorted(expected)}"
    if not left_out & {"age", "gender"}:
        subject = SUBJECTS[choices["age"], choices["gender"]]
        if not _pattern(subject).search(lower):
            yield "wrong subject"
    if not left_out & {"hair"} and not _pattern(HAIR[choices["hair"]]).search(lower):
        yield "wrong hair"
    for name in ("upper_clothes", "lower_clothes"):
        match = _clothes(choices[name]).search(lower)
        if match:
            # "A pair of" is part of what comes before; some notes have no articles at all.
            wrong = ("a ", "an ") if match[0].endswith(PLURAL) else WEARS
            if lower[: match.start()].endswith(wrong):
                yield f"wrong article of {match[0]}"
            # "A tank top on top": the rest must not say a word of the garment again.
            own = _GARMENT_WORDS.intersection(match[0].split()) - {"short"}
            if not own.isdisjoint(words_of(lower[: match.start()] + lower[match.end() :])):
                yield f"a word of {match[0]} again"
        elif name not in left_out:
            yield f"wrong {name}"


@functools.cache
def _pattern(text):
    return re.compile(rf"\b(?:{text})\b")


@functools.cache
def _clothes(label):
    color, _, rest = label.partition(" ")
    pattern = next(pattern for pattern in PATTERNS if rest.startswith(pattern))
    words = PATTERNS[pattern].replace("COLOR", f"(?:{COLORS[color]})")
    garment = rest.removeprefix(pattern).strip()
    return _pattern(f"{LENGTHS.get(garment, '')}{words} (?:{GARMENTS[garment]})")
