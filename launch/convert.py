"""Converts foreign weights to a checkpoint, with what describes the model and its tokenizer.

python launch/convert.py --config=configs/convert.py --config.source=HF_DIR_OR_NAME --workdir=DIR
"""

from unipt_jax.config import command_line, schema
from unipt_jax.training import conversion

if __name__ == "__main__":
    command_line.main(
        conversion.convert, __doc__, takes=schema.Convert, check=conversion.check, alone=True
    )
