"""Checks annotations and images, and writes them as a data set that the other stages read.

python launch/prepare.py --config=configs/prepare.py:cuhk_pedes --config.source=DIR --workdir=DIR
"""

import collections.abc

from etils import epath

from unipt_jax.captioning import drawn
from unipt_jax.config import command_line, schema
from unipt_jax.data import annotations, beam, builders, tokenization


def read(config: schema.Prepare) -> tuple[list, list, collections.abc.Callable | None]:
    """Returns records, problems and what reads an image that is no file: annotated, or drawn."""
    if config.dataset == "drawn":
        records = drawn.records(count=config.count, seed=config.seed)
        size = {"height": config.height, "width": config.width}
        return records, [], drawn.reader(records, seed=config.seed, **size)
    where = (config.dataset, config.source, config.annotations)
    found = annotations.read(*where, validation=config.validation, seed=config.seed)
    return *found, annotations.image_reader(*where)


def check(config: schema.Prepare, resumed: epath.PathLike | None) -> None:
    """Raises what is wrong with the runner, the annotation file as a whole or the tokenizer."""
    beam.require(config.beam_runner, config.beam_options)
    if config.dataset != "drawn":
        read(config)
    if config.tokenizer:
        tokenization.load(config.tokenizer)


def run(config: schema.Prepare, workdir: epath.Path, resume: bool) -> None:
    """Prepares `workdir`; with `resume`, only an incomplete one, from its start."""
    if not (resume and (workdir / builders.MANIFEST).exists()):
        records, problems, reader = read(config)
        spread = beam.spread_on(config.beam_runner, config.beam_options, workdir)
        if config.dataset != "drawn":
            problems += builders.check_images(records, config.source, reader, spread)
        left_out = builders.set_aside(problems, workdir, stop=config.on_bad_record == "stop")
        builders.write(
            [record for record in records if record.position not in left_out],
            source=config.source,
            name=config.name or config.dataset,
            workdir=workdir,
            tokenizer=config.tokenizer,
            quarantined=len(left_out),
            notices=collections.Counter(it.what for it in problems if it.kind == "notice"),
            read=reader,
            spread=spread,
            pixels=config.pixels or None,
        )
    print(builders.summary(builders.read_manifest(workdir)))


if __name__ == "__main__":
    command_line.main(run, __doc__, takes=schema.Prepare, check=check, alone=True, remote=False)
