"""Writes pseudo texts for images: captions.jsonl, statistics, and a data set to pre-train on.

python launch/caption.py --config=configs/caption.py --config.images=DIR --workdir=DIR
"""

from pathlib import Path

from etils import epath

import unipt_jax
from unipt_jax.captioning import captioner, runner, sources
from unipt_jax.config import command_line, schema
from unipt_jax.data import tokenization


def check(config: schema.Caption, resumed: epath.PathLike | None) -> None:
    """Raises what is wrong with the images, the lexicon, the tokenizer or the model."""
    sources.require_place(config.images)
    runner.read_lexicon(config)
    if config.tokenizer:
        tokenization.load(config.tokenizer)
    captioner.require_temperature(unipt_jax.load(config.clip).model)


def run(config: schema.Caption, workdir: epath.Path, resume: bool) -> None:
    """Captions what has no caption yet."""
    encoder = unipt_jax.load(config.clip)
    clip = captioner.Clip(encoder.model, encoder.params, encoder.encode_texts)
    runner.caption(config, Path(workdir), clip)


if __name__ == "__main__":
    command_line.main(run, __doc__, takes=schema.Caption, check=check, remote=False)
