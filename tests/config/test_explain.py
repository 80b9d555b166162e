"""What `--help` says of a stage's fields."""

import pytest

from unipt_jax.config import explain, schema


@pytest.mark.parametrize("stage", list(schema.STAGES))
@pytest.mark.parametrize("width", [60, 80])
def test_every_field_is_told_within_the_width(stage, width):
    cls = schema.STAGES[stage]
    lines = explain.fields(cls, {}, width).plain.split("\n")
    assert max(map(len, lines)) <= width
    names = [line.split()[0] for line in lines if line[:3].strip() and line.startswith("  ")]
    assert [name for name in names if "." in name or name in vars(cls)["__annotations__"]] == [
        each.name for each in schema.describe(cls)
    ]
    told = " ".join(" ".join(lines).split())
    assert all(each.doc in told for each in schema.describe(cls))


def test_a_value_is_told_where_it_is_not_the_default():
    values = {"seed": 0, "steps": 7, "text": {"buckets": (3, 4)}, "optimizer": {"warmup": 0.25}}
    text = explain.fields(schema.Train, values, 80)
    for line in (
        "  seed  int; 0 to 4294967295; default 0",
        "  steps  int; at least 0; default 0; here 7",
        "  text.buckets  tuple of int; at least 3; default empty; here (3, 4)",
        "  optimizer.warmup  float; 0 to 1; default 0.1; here 0.25",
    ):
        assert line in text.plain.split("\n")
    bold = {text.plain[span.start : span.end] for span in text.spans if span.style == "bold"}
    assert {"here 7", "here (3, 4)", "here 0.25", "What happens to captions."} <= bold
