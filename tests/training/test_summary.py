"""What is told before a run's first step."""

import io

import pytest
from rich.console import Console

from unipt_jax.training import summary


def printed(renderable, width=80):
    out = io.StringIO()
    Console(file=out, width=width).print(renderable)
    return out.getvalue()


SETS = [
    summary.DataSet("runs/captions", 1500, 3000, 1500, 12),
    summary.DataSet("data/cuhk", 200, 400, 100, 0, repeats=10),
]
PARTS = [
    summary.Part("image_encoder", 85_798_656, "from google/vit", 1.0, 2.0),
    summary.Part("identity_head", 1_234, "at random", 5.0, 5.0),
    summary.Part("logit_scale", 1, "at random", 0.5, None),
]


def row(text, name):
    (line,) = (line for line in text.splitlines() if line.startswith(name))
    return line.removeprefix(name).split()


def test_facts_data_and_parts_are_told():
    text = printed(summary.summary({"mesh": "data 8", "batch": "a b"}, SETS, PARTS, 1e-5))
    assert row(text, "mesh") == ["data", "8"]
    assert row(text, "runs/captions") == ["1,500", "3,000", "1,500", "12", "x", "1"]
    assert row(text, "data/cuhk") == ["200", "400", "100", "0", "x", "10"]
    assert text.count("\nall ") == 2
    assert ["1,700", "3,400", "1,600", "12"] in [
        line.split()[1:] for line in text.splitlines() if line.startswith("all")
    ]
    # The rates of its weights and of its biases: 1e-5 times their factors.
    assert row(text, "image_encoder") == ["85,798,656", "1e-05", "2e-05", "from", "google/vit"]
    assert row(text, "identity_head") == ["1,234", "5e-05", "5e-05", "at", "random"]
    assert row(text, "logit_scale") == ["1", "5e-06", "at", "random"]
    assert "85,799,891" in text


def test_what_is_the_same_for_all_is_left_out():
    """Columns of repeats and of biases, and the sum of one data set."""
    text = printed(summary.summary({}, SETS[:1], PARTS[1:], 1e-5))
    assert "an epoch" not in text and "of biases" not in text and text.count("\nall ") == 1


def test_a_log_file_gets_80_columns_without_colours():
    """Long names are folded, none is cut off."""
    long = "/data/" + "x" * 90
    sets = [summary.DataSet(long, 10**7, 10**8, 10**7, 10**6, 100)]
    parts = [summary.Part("pgu_identity_head", 10**9, f"from {long}", 1.0, 2.0)]
    text = printed(summary.summary({"devices": "8"}, sets, parts, 1e-5), width=80)
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 80
    assert text.count("x") >= 180 and "…" not in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1, "cpu", 1), "1 x cpu, 1 process"),
        ((256, "TPU v5e", 64), "256 x TPU v5e, 64 processes"),
    ],
)
def test_devices(arguments, expected):
    assert summary.devices(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((512, 8, 1), "512 = 64 a device x 8 (data x fsdp)"),
        ((8192, 256, 4), "8,192 = 32 a device x 256 (data x fsdp), in 4 parts one after another"),
    ],
)
def test_batch(arguments, expected):
    """P102: what each device gets of a global batch."""
    assert summary.batch(*arguments) == expected


def test_how_many_captions_are_cut_is_told():
    """P104: nobody finds out otherwise that the ends of many sentences are not read."""
    told = summary.texts(64, [2, 64, 65, 200])
    assert told == "64 tokens at most; 2 of 4 captions are longer, and cut"
    assert summary.texts(77, []) == "77 tokens at most"


def test_duration():
    assert summary.duration(480, 32, 432) == "480, 35.56 epochs of 432 pairs"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "0 to 1e-05 by step 10, then constant"),
        ({"warmup": 0.0}, "1e-05, then constant"),
        ({"start": 0.1}, "1e-06 to 1e-05 by step 10, then constant"),
        ({"decay": "cosine"}, "to 1e-05 by step 10, then cosine to 0 at step 100"),
        ({"decay": "linear", "end": 0.05}, "then linear to 5e-07 at step 100"),
    ],
)
def test_learning_rate(changes, expected):
    values = {"peak": 1e-5, "steps": 100, "warmup": 0.1, "decay": "none", "start": 0.0, "end": 0.0}
    assert summary.learning_rate(summary.Schedule(**values | changes)).endswith(expected)
