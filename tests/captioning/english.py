"""What makes an English caption of given choices right, written down apart from `english.json`.

The words are listed by hand, so that a wrong synonym, article or number in the data shows.
"""

import functools
import itertools
import re

COLORS = {
    "black": "black",
    "white": "white",
    "gray": "gray|grey",
    "red": "red",
    "orange": "orange",
    "yellow": "yellow",
    "green": "green",
    "blue": "blue",
    "purple": "purple|violet",
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
    "suit jacket": "suit jacket|blazer",
    "down jacket": "(?:down|puffer|padded) jacket",
    "wind coat": "wind coat|windbreaker|trench coat",
    "sleeveless tank top": "(?:sleeveless |tank |sleeveless tank )top",
    "long pants": "(?:long )?pants|trousers|slacks",
    "jeans": "jeans|denim jeans|denim trousers",
    "shorts": "shorts|short pants",
    "short skirt": "short skirt|miniskirt",
    "long skirt": "(?:long|full-length) skirt",
}
PLURAL = ("pants", "trousers", "slacks", "jeans", "shorts")
SUBJECTS = {
    ("kid", "male"): "(?:young |little )?boy|male child",
    ("kid", "female"): "(?:young |little )?girl|female child",
    ("young", "male"): "(?:young|youthful) (?:man|male)",
    ("young", "female"): "(?:young|youthful) (?:woman|female|lady)",
    ("middle-aged", "male"): "middle-aged (?:man|male|gentleman)",
    ("middle-aged", "female"): "middle-aged (?:woman|female|lady)",
    ("old", "male"): "(?:old|older|elderly) (?:man|male|gentleman)",
    ("old", "female"): "(?:old|older|elderly) (?:woman|female|lady)",
}
HAIR = {
    "short hair": "short hair|short-haired|hair is (?:cut )?short|hair (?:cut )?short",
    "long hair": "long hair|long-haired|hair is (?:worn )?long|hair (?:worn )?long",
    "bald head": "bald|bald-headed",
}
# The word by which each phrase of the other sets is known; no word belongs to two.
WORDS = {
    ("action", "standing"): "standing stands",
    ("action", "walking"): "walking walks foot walk",
    ("action", "running"): "running runs jogging jogs",
    ("action", "squatting"): "squatting squats crouching crouches",
    ("bag", "backpack"): "backpack rucksack knapsack",
    ("bag", "single-shoulder bag"): "bag",
    ("bag", "handbag"): "handbag purse",
    ("glasses", "glasses"): "glasses spectacles eyeglasses",
    ("glasses", "sunglasses"): "sunglasses",
    ("smoke", "cigarette"): "cigarette",
    ("hat", "ordinary hat"): "hat cap",
    ("hat", "helmet"): "helmet",
    ("cellphone", "cellphone"): "cellphone phone smartphone",
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
    "and",
    "with",
    "in",
    "a",
    "an",
    "the",
    "of",
    "by",
    "as",
    "plus",
    "has",
    "wears",
    "wearing",
}
HOLES = ["  ", " ,", " .", " ;", " :", ",,", ",.", ".,", ";.", ":.", "..", ";;", ", and and"]

NUMBER = re.compile(r"(?:^|[.;] )(?:his|her) (?P<noun>[a-z -]+?) (?P<verb>is|are|goes|go)\b")
CHARACTERS = re.compile(r"[A-Z][A-Za-z ,.;:'-]*[a-z]\.")


def draw_choices(labels, pick, optional):
    """A label for every set in `labels` but the optional ones that are not in `optional`."""
    return {
        name: None if name in OPTIONAL and name not in optional else pick(options)
        for name, options in labels.items()
    }


def plural_subjects(caption):
    """How often a verb follows a plural garment that is its subject."""
    return sum(match["noun"].endswith(PLURAL) for match in NUMBER.finditer(caption.lower()))


def faults(caption, choices, left_out=frozenset()):
    """Everything that is wrong with the caption."""
    found = [f"{hole!r}" for hole in HOLES if hole in caption]
    if not CHARACTERS.fullmatch(caption):
        found.append("a capital, then letters and marks, then a full stop")
    if any(sentence[0].islower() for sentence in caption.split(". ")):
        found.append("small letter")
    lower = caption.lower()
    tokens = lower.split()
    words = [token.strip(",.;:").removesuffix("'s") for token in tokens]
    found += _word_faults(tokens, words)
    if not (MALE if choices["gender"] == "female" else FEMALE).isdisjoint(words):
        found.append("gender")
    for match in NUMBER.finditer(lower):
        if match["noun"].endswith(PLURAL) != (match["verb"] in ("are", "go")):
            found.append("number")
    return [*found, *_unsaid(lower, words, choices, left_out)]


def _word_faults(tokens, words):
    for position, (word, after) in enumerate(itertools.pairwise(words)):
        if word == after:
            yield f"{word} twice"
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
    return _pattern(f"{words} (?:{GARMENTS[rest.removeprefix(pattern).strip()]})")
