"""Writes the names and shapes of the weights that timm and open_clip themselves have.

The files beside this script were made with timm 1.0.31 and open_clip 3.3.0, installed apart:

    python3 -m venv /tmp/goldens && /tmp/goldens/bin/pip install timm open_clip_torch
    /tmp/goldens/bin/python tests/interop/goldens/make.py

Blocks that differ in nothing but their number are one entry, with `{i}` for the number and, under
"blocks", how many there are.
"""

import json
import re
from pathlib import Path

import open_clip
import timm
import torch

TIMM = ["deit_small_patch16_224", "deit_small_distilled_patch16_224", "vit_base_patch16_224"]
OPEN_CLIP = ["ViT-B-32-quickgelu", "ViT-B-16"]


def compact(module: torch.nn.Module) -> dict[str, object]:
    """Returns the number of blocks, and shapes by name."""
    shapes, blocks = {}, {}
    for name, tensor in module.state_dict().items():
        template = re.sub(r"(?<=blocks\.)\d+", "{i}", name)
        shape = list(tensor.shape)
        if shapes.setdefault(template, shape) != shape:
            raise ValueError(f"{name} has another shape than in other blocks")
        blocks[template] = blocks.get(template, 0) + 1
    counts = {number for template, number in blocks.items() if "{i}" in template}
    if len(counts) != 1:
        raise ValueError(f"blocks have different weights: {counts}")
    return {"blocks": counts.pop(), "shapes": shapes}


def main() -> None:
    """Writes a file for each model."""
    models = {f"timm_{name}": timm.create_model(name) for name in TIMM}
    models |= {f"open_clip_{name}": open_clip.create_model(name) for name in OPEN_CLIP}
    for name, model in models.items():
        file = Path(__file__).with_name(f"{name}.json")
        # One weight a line.
        text = json.dumps(compact(model)).replace(', "', ',\n"').replace(': {"', ': {\n"')
        file.write_text(text + "\n")


if __name__ == "__main__":
    main()
