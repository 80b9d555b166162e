"""Makes `tokenizer/tokenizer.json`: words of the benchmark's training captions and of the lexicon.

A word counts that stands in three captions or more; others, and what is misspelt, are spelt out.

Usage: python benchmarks/drawn_reid/make_tokenizer.py runs/drawn_reid
           (where `reproduce.py` has drawn both data sets and captioned the pool)
"""

import argparse
import json
import re
import runpy
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "make_tokenizer.py"


def texts(workdir: Path) -> list[str]:
    """Returns the captions that models are trained on."""
    found = []
    for part in ("street", "station"):
        records = json.loads((workdir / "benchmark" / part / "reid_raw.json").read_text())
        train = [record for record in records if record["split"] == "train"]
        found += [text for record in train for text in record["captions"]]
    lines = (workdir / "captions" / "pool-456" / "captions.jsonl").read_text().splitlines()
    return found + [json.loads(line)["caption"] for line in lines]


def common(captions: list[str], at_least: int = 3) -> list[str]:
    """Returns the words that stand in so many of the captions."""
    counts = Counter(word for text in captions for word in set(re.findall(r"[a-z]+", text.lower())))
    return [word for word, count in counts.items() if count >= at_least]


def main() -> None:
    """Builds the tokenizer and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    words = common(texts(parser.parse_args().workdir))
    tokenizer = runpy.run_path(str(EXAMPLE))["build"]([" ".join(words)])
    (HERE / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(str(HERE / "tokenizer" / "tokenizer.json"))
    print(f"{tokenizer.get_vocab_size()} pieces")


if __name__ == "__main__":
    main()
