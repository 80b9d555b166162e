"""launch/export.py on a trained model: torch and onnxruntime rank the sample as the model does."""

import dataclasses
import importlib.util
import json
import logging
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import unipt_jax
from unipt_jax.config import load, schema
from unipt_jax.config.command_line import main
from unipt_jax.core import files, trees
from unipt_jax.core.sharding import make_mesh
from unipt_jax.interop import huggingface, onnx
from unipt_jax.training import run

LENGTH = 32
SAMPLE = Path("examples/pedestrians")


@pytest.fixture(scope="module")
def workdir(data, tmp_path_factory):
    """A run of a few steps, on one device: its time is its compilation."""
    changes = {
        "data": str(data),
        "steps": 12,
        "batch_size": 32,
        "log_every": 4,
        "checkpoint_every": 12,
        "image.height": 32,
        "image.width": 16,
        "text.length": LENGTH,
        "text.buckets": (),
        "model.image": "micro",
        "model.text": "micro",
        "model.embedding_dim": 24,
        "init_image": "",
    }
    config = load.load("configs/pretrain.py:demo", changes)
    directory = tmp_path_factory.mktemp("run")
    files.write_json(directory / "config.json", schema.to_dict(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_mesh", lambda *_: make_mesh(devices=jax.devices()[:1]))
        run.train(config, directory, False)
    return directory


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("export", "launch/export.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def launch(script, capsys):
    """Runs the script; returns its code, what it printed and what it complained of."""
    root, level = logging.getLogger(), logging.getLogger().level
    handlers = list(root.handlers)

    def launch(*arguments):
        with pytest.raises(SystemExit) as exit_:
            flags = ["--config=configs/export.py", *arguments]
            main(script.run, script.__doc__, flags, check=script.check)
        out, err = capsys.readouterr()
        return exit_.value.code, out, err

    yield launch
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="module")
def sample():
    """Paths of the real images, and their captions."""
    records = json.loads((SAMPLE / "reid_raw.json").read_text())
    paths = [SAMPLE / "imgs" / record["file_path"] for record in records]
    return paths, [caption for record in records for caption in record["captions"]]


def assert_same_rankings(text, image, their_text, their_image):
    """The order of all images for each text, but for images that tie up to rounding."""
    np.testing.assert_allclose(their_text, text, atol=1e-5)
    np.testing.assert_allclose(their_image, image, atol=1e-5)
    similarity = text @ image.T
    assert np.median(np.ptp(similarity, axis=1)) > 1e-2  # Else everything would tie.
    order = np.argsort(-(their_text @ their_image.T), axis=1)
    assert np.diff(np.take_along_axis(similarity, order, axis=1), axis=1).max() < 1e-5


# ---------------------------------------------------------------------------- rankings


def test_torch_and_onnxruntime_rank_the_sample_as_the_model_does(
    workdir, launch, sample, tmp_path, monkeypatch
):
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "export"
    code, printed, complaints = launch(
        f"--config.checkpoint={workdir}", f"--workdir={out}", "--config.onnx"
    )
    assert code == 0, complaints
    paths, captions = sample
    assert len(paths) == 396 and len(captions) > len(paths)
    # Of a size that compiles one program a side.
    encoder = dataclasses.replace(unipt_jax.load(workdir), batch_size=396)
    text, image = encoder.encode_texts(captions), encoder.encode_images(paths)

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    assert_same_rankings(text, image, *in_torch(printed, out / "model", paths, captions))

    inputs = {"image": encoder.processor.images(paths)}, encoder.processor.texts(captions)
    assert_same_rankings(
        text,
        image,
        in_onnx(out / "onnx" / onnx.TEXT_FILE, inputs[1]),
        in_onnx(out / "onnx" / onnx.IMAGE_FILE, inputs[0]),
    )

    count = f"{trees.count_parameters(encoder.params):,}"
    assert f"UniPTModel of {count} parameters in float32" in printed
    assert str(out / "onnx" / onnx.TEXT_FILE) in printed and "left out" not in printed
    back = huggingface.load(str(out / "model"))
    assert back.spec == encoder.model.spec and back.text_length == LENGTH
    jax.tree.map(np.testing.assert_array_equal, back.params, encoder.params)


def in_torch(printed, directory, paths, captions):
    """Embeds with the lines that the script printed, and what transformers finds beside them."""
    import torch
    import transformers

    scope = {}
    exec("\n".join(re.findall(r"^  (.*)$", printed, re.MULTILINE)), scope)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    processor = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil")
    texts = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    assert texts["input_ids"].shape == (len(captions), LENGTH)
    images = processor([Image.open(path) for path in paths], return_tensors="pt")
    with torch.inference_mode():
        output = scope["model"](**texts, **images)
    return output.text_embeds.numpy(), output.image_embeds.numpy()


def in_onnx(path, inputs):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path)).run(None, inputs)[0]


# ---------------------------------------------------------------------------- the command


def test_the_directory_of_an_export(workdir, launch, tmp_path):
    out = tmp_path / "export"
    code, printed, complaints = launch(
        f"--config.checkpoint={workdir}", f"--workdir={out}", "--config.dtype=bfloat16"
    )
    assert code == 0, complaints
    assert "in bfloat16" in printed and "ONNX" not in printed
    assert {path.name for path in out.iterdir()} == {"config.json", "model"}
    assert {path.name for path in (out / "model").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "modeling_unipt.py",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    before = (out / "model" / "model.safetensors").read_bytes()
    (out / "model" / "config.json").unlink()  # As a killed export leaves it.
    arguments = [f"--config.checkpoint={workdir}", f"--workdir={out}", "--config.dtype=bfloat16"]
    assert launch(*arguments)[0] == 2
    assert launch(*arguments, "--resume")[0] == 0
    assert (out / "model" / "config.json").exists()
    assert (out / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"checkpoint": "nowhere"}, "nowhere"),
        ({"dtype": "float8"}, "dtype='float8'"),
        ({"onnx": "True"}, "pip install 'unipt-jax[onnx]'"),
    ],
)
def test_mistakes_are_one_line_and_replace_nothing(
    change, named, workdir, launch, tmp_path, monkeypatch
):
    monkeypatch.setattr(onnx, "onnx", None)
    (tmp_path / "config.json").write_text('{"stage": "prepare"}')
    values = {"checkpoint": str(workdir), **change}
    code, _, complaints = launch(
        *(f"--config.{name}={value}" for name, value in values.items()),
        f"--workdir={tmp_path}",
        "--overwrite",
    )
    assert code == 2
    assert complaints.count("error: ") == 1 and named in complaints.splitlines()[-1]
    assert (tmp_path / "config.json").read_text() == '{"stage": "prepare"}'


def test_a_checkpoint_that_is_not_finite_is_refused(workdir, launch, tmp_path, monkeypatch):
    """P94: before anything is removed."""
    encoder = unipt_jax.load(workdir)
    encoder.params["logit_scale"] = np.float32(np.nan)
    monkeypatch.setattr(unipt_jax, "load", lambda source: encoder)
    (tmp_path / "config.json").write_text('{"stage": "prepare"}')
    code, _, complaints = launch(
        f"--config.checkpoint={workdir}", f"--workdir={tmp_path}", "--overwrite"
    )
    assert code == 2 and "cannot hold logit_scale" in complaints
    assert (tmp_path / "config.json").read_text() == '{"stage": "prepare"}'
