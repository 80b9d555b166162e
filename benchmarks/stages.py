"""The whole pipeline on the embedded sample, offline, and what each stage of it bought.

`make demo` is this script with one seed. Each stage is a command of `launch/`, which is printed
before it runs. Pre-training reads drawn pedestrians and pseudo texts of the sample's training
images; fine-tuning reads the sample's own captions of these, and drawn pedestrians. Neither sees
an image or a caption of the test's identities.

Usage: python benchmarks/stages.py [--workdir=runs/stages] [--seeds 0 1 2]
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import workshop
from rich.console import Console
from rich.table import Table

# Runs that are compared on the test identities, and what was done to their weights.
STAGES = {
    "random": "random",
    "pretrain": "pre-trained on pseudo texts",
    "finetune_alone": "fine-tuned",
    "finetune": "pre-trained and fine-tuned",
}
METRICS = {"Rank-1": "R1", "mAP": "mAP"}


def evaluation(name: str) -> str:
    """Returns the directory of a stage's evaluation."""
    return "evaluation" if name == "finetune" else f"evaluation_{name}"


def commands(workdir: Path, seed: int) -> list[list[str]]:
    """Returns the pipeline's commands, in their order."""

    def launch(script: str, config: str, out: str, **fields: object) -> list[str]:
        return workshop.launch(script, config, workdir / out, **fields)

    at = {name: workdir / name for name in ("data", "drawn", "captions", *STAGES)}
    tuned = {"data": f"{at['data']},{at['drawn']}", "seed": seed}
    # A step of no length: what it leaves are the weights that training starts from.
    still = {"init": "", "init_image": "", "steps": 1, "optimizer__learning_rate": 1e-30}
    training = [
        launch("prepare", "prepare.py:demo", "data"),
        launch("prepare", "prepare.py:demo_drawn", "drawn", seed=seed),
        launch("caption", "caption.py:demo", "captions", images=at["data"], seed=seed),
        launch(
            "train",
            "pretrain.py:demo",
            "pretrain",
            data=f"{at['drawn']},{at['captions']}",
            seed=seed,
        ),
        launch("train", "finetune.py:demo", "random", **tuned, **still),
        launch("train", "finetune.py:demo", "finetune_alone", **tuned, init=""),
        launch("train", "finetune.py:demo", "finetune", **tuned, init=at["pretrain"]),
    ]
    return training + [
        launch(
            "evaluate", "evaluate.py:demo", evaluation(name), data=at["data"], checkpoint=at[name]
        )
        for name in STAGES
    ]


def run(workdir: Path, seed: int, cache: Path) -> dict[str, dict]:
    """Runs everything in `workdir`; returns each stage's `evaluation.json`.

    Commands share what they compile by `cache`.

    Raises:
        SystemExit: a command failed; it has said why.
    """
    for command in commands(workdir, seed):
        workshop.run(command, cache)
    return {
        name: json.loads((workdir / evaluation(name) / "evaluation.json").read_text())
        for name in STAGES
    }


def table(found: Sequence[dict[str, dict]]) -> Table:
    """Returns each stage's figures: of one seed with their intervals, else mean and range."""
    title = "Text to image on the sample's five test identities, %"
    made = Table(title=title if len(found) == 1 else f"{title}, {len(found)} seeds")
    made.add_column("weights")
    for name in METRICS:
        made.add_column(name, justify="right")
        made.add_column("95 % interval" if len(found) == 1 else "range", justify="right")
    for stage, text in STAGES.items():
        cells = []
        for metric in METRICS.values():
            values = [each[stage]["text_to_image"][metric] for each in found]
            low, high = min(values), max(values)
            if len(found) == 1:
                low, high = found[0][stage]["intervals"]["text_to_image"][metric]
            cells += [f"{sum(values) / len(values):.1f}", f"{low:.1f}-{high:.1f}"]
        made.add_row(text, *cells)
    return made


def main() -> None:
    """Runs the pipeline for each seed and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/stages"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags = parser.parse_args()
    single = len(flags.seeds) == 1
    found = []
    for seed in flags.seeds:
        workdir = flags.workdir if single else flags.workdir / f"seed{seed}"
        started = time.time()
        found.append(run(workdir, seed, flags.workdir / "compiled"))
        print(f"\n{time.time() - started:.0f} s; report: {workdir / 'evaluation' / 'report.html'}")
    Console().print(table(found))


if __name__ == "__main__":
    main()
