"""Draws docs/pipeline.png, the README's picture of the data flow.

Usage: python docs/draw_pipeline.py
"""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

HERE = Path(__file__).parent
CROP = HERE.parent / "examples" / "pedestrians" / "imgs" / "10_0444.jpg"
CAPTION = "A woman with long\ndark hair in a red\njacket and jeans."
DATA, MODEL, LOSS = "#e8f0fb", "#eaf6ea", "#fdf0e2"


def box(axes, x, y, width, text, colour, height=0.74):
    """Puts a labelled box with its lower left corner at (x, y)."""
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.08", fc=colour, ec="#777777"
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8.5)


def arrow(axes, start, end):
    """Draws an arrow."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#555555"})


def main() -> None:
    """Draws and saves the picture."""
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 15.2), ylim=(-0.2, 4.6))
    axes.axis("off")
    photo = axes.inset_axes((0.35, 2.55, 0.75, 1.9), transform=axes.transData)
    photo.imshow(Image.open(CROP))
    photo.axis("off")
    axes.text(0.02, 1.72, CAPTION, fontsize=8, style="italic", va="center")

    box(axes, 2.6, 3.1, 2.1, "decode, resize\n384x128, flip", DATA)
    box(axes, 2.6, 1.35, 2.1, "tokenise, pad\nto a bucket", DATA)
    box(axes, 2.6, 0.1, 2.1, "mask 15 %\n(80 / 10 / 10)", DATA)
    box(axes, 5.7, 3.1, 2.2, "ViT-B/16 or DeiT-S", MODEL)
    box(axes, 5.7, 0.1, 2.2, "BERT-base\n(one call for both\ncopies of the text)", MODEL, 1.99)
    box(axes, 8.8, 3.1, 2.0, "linear map,\nmax over tokens", MODEL)
    box(axes, 8.8, 1.35, 2.0, "linear map,\nmax over tokens", MODEL)
    box(axes, 8.8, 0.1, 2.0, "MLM head at the\nmasked positions", MODEL)
    box(axes, 11.8, 2.2, 2.9, "symmetric InfoNCE\nover the global batch", LOSS)
    box(axes, 11.8, 0.1, 2.9, "cross-entropy, summed over\nthe batch / its count", LOSS)

    arrow(axes, (1.25, 3.47), (2.5, 3.47))
    arrow(axes, (1.75, 1.72), (2.5, 1.72))
    arrow(axes, (3.65, 1.3), (3.65, 0.92))
    for y in (3.47, 1.72, 0.47):
        arrow(axes, (4.78, y), (5.6, y))
        arrow(axes, (7.98, y), (8.7, y))
    arrow(axes, (10.88, 3.47), (11.7, 2.75))
    arrow(axes, (10.88, 1.72), (11.7, 2.4))
    arrow(axes, (10.88, 0.47), (11.7, 0.47))
    for x, title in ((2.6, "Grain, on the host"), (5.7, "Flax, on the mesh"), (11.8, "losses")):
        axes.text(x, 4.25, title, fontsize=9, weight="bold", color="#444444")
    figure.savefig(HERE / "pipeline.png", dpi=130)


if __name__ == "__main__":
    main()
