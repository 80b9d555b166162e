"""Both encoders as ONNX files, from pixels and token ids to unit vectors.

The graphs are written out operator by operator, since no converter of JAX programs was found to
take these encoders with batches and texts of any length. What they compute is compared with the
model itself before anything is written. onnx and onnxruntime are the extra "onnx".
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float

from unipt_jax.core.errors import ConfigError, ConversionError
from unipt_jax.core.files import write_bytes
from unipt_jax.models.bert import TextSpec
from unipt_jax.models.clip import ClipTextSpec
from unipt_jax.models.dual_encoder import DualEncoder, DualEncoderSpec

try:
    import onnx
    import onnxruntime
except ImportError:  # An extra; `check` says so.
    onnx = onnxruntime = None

IMAGE_FILE = "image_encoder.onnx"
TEXT_FILE = "text_encoder.onnx"

TOLERANCE = 1e-4  # of the components of unit vectors

# Since 20 there is Gelu; version 10 of the format is what onnxruntime reads from then on.
_OPSET, _FORMAT = 20, 10

_LARGEST_FILE = 2**31  # bytes, protobuf's limit


def check(params: Any) -> None:
    """Raises what `export` would raise without looking at numbers.

    Raises:
        ConfigError: onnx or onnxruntime is not installed.
        ConversionError: an encoder is too large for one file.
    """
    if onnx is None:
        raise ConfigError(
            "onnx=True needs onnx and onnxruntime, which are not installed: "
            "pip install 'unipt-jax[onnx]'"
        )
    for side in ("image", "text"):
        parts = [params[f"{side}_encoder"], params[f"{side}_head"]]
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(parts))
        if size >= _LARGEST_FILE:
            raise ConversionError(
                f"the {side} encoder has {size / 2**30:.1f} GiB of parameters, but an ONNX file "
                "holds 2 GiB at most; export without --config.onnx"
            )


def export(
    directory: epath.PathLike, *, model: DualEncoder, params: Any, text_length: int
) -> float:
    """Writes `image_encoder.onnx` and `text_encoder.onnx`, in float32.

    `image`: uint8 [batch, H, W, 3], RGB -> `image_embedding`: float32 [batch, D], unit rows.
    `text`: int32 [batch, length] and `text_mask`: bool [batch, length], True at tokens
    -> `text_embedding`: float32 [batch, D], unit rows. Batch and length are free, the length up to
    `max_positions`.

    Args:
        directory: where to; made if it is missing.
        model: the dual encoder.
        params: its parameters, float32.
        text_length: tokens of the texts that both are compared with.

    Returns:
        The largest difference between onnxruntime's embeddings and the model's, of random inputs.

    Raises:
        ConfigError, ConversionError: as `check`; or the difference is beyond `TOLERANCE`, and
            nothing was written.
    """
    check(params)
    spec, arrays = model.spec, jax.device_get(params)
    files = {IMAGE_FILE: _image_graph(spec, arrays), TEXT_FILE: _text_graph(spec, arrays)}
    exact = model.clone(dtype=jnp.float32)
    image, text = _random_inputs(spec, text_length)
    difference = 0.0
    for method, file, inputs in (
        ("encode_image", IMAGE_FILE, image),
        ("encode_text", TEXT_FILE, text),
    ):
        # GPUs and TPUs round the factors of a product unless told otherwise.
        with jax.default_matmul_precision("highest"):
            ours = exact.apply(
                {"params": params}, *map(jnp.asarray, inputs.values()), method=method
            )
        ours = np.asarray(ours) / np.maximum(np.linalg.norm(ours, axis=1, keepdims=True), 1e-12)
        gap = float(np.abs(ours - _run(files[file], inputs)).max())
        if not gap <= TOLERANCE:
            raise ConversionError(
                f"{file} gives embeddings that differ from the model's by {gap:.1e} (at most "
                f"{TOLERANCE} is allowed); please report this, and export again without "
                "--config.onnx and with --overwrite"
            )
        difference = max(difference, gap)
    for file, content in files.items():
        write_bytes(epath.Path(directory) / file, content)
    return difference


def _random_inputs(
    spec: DualEncoderSpec, text_length: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Three images, and three texts of different lengths, each with its end token."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, *spec.image.image_size, 3), dtype=np.uint8)
    text = rng.integers(0, spec.text.vocab_size, (3, text_length), dtype=np.int32)
    lengths = np.array([text_length, max(1, text_length // 2), 1])
    mask = np.arange(text_length)[None] < lengths[:, None]
    if isinstance(spec.text, ClipTextSpec):
        text[np.arange(3), lengths - 1] = spec.text.end_token
    return {"image": images}, {"text": text, "text_mask": mask}


def _run(content: bytes, inputs: Mapping[str, np.ndarray]) -> Float[np.ndarray, "B D"]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))[0]


# ------------------------------------------------------------------------------------ graphs


class _Graph:
    """Collects operators. `graph(operator, *inputs)` adds one and returns its output's name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(
        self, operator: str, *inputs: str | np.ndarray | np.generic, **attributes: Any
    ) -> str:
        output = f"{operator}_{len(self.nodes)}"
        named = [self._named(value) for value in inputs]
        self.nodes.append(onnx.helper.make_node(operator, named, [output], output, **attributes))
        return output

    def _named(self, value: str | np.ndarray | np.generic) -> str:
        if isinstance(value, str):
            return value
        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def to_bytes(self, name: str, inputs: list[Any], last: str, width: int) -> bytes:
        """Returns the file of a graph whose result is `last`, made to unit rows of `width`."""
        norm = self("ReduceL2", last, _ints(1), keepdims=1)
        unit = self("Div", last, self("Max", norm, np.float32(1e-12)))
        self.nodes.append(onnx.helper.make_node("Identity", [unit], [f"{name}_embedding"]))
        output = onnx.helper.make_tensor_value_info(
            f"{name}_embedding", onnx.TensorProto.FLOAT, ["batch", width]
        )
        model = onnx.helper.make_model(
            onnx.helper.make_graph(self.nodes, f"{name}_encoder", inputs, [output], self.constants),
            opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
            ir_version=_FORMAT,
            producer_name="unipt_jax",
        )
        return model.SerializeToString()


def _image_graph(spec: DualEncoderSpec, params: Any) -> bytes:
    image, graph = spec.image, _Graph()
    weights = params["image_encoder"]
    side, width, (rows, columns) = image.patch_size, image.hidden_size, image.grid
    pixels = graph("Div", graph("Cast", "image", to=onnx.TensorProto.FLOAT), np.float32(255))
    pixels = graph("Sub", pixels, np.float32(image.mean))
    pixels = graph("Div", pixels, np.float32(image.std))
    x = graph("Reshape", pixels, _ints(-1, rows, side, columns, side, 3))
    x = graph("Transpose", x, perm=[0, 1, 3, 2, 4, 5])
    x = graph("Reshape", x, _ints(-1, rows * columns, side * side * 3))
    patch = dict(weights["patch_embedding"])
    x = _linear(graph, x, patch | {"kernel": patch["kernel"].reshape(-1, width)})
    tokens = [weights[name] for name in ("class_token", "distillation_token")[: image.prefix]]
    batch = graph("Shape", "image", start=0, end=1)
    shape = graph("Concat", batch, _ints(image.prefix, width), axis=0)
    x = graph("Concat", graph("Expand", np.stack(tokens), shape), x, axis=1)
    x = graph("Add", x, weights["position_embedding"])
    if image.pre_layer_norm:
        x = _layer_norm(graph, x, weights["pre_layer_norm"], image)
    for index in range(image.layers):
        x = _block(graph, x, weights[f"layers_{index}"], image, None, norm="pre")
    x = _layer_norm(graph, x, weights["layer_norm"], image)
    if spec.pooling == "class":
        x = graph("Gather", x, np.int64(0), axis=1)
    x = _linear(graph, x, params["image_head"]["projection"])
    if spec.pooling == "max":
        x = graph("ReduceMax", x, _ints(1), keepdims=0)
    inputs = [
        onnx.helper.make_tensor_value_info(
            "image", onnx.TensorProto.UINT8, ["batch", *image.image_size, 3]
        )
    ]
    return graph.to_bytes("image", inputs, x, spec.embedding_dim)


def _text_graph(spec: DualEncoderSpec, params: Any) -> bytes:
    text, graph = spec.text, _Graph()
    weights = params["text_encoder"]
    length = graph("Shape", "text", start=1, end=2)
    x = graph("Gather", weights["word_embeddings"], "text")
    x = graph("Add", x, graph("Slice", weights["position_embeddings"], _ints(0), length, _ints(0)))
    mask = graph("Unsqueeze", "text_mask", _ints(1, 2))
    if isinstance(text, TextSpec):
        x = graph("Add", x, weights["token_type_embeddings"][0])
        x = _layer_norm(graph, x, weights["layer_norm"], text)
        norm = "post"
    else:
        places = graph("Range", np.int64(0), graph("Squeeze", length), np.int64(1))
        past = graph("LessOrEqual", places, graph("Unsqueeze", places, _ints(1)))
        mask, norm = graph("And", mask, past), "pre"
    for index in range(text.layers):
        x = _block(graph, x, weights[f"layers_{index}"], text, mask, norm=norm)
    if isinstance(text, ClipTextSpec):
        x = _layer_norm(graph, x, weights["layer_norm"], text)
    if spec.pooling == "class" and isinstance(text, ClipTextSpec):
        is_end = graph("Equal", "text", np.int32(text.end_token))
        is_end = graph("Cast", is_end, to=onnx.TensorProto.INT32)
        place = graph("ArgMax", is_end, axis=1, keepdims=1)  # The first of them.
        x = graph("GatherND", x, place, batch_dims=1)
        has_end = graph("Cast", graph("ReduceMax", is_end, _ints(1)), to=onnx.TensorProto.BOOL)
        x = graph("Where", has_end, x, np.float32(np.nan))
    elif spec.pooling == "class":
        x = graph("Gather", x, np.int64(0), axis=1)
    x = _linear(graph, x, params["text_head"]["projection"])
    if spec.pooling == "max":
        if not spec.pool_padding:
            seen = graph("Unsqueeze", "text_mask", _ints(2))
            x = graph("Where", seen, x, np.finfo(np.float32).min)
        x = graph("ReduceMax", x, _ints(1), keepdims=0)
    inputs = [
        onnx.helper.make_tensor_value_info(name, kind, ["batch", "length"])
        for name, kind in (("text", onnx.TensorProto.INT32), ("text_mask", onnx.TensorProto.BOOL))
    ]
    return graph.to_bytes("text", inputs, x, spec.embedding_dim)


def _block(
    graph: _Graph, tokens: str, weights: Any, tower: Any, mask: str | None, *, norm: str
) -> str:
    """One transformer block, as `models.layers.TransformerBlock`."""

    def layer_norm(name: str, x: str) -> str:
        return _layer_norm(graph, x, weights[name], tower)

    def mlp(x: str) -> str:
        x = _linear(graph, x, weights["mlp"]["fc1"])
        return _linear(graph, _activation(graph, x, tower.activation), weights["mlp"]["fc2"])

    def attention(x: str) -> str:
        return _attention(graph, x, weights["self_attn"], tower, mask)

    if norm == "pre":
        x = graph("Add", tokens, attention(layer_norm("layer_norm1", tokens)))
        return graph("Add", x, mlp(layer_norm("layer_norm2", x)))
    x = layer_norm("layer_norm1", graph("Add", tokens, attention(tokens)))
    return layer_norm("layer_norm2", graph("Add", x, mlp(x)))


def _attention(graph: _Graph, tokens: str, weights: Any, tower: Any, mask: str | None) -> str:
    size = tower.hidden_size // tower.heads

    def split(name: str, order: list[int]) -> str:
        x = _linear(graph, tokens, weights[name])
        return graph("Transpose", graph("Reshape", x, _ints(0, 0, tower.heads, size)), perm=order)

    query, value = split("q_proj", [0, 2, 1, 3]), split("v_proj", [0, 2, 1, 3])
    logits = graph("MatMul", query, split("k_proj", [0, 2, 3, 1]))
    logits = graph("Mul", logits, np.float32(1 / math.sqrt(size)))
    if mask is not None:
        logits = graph("Where", mask, logits, np.finfo(np.float32).min)
    x = graph("MatMul", graph("Softmax", logits, axis=-1), value)
    x = graph("Transpose", x, perm=[0, 2, 1, 3])
    x = graph("Reshape", x, _ints(0, 0, tower.hidden_size))
    return _linear(graph, x, weights["out_proj"])


def _linear(graph: _Graph, x: str, weights: Any) -> str:
    x = graph("MatMul", x, weights["kernel"])
    return graph("Add", x, weights["bias"]) if "bias" in weights else x


def _layer_norm(graph: _Graph, x: str, weights: Any, tower: Any) -> str:
    return graph(
        "LayerNormalization",
        x,
        weights["scale"],
        weights["bias"],
        axis=-1,
        epsilon=tower.layer_norm_eps,
    )


def _activation(graph: _Graph, x: str, name: str) -> str:
    if name == "quick_gelu":
        return graph("Mul", x, graph("Sigmoid", graph("Mul", x, np.float32(1.702))))
    return graph("Gelu", x, approximate="tanh" if name == "gelu_tanh" else "none")


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)
