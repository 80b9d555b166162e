"""Trains in --workdir after a configuration of configs/: checkpoints, metrics.jsonl, loss.png."""

from unipt_jax.config import command_line
from unipt_jax.training import run

STAGES = {"pretrain": run.pretrain}

if __name__ == "__main__":
    command_line.main(
        lambda config, workdir, resume: STAGES[config.stage](config, workdir, resume), __doc__
    )
