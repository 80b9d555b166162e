"""The paper's model at full size."""

import re
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_step_of_the_papers_model_runs_on_cpu():
    """ViT-B/16 + BERT-base, 384x128, 100 tokens, batch 8: 197 million parameters, finite loss."""
    done = subprocess.run(
        [sys.executable, "benchmarks/full_size_step.py", "--steps=1"],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    printed = dict(re.findall(r"(\w+): ([\d.,]+)", done.stdout))
    number = {name: float(value.replace(",", "")) for name, value in printed.items()}
    # 85.6M (ViT) + 108.9M (BERT) + 2 x 0.59M (projections) + 0.62M (MLM head).
    assert 196e6 < number["parameters"] < 197.5e6
    # Cosine in [-1, 1] without temperature, and ln 30522 = 10.3 for untrained predictions.
    assert 0.8 + 9 < number["loss"] < 3.4 + 12
