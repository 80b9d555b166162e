"""Makes `examples/tokenizer/tokenizer.json`, the small lower-case WordPiece tokenizer of the demo.

Its vocabulary is every word of the sample's training captions and of a list of common words, then
endings and single characters that spell any other word. It needs no download.

Usage: python examples/make_tokenizer.py
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

HERE = Path(__file__).parent
WORDS = """
a an the and with without in on of to at is are was has have he she they his her their this that
these person man woman boy girl kid child youth young middle-aged old elderly adult male female
people pedestrian wears wearing dressed carries carrying holds holding rides riding stands
standing walks walking squats squatting runs running sits looks looking front back side left
right black white grey gray red green blue yellow orange purple pink brown beige khaki dark
light bright pale navy plain striped stripe plaid checked patterned pure color colour colored
floral t-shirt shirt blouse sweater hoodie jacket coat suit dress vest top sleeveless tank wind
down overcoat sweatshirt cardigan jumper pants trousers jeans shorts skirt leggings tights shoes
sneakers boots sandals heels long short knee sleeve sleeves hair bald head ponytail hat cap
helmet hood glasses sunglasses bag backpack handbag shoulder strap suitcase umbrella gloves
scarf phone cellphone cigarette smoking bicycle bike motorcycle vehicle scooter carrying hand
hands arm arms nothing no not any
"""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"-()/&"
ENDINGS = ["ed", "er", "es", "est", "ing", "ish", "less", "like", "ly", "ness", "ous", "ted"]
NORMALIZER = normalizers.BertNormalizer(lowercase=True)
PRE_TOKENIZER = pre_tokenizers.BertPreTokenizer()


def vocabulary(texts: list[str]) -> dict[str, int]:
    """Numbers the special tokens, characters, endings and, in alphabetical order, all words."""
    words = {
        word
        for text in texts
        for word, _ in PRE_TOKENIZER.pre_tokenize_str(NORMALIZER.normalize_str(text))
    }
    pieces = [*SPECIAL, *CHARACTERS, *(f"##{piece}" for piece in [*CHARACTERS, *ENDINGS])]
    return {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, *sorted(words)]))}


def build(texts: list[str]) -> Tokenizer:
    """Makes a tokenizer whose vocabulary is all words of the texts, and what spells others."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary(texts), unk_token="[UNK]"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer, tokenizer.pre_tokenizer = NORMALIZER, PRE_TOKENIZER
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def main() -> None:
    """Builds the tokenizer and writes it."""
    records = json.loads((HERE / "pedestrians" / "reid_raw.json").read_text())
    train = [record for record in records if record["split"] == "train"]
    tokenizer = build([*(text for record in train for text in record["captions"]), WORDS])
    (HERE / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(str(HERE / "tokenizer" / "tokenizer.json"))
    print(f"{tokenizer.get_vocab_size()} pieces")


if __name__ == "__main__":
    main()
