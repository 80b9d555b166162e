r"""Trains in --workdir after a configuration of configs/: checkpoints, metrics.jsonl, loss.png.

python launch/train.py --config=configs/pretrain.py --config.data=DIR --workdir=DIR
python launch/train.py --config=configs/finetune.py:cuhk_pedes --config.data=DIR --config.init=DIR \
  --workdir=DIR
"""

from unipt_jax.config import command_line, schema
from unipt_jax.training import run

if __name__ == "__main__":
    command_line.main(run.train, __doc__, takes=schema.Train, check=run.check)
