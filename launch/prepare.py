"""Checks annotations and images, and writes them as a data set that the other stages read.

python launch/prepare.py --config=configs/prepare.py:cuhk_pedes --config.source=DIR --workdir=DIR
"""

from collections import Counter

from etils import epath

from unipt_jax.config import schema
from unipt_jax.config.command_line import main
from unipt_jax.core.errors import ConfigError
from unipt_jax.core.files import CONFIG_FILE, read_json, write_json
from unipt_jax.data import annotations, builders, tokenization


def run(config: schema.Prepare, workdir: epath.Path, resume: bool) -> None:
    """Prepares `workdir`; with `resume`, a complete one is left as it is."""
    if resume and (workdir / builders.MANIFEST).exists():
        before = schema.build(read_json(workdir / CONFIG_FILE))
        if differences := schema.resume_differences(before, config):
            raise ConfigError(f"{workdir} is complete; --overwrite it: {'; '.join(differences)}")
        print(builders.summary(builders.read_manifest(workdir)))
        return
    # A half-prepared directory starts again, perhaps with other values than those it holds.
    write_json(workdir / CONFIG_FILE, schema.to_dict(config))
    if config.tokenizer:
        tokenization.load(config.tokenizer)  # Fails before the images are decoded, not after.
    records, problems = annotations.read(
        config.dataset,
        config.source,
        config.annotations,
        validation=config.validation,
        seed=config.seed,
    )
    problems += builders.check_images(records, config.source)
    left_out = builders.set_aside(problems, workdir, stop=config.on_bad_record == "stop")
    builders.write(
        [record for record in records if record.position not in left_out],
        source=config.source,
        name=config.dataset,
        workdir=workdir,
        tokenizer=config.tokenizer,
        quarantined=len(left_out),
        notices=Counter(problem.what for problem in problems if problem.kind == "notice"),
    )
    print(builders.summary(builders.read_manifest(workdir)))


if __name__ == "__main__":
    main(run, doc=__doc__)
