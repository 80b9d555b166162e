"""Captions as people might write them: two styles, neither of which is a template of the package.

A caption tells a part of what can be seen, in words of its own. Its writer may take a colour or a
garment for a similar one, leave letters out or swap them, and forget the capitals.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

Facts = Mapping[str, str]  # Those of `domains.facts`.
Words = Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Style:
    """How the captions of a domain are written.

    Attributes:
        words: wordings of each label, each equally likely.
        tells: probability that a caption speaks of a fact which is there; of others it always does.
        confused: probability that a colour or a garment is taken for a similar one.
        typo: probability that a word is misspelt.
        sloppy: probability that a whole caption has neither capitals nor full stops.
        is_note: fragments between commas, and not sentences.
    """

    words: Words
    tells: Mapping[str, float]
    confused: float
    typo: float
    sloppy: float
    is_note: bool


_SIMILAR: Words = {
    "black": ("gray", "blue", "brown"),
    "white": ("gray", "khaki", "pink"),
    "gray": ("black", "blue", "white"),
    "red": ("orange", "pink", "purple"),
    "orange": ("red", "yellow"),
    "yellow": ("orange", "khaki", "green"),
    "green": ("blue", "gray", "khaki"),
    "blue": ("purple", "gray", "black"),
    "purple": ("blue", "pink", "red"),
    "pink": ("red", "purple", "white"),
    "brown": ("black", "khaki", "red"),
    "khaki": ("brown", "white", "gray"),
    "t-shirt": ("shirt", "sleeveless tank top"),
    "shirt": ("t-shirt", "jacket"),
    "sweater": ("hoodie", "shirt"),
    "hoodie": ("sweater", "jacket"),
    "jacket": ("suit jacket", "hoodie"),
    "suit jacket": ("jacket", "wind coat"),
    "down jacket": ("jacket", "hoodie"),
    "wind coat": ("suit jacket", "down jacket"),
    "sleeveless tank top": ("t-shirt",),
    "long pants": ("jeans",),
    "jeans": ("long pants",),
    "shorts": ("short skirt",),
    "short skirt": ("shorts", "long skirt"),
    "long skirt": ("short skirt",),
}

_SHADED = ("gray", "red", "green", "blue", "purple")

STREET = Style(
    words={
        "kid male": ("little boy", "boy", "kid"),
        "kid female": ("little girl", "girl", "kid"),
        "young male": ("guy", "young man", "man", "young fellow"),
        "young female": ("young lady", "young woman", "woman", "lady"),
        "middle-aged male": ("man", "guy", "man in his forties"),
        "middle-aged female": ("woman", "lady", "woman in her forties"),
        "old male": ("old man", "elderly man", "grandpa"),
        "old female": ("old lady", "elderly woman", "grandma"),
        "gray": ("grey", "ash grey", "gray"),
        "khaki": ("beige", "tan", "sand coloured"),
        "purple": ("purple", "violet", "lilac"),
        "red": ("red", "crimson"),
        "stripe": ("stripy", "lined", "striped"),
        "plaid": ("checked", "chequered"),
        "patterned": ("flowery", "spotted", "printed"),
        "t-shirt": ("tee", "short sleeved top", "t-shirt"),
        "shirt": ("button-up shirt", "collared shirt", "shirt"),
        "sweater": ("jumper", "knitted top", "woolly pullover"),
        "hoodie": ("hooded top", "sweatshirt with a hood", "hoodie"),
        "jacket": ("zip-up jacket", "short jacket", "bomber jacket"),
        "suit jacket": ("blazer", "formal jacket", "suit top"),
        "down jacket": ("puffy coat", "quilted coat", "thick winter jacket"),
        "wind coat": ("long coat", "trench coat", "overcoat"),
        "sleeveless tank top": ("vest top", "top without sleeves", "tank top"),
        "long pants": ("trousers", "slacks", "long pants"),
        "jeans": ("jeans", "denims"),
        "shorts": ("shorts", "knee-length shorts"),
        "short skirt": ("mini skirt", "skirt above the knee"),
        "long skirt": ("maxi skirt", "skirt down to the ankles"),
        "backpack": ("a rucksack on the back", "a backpack", "a school bag on both shoulders"),
        "single-shoulder bag": ("a bag across the body", "a shoulder bag", "a messenger bag"),
        "handbag": ("a bag in one hand", "a handbag", "a purse"),
        "glasses": ("glasses", "specs"),
        "sunglasses": ("dark glasses", "sunglasses", "shades"),
        "cigarette": ("is smoking", "has a cigarette"),
        "ordinary hat": ("a cap", "a hat", "something on the head"),
        "helmet": ("a helmet", "a crash helmet"),
        "cellphone": ("is on the phone", "holds a mobile"),
        "umbrella": ("carries an umbrella", "is under an umbrella"),
        "gloves": ("gloves",),
        "bicycle": ("on a bike", "riding a bicycle"),
        "motorcycle": ("on a motorbike", "riding a scooter"),
        "standing": ("standing still", "waiting", "standing there"),
        "walking": ("strolling along", "walking", "on foot"),
        "running": ("running", "jogging", "in a hurry"),
        "squatting": ("crouching", "squatting down"),
        "short hair": ("short hair", "cropped hair"),
        "long hair": ("long hair", "hair down to the shoulders"),
        "bald head": ("no hair on top", "hardly any hair"),
        "shoes": ("shoes", "footwear", "trainers"),
    },
    tells={
        "pattern": 0.75,
        "lower_clothes": 0.9,
        "lightness": 0.6,
        "action": 0.35,
        "hair": 0.55,
        "bag": 0.85,
        "glasses": 0.6,
        "smoke": 0.6,
        "hat": 0.85,
        "cellphone": 0.7,
        "umbrella": 0.85,
        "gloves": 0.4,
        "vehicle": 0.9,
        "shoes": 0.4,
    },
    confused=0.04,
    typo=0.015,
    sloppy=0.1,
    is_note=False,
)

STATION = Style(
    words=STREET.words
    | {
        "kid male": ("male child", "boy, about ten"),
        "kid female": ("female child", "girl, about ten"),
        "young male": ("male, twenties", "youngish male", "lad"),
        "young female": ("female, twenties", "youngish female", "lass"),
        "middle-aged male": ("male, forties", "adult male", "bloke"),
        "middle-aged female": ("female, forties", "adult female"),
        "old male": ("male, over sixty", "senior male", "pensioner, male"),
        "old female": ("female, over sixty", "senior female", "pensioner, female"),
        "gray": ("grey", "slate", "silver"),
        "khaki": ("cream", "camel", "beige"),
        "purple": ("plum", "purple"),
        "red": ("red", "scarlet", "wine red"),
        "blue": ("blue", "royal blue"),
        "brown": ("brown", "chocolate", "chestnut"),
        "stripe": ("pinstripe", "striped", "banded"),
        "plaid": ("tartan", "checks"),
        "patterned": ("print", "motif", "patterned"),
        "t-shirt": ("t-shirt", "short-sleeve shirt"),
        "sweater": ("knitwear", "sweater", "pullover"),
        "hoodie": ("hoody", "hooded sweater"),
        "jacket": ("anorak", "casual jacket", "windbreaker"),
        "suit jacket": ("suit", "business jacket", "sports coat"),
        "down jacket": ("padded jacket", "parka", "down coat"),
        "wind coat": ("mac", "raincoat", "knee-length coat"),
        "sleeveless tank top": ("singlet", "sleeveless shirt"),
        "long pants": ("pants", "chinos", "trousers"),
        "jeans": ("jeans", "denim trousers"),
        "backpack": ("backpack", "daypack"),
        "single-shoulder bag": ("sling bag", "satchel", "strap bag"),
        "handbag": ("tote", "handbag", "carrier bag"),
        "glasses": ("spectacles", "eyewear"),
        "sunglasses": ("tinted glasses", "sunglasses"),
        "cigarette": ("smoker", "cigarette lit"),
        "ordinary hat": ("headwear", "cap", "beanie"),
        "helmet": ("helmet", "protective headgear"),
        "cellphone": ("phone call", "phone in hand"),
        "umbrella": ("umbrella up", "brolly"),
        "gloves": ("gloved hands", "gloves"),
        "bicycle": ("with bicycle", "cyclist"),
        "motorcycle": ("with motorcycle", "motorcyclist"),
        "standing": ("stationary", "not moving"),
        "walking": ("passing through", "walking"),
        "running": ("at a run", "hurrying"),
        "squatting": ("low on the ground", "crouched"),
        "shoes": ("shoes", "boots", "sneakers"),
    },
    tells={
        **STREET.tells,
        "pattern": 0.6,
        "lower_clothes": 0.75,
        "lightness": 0.3,
        "action": 0.2,
        "hair": 0.4,
    },
    confused=0.05,
    typo=0.02,
    sloppy=0.3,
    is_note=True,
)

_ORDER = (
    "hair", "hat", "glasses", "shoes", "bag", "umbrella", "cellphone", "smoke", "gloves",
)  # fmt: skip


def write(style: Style, facts: Facts, rng: np.random.Generator) -> str:
    """Returns one caption of what `facts` tell, as its writer took it down."""
    said = _said(style, facts, rng)
    pieces = _note(said, rng) if style.is_note else _sentences(said, rng)
    text = slip(pieces, style.typo, rng)
    if rng.random() < style.sloppy:
        return re.sub(r"[.,]", "", text).lower()
    return text


def slip(text: str, probability: float, rng: np.random.Generator) -> str:
    """Returns the text with words misspelt: a letter is lost, doubled, or swapped with the next."""

    def misspelt(match: re.Match) -> str:
        word = match.group()
        if rng.random() >= probability:
            return word
        at, kind = int(rng.integers(1, len(word) - 1)), rng.integers(3)
        middle = ("", word[at] * 2, word[at + 1] + word[at])[kind]
        return word[:at] + middle + word[at + (2 if kind == 2 else 1) :]

    return re.sub(r"[a-z]{4,}", misspelt, text)


def _said(style: Style, facts: Facts, rng: np.random.Generator) -> dict[str, str]:
    """Returns wordings, by name, of what the writer speaks of."""

    def worded(label: str) -> str:
        return _one(rng, style.words.get(label, (label,)))

    def taken_for(label: str) -> str:
        mistaken = label in _SIMILAR and rng.random() < style.confused
        return _one(rng, _SIMILAR[label]) if mistaken else label

    def clothes(part: str) -> tuple[str, str]:
        color, garment = taken_for(facts[f"{part}_color"]), taken_for(facts[f"{part}_garment"])
        is_shaded = color in _SHADED and rng.random() < style.tells["lightness"]
        shade = facts[f"{part}_lightness"] if is_shaded else ""
        pattern = facts[f"{part}_pattern"]  # A pure colour has no word.
        is_told = pattern in style.words and rng.random() < style.tells["pattern"]
        words = [shade, worded(color), worded(pattern) if is_told else ""]
        return " ".join(filter(None, words)), worded(garment)

    said = {"someone": worded(f"{facts['age']} {facts['gender']}")}
    said["pronoun"] = {"male": "he", "female": "she"}[facts["gender"]]
    said["top color"], said["top"] = clothes("upper")
    if rng.random() < style.tells["lower_clothes"]:
        said["bottom color"], said["bottom"] = clothes("lower")
    for name in ("action", "bag", "glasses", "smoke", "hat", "cellphone", "umbrella", "gloves",
                 "vehicle"):  # fmt: skip
        # Who rides does so whatever else is said of the action.
        if facts[name] in style.words and rng.random() < style.tells[name]:
            said[name] = worded(facts[name])
    if rng.random() < style.tells["hair"]:
        color = facts["hair_color"] if facts["hair"] != "bald head" else ""
        said["hair"] = " ".join(filter(None, [color, worded(facts["hair"])]))
    if facts["shoes"] and rng.random() < style.tells["shoes"]:
        said["shoes"] = f"{worded(facts['shoes'])} {worded('shoes')}"
    return said


def _sentences(said: Mapping[str, str], rng: np.random.Generator) -> str:
    """Tells of a person in one to four sentences."""
    someone, pronoun = said["someone"], said["pronoun"].capitalize()
    top = f"{said['top color']} {said['top']}"
    bottom = f"{said['bottom color']} {said['bottom']}" if "bottom" in said else ""
    a_bottom = _with_article(bottom) if "skirt" in bottom else bottom
    first = _one(rng, (
        f"{_with_article(someone)} in {_with_article(top)}",
        f"there is {_with_article(someone)} with {_with_article(top)}",
        f"I see {_with_article(someone)}, {said['pronoun']} has {_with_article(top)} on",
        f"the {someone} here has chosen {_with_article(top)}",
        f"this {someone}'s {said['top']} is {said['top color']}",
    ))  # fmt: skip
    if bottom:
        first += _one(rng, (f" and {a_bottom}", f" over {a_bottom}", f"; below that {a_bottom}"))
    for name in ("vehicle", "action"):
        if name in said:
            first += f", {said[name]}"
            break
    rest = {
        "hair": f"{pronoun} has {said.get('hair')}",
        "hat": f"{pronoun} has {said.get('hat')} on",
        "glasses": f"There are {said.get('glasses')} on the nose",
        "shoes": f"The {said.get('shoes')} stand out",
        "bag": f"{pronoun} takes along {said.get('bag')}",
        "umbrella": f"{pronoun} {said.get('umbrella')}",
        "cellphone": f"{pronoun} {said.get('cellphone')}",
        "smoke": f"{pronoun} {said.get('smoke')}",
        "gloves": f"{pronoun} has put on {said.get('gloves')}",
    }
    others = [rest[name] for name in _ORDER if name in said]
    sentences = [first, *rng.permutation(others).tolist()]
    return " ".join(f"{each[0].upper()}{each[1:]}." for each in sentences)


def _note(said: Mapping[str, str], rng: np.random.Generator) -> str:
    """Jots a person down in fragments, in no fixed order."""
    parts = [part for part in ("top", "bottom") if part in said]
    order = "{0} {1}" if rng.random() < 0.6 else "{1} {0}"
    clothes = [order.format(said[f"{part} color"], said[part]) for part in parts]
    others = [said[name] for name in (*_ORDER, "action", "vehicle") if name in said]
    fragments = [*clothes, *rng.permutation(others).tolist()]
    return f"{said['someone'].capitalize()}: {', '.join(fragments)}."


def _one(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
