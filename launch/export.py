"""Writes a trained dual encoder for PyTorch to --workdir/model, and as ONNX to --workdir/onnx.

python launch/export.py --config=configs/export.py --config.checkpoint=DIR --workdir=DIR
"""

from etils import epath

import unipt_jax
from unipt_jax.config import schema
from unipt_jax.config.command_line import main
from unipt_jax.interop import onnx, pytorch


def check(config: schema.Export, resumed: epath.PathLike | None) -> None:
    """Raises what is wrong with the checkpoint or cannot be written."""
    encoder = unipt_jax.load(config.checkpoint)
    pytorch.weights(encoder.model.spec, encoder.params, config.dtype)
    if config.onnx:
        onnx.check(encoder.params)


def run(config: schema.Export, workdir: epath.Path, resume: bool) -> None:
    """Writes all files, with `resume` again, and says how to load them."""
    encoder = unipt_jax.load(config.checkpoint)
    processor = encoder.processor
    exported = pytorch.export(
        workdir / "model",
        spec=encoder.model.spec,
        params=encoder.params,
        tokenizer=processor.tokenizer,
        text_length=processor.length,
        dtype=config.dtype,
    )
    print(f"{exported.form} of {exported.parameters:,} parameters in {config.dtype}; load it with")
    for line in pytorch.loading_code(exported.form, workdir / "model"):
        print(f"  {line}")
    if exported.left_out:
        print(f"left out, as {exported.form} has no place for it: {', '.join(exported.left_out)}")
    if config.onnx:
        difference = onnx.export(
            workdir / "onnx",
            model=encoder.model,
            params=encoder.params,
            text_length=processor.length,
        )
        for file in (onnx.IMAGE_FILE, onnx.TEXT_FILE):
            print(f"ONNX in float32: {workdir / 'onnx' / file}")
        print(f"ONNX's embeddings differ from the model's by {difference:.1e} at most")


if __name__ == "__main__":
    main(run, __doc__, takes=schema.Export, check=check, alone=True)
