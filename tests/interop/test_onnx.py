"""ONNX files run in onnxruntime with any batch and length, and give the model's unit vectors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.test_pytorch import CASES, FINE_TUNED, LENGTH, UNIPT, apply, inputs, noise, unit
from unipt_jax.core.errors import ConfigError, ConversionError
from unipt_jax.interop import onnx
from unipt_jax.models.dual_encoder import DualEncoder

needs_extra = pytest.mark.skipif(onnx.onnx is None, reason="the extra onnx is not installed")


def export(directory, name):
    params = jax.tree.map(jnp.asarray, noise(CASES[name]))
    model = DualEncoder(CASES[name])
    return params, onnx.export(directory, model=model, params=params, text_length=LENGTH)


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


# Which, together, reach every branch of the graphs.
@needs_extra
@pytest.mark.parametrize(
    "name", ["pool_padding", "deit_tanh", "clip_activations", "clip_not_square", "clip_bert"]
)
def test_embeddings_are_those_of_the_model(name, tmp_path):
    params, difference = export(tmp_path, name)
    assert 0 < difference < 1e-5
    image, text, mask = inputs(CASES[name])
    encoders = {file: session(tmp_path / file) for file in (onnx.IMAGE_FILE, onnx.TEXT_FILE)}
    expected = unit(apply(CASES[name], params, image, method="encode_image"))
    (found,) = encoders[onnx.IMAGE_FILE].run(["image_embedding"], {"image": image})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for length in (LENGTH, LENGTH + 3):
        # Longer than the texts that the export looked at; the end tokens are not at the end.
        pad = ((0, 0), (0, length - LENGTH))
        batch = {"text": np.pad(text, pad), "text_mask": np.pad(mask, pad)}
        expected = unit(apply(CASES[name], params, *batch.values(), method="encode_text"))
        (found,) = encoders[onnx.TEXT_FILE].run(["text_embedding"], batch)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@needs_extra
def test_a_text_without_an_end_token_is_not_a_number(tmp_path):
    """Its start token would be a plausible and wrong answer (P12)."""
    export(tmp_path, "clip_not_square")
    text = np.array([[1, 5, 6], [1, 5, CASES["clip_not_square"].text.end_token]], np.int32)
    batch = {"text": text, "text_mask": np.ones_like(text, bool)}
    (found,) = session(tmp_path / onnx.TEXT_FILE).run(["text_embedding"], batch)
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


@needs_extra
def test_inputs_and_outputs(tmp_path):
    export(tmp_path, "vit_bert")

    def sides(values):
        return [(value.name, value.type, value.shape) for value in values]

    image, text = session(tmp_path / onnx.IMAGE_FILE), session(tmp_path / onnx.TEXT_FILE)
    assert sides(image.get_inputs()) == [("image", "tensor(uint8)", ["batch", 24, 16, 3])]
    assert sides(image.get_outputs()) == [("image_embedding", "tensor(float)", ["batch", 20])]
    assert sides(text.get_inputs()) == [
        ("text", "tensor(int32)", ["batch", "length"]),
        ("text_mask", "tensor(bool)", ["batch", "length"]),
    ]
    assert sides(text.get_outputs()) == [("text_embedding", "tensor(float)", ["batch", 20])]


@needs_extra
def test_what_stands_on_the_encoders_is_left_out(tmp_path):
    """The files of a fine-tuned model are those of its encoders alone."""
    spec, heads, alone = FINE_TUNED["clip"]
    params = jax.tree.map(jnp.asarray, noise(spec))
    kept = {name: part for name, part in params.items() if name not in heads}
    for name, model, given in (("whole", spec, params), ("alone", alone, kept)):
        onnx.export(tmp_path / name, model=DualEncoder(model), params=given, text_length=LENGTH)
    for file in (onnx.IMAGE_FILE, onnx.TEXT_FILE):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()


@needs_extra
def test_a_bfloat16_model_is_exported_in_float32(tmp_path):
    model, params = DualEncoder(UNIPT, dtype=jnp.bfloat16), jax.tree.map(jnp.asarray, noise(UNIPT))
    assert onnx.export(tmp_path, model=model, params=params, text_length=LENGTH) < 1e-5


@needs_extra
def test_a_graph_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    """Each file is compared: neither the right one beside a wrong one is written."""
    padded, right = dataclasses.replace(UNIPT, pool_padding=True), onnx._text_graph
    for part, wrong, file in (
        ("_activation", lambda graph, x, name: x, onnx.IMAGE_FILE),
        ("_text_graph", lambda spec, params: right(padded, params), onnx.TEXT_FILE),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(onnx, part, wrong)
            with pytest.raises(
                ConversionError, match=rf"^{file} gives embeddings that differ.*--overwrite"
            ):
                export(tmp_path, "vit_bert")
        assert not list(tmp_path.iterdir())


@needs_extra
def test_parameters_that_are_not_numbers_are_refused(tmp_path):
    params = noise(UNIPT)
    params["text_head"]["projection"]["bias"][0] = np.nan
    params = jax.tree.map(jnp.asarray, params)
    with pytest.raises(ConversionError, match=r"differ from the model's by nan"):
        onnx.export(tmp_path, model=DualEncoder(UNIPT), params=params, text_length=LENGTH)
    assert not list(tmp_path.iterdir())


@needs_extra
def test_an_encoder_beyond_two_gibibytes_is_refused():
    params = noise(UNIPT)
    # A view: it takes no memory.
    params["text_encoder"]["word_embeddings"] = np.broadcast_to(np.float32(0), (2**20, 512))
    with pytest.raises(ConversionError, match=r"the text encoder has 2\.0 GiB .*without .*onnx"):
        onnx.check(params)


def test_a_missing_extra_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(onnx, "onnx", None)
    with pytest.raises(ConfigError, match=r"pip install 'unipt-jax\[onnx\]'"):
        onnx.check(noise(UNIPT))
