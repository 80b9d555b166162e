"""Starts a command of launch/ as several processes of one run on this machine.

python launch/local.py --processes=2 launch/train.py --config=configs/pretrain.py --workdir=DIR

Each takes an equal share of the machine's GPUs, or, without any, the CPU. If one of them fails, the
others are stopped; signals reach them all. The exit code is the failing one's.
"""

import sys

from unipt_jax.core import local

if __name__ == "__main__":
    sys.exit(local.main(__doc__))
