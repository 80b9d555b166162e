"""CLIP of transformers, OpenAI and open_clip against transformers' torch model."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tests.parity import references
from tests.parity.references import torch, transformers
from unipt_jax.interop import huggingface, names
from unipt_jax.models.dual_encoder import DualEncoder
from unipt_jax.models.positions import resize_positions

END, MASK, VOCABULARY, LENGTH = 20, 21, 22, 9


@st.composite
def configurations(draw):
    image = {**draw(references.towers()), "patch_size": draw(st.integers(1, 4))}
    image["image_size"] = image["patch_size"] * draw(st.integers(1, 3))
    return image, draw(references.towers()), draw(st.sampled_from([8, 16, 24]))


def square(eps, activation, hidden_size=16):
    """Widths, projection, patch and channels such that every transposition fits."""
    tower = references.tower(eps, activation, hidden_size)
    return {**tower, "patch_size": 3, "image_size": 9}, tower, hidden_size


def reference(image, text, projection, *, end=END):
    config = transformers.CLIPConfig(
        vision_config=image,
        text_config={
            **text,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": LENGTH,
            "bos_token_id": 0,
            "eos_token_id": end,
        },
        projection_dim=projection,
    )
    return references.randomised(transformers.CLIPModel(config))


def sentences(end=END):
    """Texts of 3 to 9 tokens that differ in their second one; some with [MASK], the highest id."""
    rng = np.random.default_rng(0)
    text = rng.integers(1, END, (6, LENGTH)).astype(np.int32)
    text[:, 1] = np.arange(1, 7)
    lengths = np.array([3, 4, 5, 7, 8, 9])
    text[np.arange(6), lengths - 1] = end
    mask = np.arange(LENGTH)[None] < lengths[:, None]
    return np.where(mask, text, 0), mask


def pixels(size):
    return np.random.default_rng(1).integers(0, 256, (5, *size, 3), np.uint8)


def torch_embeddings(model, spec, images, text, mask, **arguments):
    values = (images / 255 - np.array(spec.image.mean)) / np.array(spec.image.std)
    values = torch.tensor(values.transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        return (
            model.get_image_features(values, **arguments).pooler_output.numpy(),
            model.get_text_features(torch.tensor(text), torch.tensor(mask)).pooler_output.numpy(),
        )


@functools.partial(jax.jit, static_argnums=0)
def embeddings(spec, params, images, text, mask):
    model, variables = DualEncoder(spec), {"params": params}
    return (
        model.apply(variables, images, method="encode_image"),
        model.apply(variables, text, mask, method="encode_text"),
    )


def assert_same(model, pretrained, text=None, **arguments):
    """Equal embeddings, and the same order of images for each text and of texts for each image."""
    spec = pretrained.spec
    images = pixels(spec.image.image_size)
    text, mask = sentences() if text is None else text
    want_image, want_text = torch_embeddings(model, spec, images, text, mask, **arguments)
    image, words = map(np.asarray, embeddings(spec, pretrained.params, images, text, mask))
    np.testing.assert_allclose(image, want_image, rtol=0, atol=1e-4)
    np.testing.assert_allclose(words, want_text, rtol=0, atol=1e-4)
    want = references.unit(want_text) @ references.unit(want_image).T
    have = references.unit(words) @ references.unit(image).T
    np.testing.assert_array_equal(have.argsort(axis=1), want.argsort(axis=1))
    np.testing.assert_array_equal(have.argsort(axis=0), want.argsort(axis=0))


@settings(max_examples=6)
@given(configurations())
@example(square(1e-12, "quick_gelu"))
@example(square(1e-3, "gelu"))
@example(square(1e-5, "gelu_new"))
@example((square(1e-5, "quick_gelu")[0], *square(1e-3, "gelu_new")[1:]))
@example((square(1e-3, "gelu")[0], *square(1e-12, "quick_gelu")[1:]))
def test_embeddings_equal_torch(configuration):
    """Also where every side is equal, and a missing transposition fits (P18)."""
    model = reference(*configuration)
    pretrained = references.reload(model)
    assert_same(model, pretrained)
    np.testing.assert_allclose(
        pretrained.spec.logit_scale, np.exp(model.logit_scale.item()), rtol=1e-6
    )


@references.each_eps_and_activation
def test_every_eps_and_activation(eps, activation):
    """The epsilon and the activation are those of the configuration (P13, P14)."""
    image, text, projection = square(eps, activation)
    shallow = {"num_hidden_layers": 1}
    model = reference({**image, **shallow}, {**text, **shallow}, projection)
    pretrained = references.reload(model)
    assert (pretrained.spec.image.layer_norm_eps, pretrained.spec.text.layer_norm_eps) == (eps, eps)
    assert_same(model, pretrained)


@pytest.mark.parametrize("grid", [(6, 2), (2, 5), (3, 1)])
def test_embeddings_of_another_image_size_equal_torch(grid):
    """P20: rows stay rows."""
    model = reference(*square(1e-5, "quick_gelu"))
    pretrained = references.reload(model)
    table = pretrained.params["image_encoder"]["position_embedding"]
    image = pretrained.spec.image
    resized = resize_positions(jnp.asarray(table), image.grid, grid, image.prefix)
    side = image.patch_size
    image = dataclasses.replace(image, image_size=(grid[0] * side, grid[1] * side))
    encoder = {**pretrained.params["image_encoder"], "position_embedding": np.asarray(resized)}
    pretrained = dataclasses.replace(
        pretrained,
        spec=dataclasses.replace(pretrained.spec, image=image),
        params={**pretrained.params, "image_encoder": encoder},
    )
    assert_same(model, pretrained, interpolate_pos_encoding=True)


# ---------------------------------------------------------------------------- the end of a text


def edit_text_config(directory, **values):
    file = f"{directory}/config.json"
    with open(file) as stream:
        config = json.load(stream)
    config["text_config"].update(values)
    with open(file, "w") as stream:
        json.dump(config, stream)


def with_mask_tokens():
    text, mask = sentences()
    text[2:, 1] = MASK
    text[2:, 2] = np.arange(1, 5)
    return text, mask


@pytest.mark.parametrize(
    ("file", "end"), [("tokenizer.json", "<|endoftext|>"), ("vocab.json", "<end_of_text>")]
)
def test_an_old_configuration_ends_where_its_tokenizer_does(file, end):
    """P11: `eos_token_id: 2` and an added [MASK] with a higher id, before the end."""
    model = reference(*square(1e-5, "quick_gelu"))
    ids = {f"word{number}": number for number in range(END)} | {end: END, "[MASK]": MASK}
    content = {
        "vocab.json": ids,
        "tokenizer.json": {"model": {"type": "WordLevel", "vocab": ids, "unk_token": "word0"}},
    }
    with references.saved(model) as directory:
        edit_text_config(directory, eos_token_id=2)
        with open(f"{directory}/{file}", "w") as stream:
            json.dump(content[file], stream)
        pretrained = huggingface.load(directory)
    assert_same(model, pretrained, with_mask_tokens())


def test_a_new_configuration_is_unmoved_by_a_higher_id():
    model = reference(*square(1e-5, "quick_gelu"))
    assert_same(model, references.reload(model), with_mask_tokens())


def test_an_old_configuration_alone_ends_at_the_highest_id():
    """As transformers itself does with such configurations."""
    model = reference(*square(1e-5, "quick_gelu"), end=2)
    assert model.text_model.eos_token_id == 2
    assert_same(model, references.reload(model), sentences(end=VOCABULARY - 1))


# -------------------------------------------------------------------------- OpenAI and open_clip


@pytest.fixture(scope="module")
def wide():
    """A model whose number of heads follows from its width, as OpenAI's do."""
    return reference(*square(1e-5, "quick_gelu", hidden_size=128), end=VOCABULARY - 1)


OTHERS_TEXT = sentences(end=VOCABULARY - 1)


def test_a_state_dict_of_openai(wide, tmp_path):
    weights = references.openai(references.arrays(wide))
    buffers = {"input_resolution": 9, "context_length": LENGTH, "vocab_size": VOCABULARY}
    tensors = {name: torch.tensor(value) for name, value in {**weights, **buffers}.items()}
    torch.save(tensors, tmp_path / "ViT-B-32.pt")
    assert_same(wide, huggingface.load(str(tmp_path / "ViT-B-32.pt")), OTHERS_TEXT)


def test_a_torchscript_archive_of_openai(wide, tmp_path):
    weights = references.openai(references.arrays(wide))
    root = torch.nn.Module()
    for name, weight in weights.items():
        *scope, last = name.split(".")
        module = root
        for part in scope:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, torch.nn.Parameter(torch.tensor(weight).half()))
    root.register_buffer("input_resolution", torch.tensor(9))
    torch.jit.script(root).save(str(tmp_path / "ViT-B-32.pt"))
    pretrained = huggingface.load(str(tmp_path / "ViT-B-32.pt"))
    assert pretrained.spec.text.activation == "quick_gelu"
    halved = wide.__class__(wide.config).eval()
    halved.load_state_dict({k: v.half().float() for k, v in wide.state_dict().items()})
    assert_same(halved, pretrained, OTHERS_TEXT)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_training_checkpoint_of_open_clip(activation, tmp_path):
    """P17, P13: wrapped, with DistributedDataParallel's prefix, and silent about its activation."""
    configuration = square(1e-5, activation, hidden_size=128)
    model = reference(*configuration, end=VOCABULARY - 1)
    weights = references.openai(references.arrays(model))
    tensors = {f"module.{name}": torch.tensor(value) for name, value in weights.items()}
    file = tmp_path / "epoch_400.pt"
    torch.save({"epoch": 400, "name": "run", "state_dict": tensors}, file)
    with pytest.raises(huggingface.ConversionError, match=r"--config\.activation=quick_gelu"):
        huggingface.load(str(file))
    assert_same(model, huggingface.load(str(file), activation=activation), OTHERS_TEXT)


@pytest.mark.parametrize("prefix", ["", "text."])
@pytest.mark.parametrize("quick", [True, False])
def test_a_directory_of_open_clip(quick, prefix, tmp_path):
    """Heads as the configuration says, and each tower's own sizes."""
    image, text, projection = square(1e-5, "quick_gelu" if quick else "gelu")
    text = {**text, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 96}
    image = {**image, "intermediate_size": 32}
    model = reference(image, text, projection, end=VOCABULARY - 1)
    ours = ("visual.", "logit_scale")
    weights = {
        name if name.startswith(ours) else prefix + name: weight
        for name, weight in references.openai(references.arrays(model)).items()
    }
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    towers = {
        "embed_dim": projection,
        "vision_cfg": {
            "image_size": 9,
            "patch_size": 3,
            "width": 16,
            "layers": 2,
            "head_width": 8,
            "mlp_ratio": 2.0,
        },
        "text_cfg": {
            "context_length": LENGTH,
            "vocab_size": VOCABULARY,
            "width": 24,
            "layers": 2,
            "heads": 3,
        },
    }
    config = {
        "model_cfg": {**towers, **({"quick_gelu": True} if quick else {})},
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    pretrained = huggingface.load(str(tmp_path))
    assert pretrained.spec.image.mean == (0.1, 0.2, 0.3)
    assert_same(model, pretrained, OTHERS_TEXT)


# ------------------------------------------------------------------------------------- and back


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("table", ["CLIP", "OPENAI_CLIP"])
def test_back_to_the_same_bits(wide, table, dtype, tmp_path):
    """To Flax and back, of OpenAI and of transformers (P18)."""
    weights = references.arrays(wide)
    if table == "OPENAI_CLIP":
        weights = references.openai(weights)
    else:
        wide.config.save_pretrained(tmp_path)
    source = {name: np.asarray(weight, dtype) for name, weight in weights.items()}
    save_file(source, tmp_path / "model.safetensors")
    params = huggingface.load(str(tmp_path), activation="quick_gelu").params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    back = names.from_flax(params, getattr(names, table))
    assert back.keys() == source.keys()
    for name, weight in source.items():
        np.testing.assert_array_equal(back[name].astype(dtype), weight)
