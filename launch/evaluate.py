"""Ranks images by captions and captions by images: evaluation.json, report.html and a table.

python launch/evaluate.py --config=configs/evaluate.py --config.data=DIR[,DIR...]
    --config.checkpoint=DIR --workdir=DIR
"""

from etils import epath
from rich.console import Console

import unipt_jax
from unipt_jax.config import schema
from unipt_jax.config.command_line import main
from unipt_jax.core import distributed
from unipt_jax.core.errors import printable
from unipt_jax.core.files import write_json, write_json_lines
from unipt_jax.data.builders import QUARANTINE
from unipt_jax.evaluation import protocol, report


def check(config: schema.Evaluate, resumed: epath.PathLike | None) -> None:
    """Raises what is wrong with the checkpoint, the feature or the data sets."""
    encoder = unipt_jax.load(config.checkpoint)
    protocol.check(config, encoder.model, encoder.params)


def run(config: schema.Evaluate, workdir: epath.Path, resume: bool) -> None:
    """Measures everything, with `resume` again, and writes what was found."""
    encoder = unipt_jax.load(config.checkpoint)
    evaluation, results = protocol.evaluate(
        config,
        encoder.model,
        encoder.params,
        encoder.processor.tokenizer,
        encoder.processor.length,
    )
    if not distributed.is_first():
        return
    left_out = [row for result in results for row in result.left_out()]
    if left_out:
        write_json_lines(workdir / QUARANTINE, left_out)
    configurations = {"Evaluation": schema.to_dict(config)}
    if trained := protocol.read_origin(config.checkpoint).config:
        configurations["The checkpoint's run"] = trained
    report.write(workdir / "report.html", evaluation, results, configurations)
    write_json(workdir / "evaluation.json", evaluation)
    Console().print(report.table(evaluation))
    print(printable(evaluation["protocol"]))  # It tells names of data sets.
    print(f"{len(left_out)} unreadable images left out; report: {workdir / 'report.html'}")


if __name__ == "__main__":
    main(run, __doc__, takes=schema.Evaluate, check=check)
