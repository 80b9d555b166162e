"""`model.json`: what it says comes back, and what it cannot say is named."""

import dataclasses
import json

import pytest

from tests.training import micro
from unipt_jax.core.errors import CheckpointError, DataError
from unipt_jax.data import tokenization
from unipt_jax.training import model_file
from unipt_jax.training.model_file import ModelFile

SPEC = micro.model().spec


@pytest.mark.parametrize("spec", [SPEC, SPEC.image, SPEC.text])
def test_what_was_written_is_read(tmp_path, spec):
    """P13: the activation and the epsilons are part of it."""
    if spec is not SPEC:
        spec = dataclasses.replace(spec, activation="gelu_tanh", layer_norm_eps=1e-3)
    written = ModelFile(spec, "bfloat16", 17)
    assert not model_file.exists(tmp_path)
    written.write(tmp_path)
    assert model_file.exists(tmp_path)
    assert model_file.read(tmp_path) == written


def test_other_versions_are_named(tmp_path):
    """A field more or less is never guessed."""
    ModelFile(SPEC, "float32", 12).write(tmp_path)
    path = tmp_path / "model.json"
    good = json.loads(path.read_text())
    spec = good["spec"]
    cases = [
        (good | {"color": "red"}, "text_length"),
        ({"spec": spec, "dtype": "float32"}, "text_length"),
        (good | {"spec": 3}, "text_length"),
        ([], "text_length"),
        (good | {"spec": spec | {"pools": 1}}, "pools"),
        (good | {"spec": {k: v for k, v in spec.items() if k != "pooling"}}, "pooling"),
        (good | {"spec": spec | {"kind": "resnet"}}, "resnet"),
        (good | {"spec": spec | {"embedding_dim": 0}}, "embedding_dim=0"),
    ]
    for values, named in cases:
        path.write_text(json.dumps(values))
        with pytest.raises(CheckpointError, match=rf"model\.json.*{named}.*anew"):
            model_file.read(tmp_path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"model\.json"):
        model_file.read(tmp_path)


def test_no_altered_value_passes(tmp_path):
    """An epsilon with another digit would be another model's embeddings."""
    ModelFile(SPEC, "float32", 12, "0a1b").write(tmp_path)
    path = tmp_path / "model.json"
    content, good = path.read_bytes(), model_file.read(tmp_path)
    for place in range(0, len(content), 3):
        altered = bytearray(content)
        altered[place] ^= 1 << place % 7
        path.write_bytes(altered)
        try:
            assert model_file.read(tmp_path) == good, altered[place - 20 : place + 20]
        except (CheckpointError, DataError) as error:
            assert "model.json" in str(error)


def test_an_altered_tokenizer_is_told(tmp_path):
    """Two words have changed their ids; the file is whole."""
    tokenizer = tokenization.load("examples/tokenizer")
    directory = tmp_path / "tokenizer"
    tokenizer.save(directory)
    ModelFile(SPEC, "float32", 12, tokenizer.fingerprint).write(tmp_path)
    assert model_file.tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    values = json.loads((directory / "tokenizer.json").read_text())
    words = values["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    (directory / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"/tokenizer is another tokenizer than the model was"):
        model_file.tokenizer(tmp_path)


def test_a_file_system_without_its_package_is_named(monkeypatch):
    def missing(self):
        raise ImportError("install gcsfs")

    monkeypatch.setattr(type(model_file.epath.Path("x")), "exists", missing)
    with pytest.raises(CheckpointError, match="somewhere cannot be reached: install gcsfs"):
        model_file.exists("somewhere")
