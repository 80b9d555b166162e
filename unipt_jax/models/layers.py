"""Building blocks of every encoder: dense maps, LayerNorm, attention and one transformer block.

Children carry the stems of Hugging Face's names (`q_proj`, `fc1`, `layer_norm1`, ...). Parameters
are float32 and name their dimensions by logical axes; `dtype` is what the matrix products run in,
while softmax and LayerNorm always run in float32.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from unipt_jax.core.errors import ConfigError
from unipt_jax.core.sharding import Axis, constrain
from unipt_jax.models.compute import PRODUCT, Compute

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]

TOKENS = (Axis.BATCH, Axis.ACT_TOKENS, Axis.ACT_EMBED)
_HEADS = (Axis.BATCH, Axis.ACT_HEADS, Axis.ACT_TOKENS, None)


def _gelu(x: Array) -> Array:
    # Flax's takes the complement of the error function, which CPUs compute half as fast; in 16 bits
    # it keeps digits that 1 + erf loses.
    if x.dtype != jnp.float32:
        return nn.gelu(x, approximate=False)
    return x * (0.5 * jax.lax.erf(x * np.float32(np.sqrt(0.5))) + 0.5)


def _quick_gelu(x: Array) -> Array:
    # x * sigmoid(1.702 x), by the tangent, which CPUs compute faster.
    return x * (0.5 * jnp.tanh(0.851 * x) + 0.5)


# Flax's own gelu is the tanh approximation unless told otherwise: weights trained with one form
# give other features under another, without an error.
ACTIVATIONS = {
    "gelu": _gelu,
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": _quick_gelu,  # OpenAI's CLIP
}


class InitStd(NamedTuple):
    """Standard deviations that a block's kernels start with; the defaults are BERT's and timm's.

    Attributes:
        attention: of the maps to queries, keys and values.
        mlp: of the MLP's first map.
        output: of the maps whose outputs are added to the tokens.
    """

    attention: float = 0.02
    mlp: float = 0.02
    output: float = 0.02


def normal_init(axes: Sequence[str | None], std: float = 0.02) -> nn.initializers.Initializer:
    """Returns the initialiser N(0, std) cut at two deviations, named by `axes`."""
    return nn.with_logical_partitioning(nn.initializers.truncated_normal(std), tuple(axes))


def zeros_init(axes: Sequence[str | None]) -> nn.initializers.Initializer:
    """Returns the initialiser of biases, named by `axes`."""
    return nn.with_logical_partitioning(nn.initializers.zeros_init(), tuple(axes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(
    tokens: Float[Array, "*N D"], kernel: Float[Array, "D F"], precision: Any = None
) -> Float[Array, "*N F"]:
    """Multiplies tokens by a kernel; the gradient is the product's own, in an order fit for CPUs.

    The kernel's gradient needs one factor turned round. XLA's compiler for CPUs does that within
    whatever made the factor, a LayerNorm's gradient say, which it then computes column by column:
    a tenth of a training step's time. Here it turns round what lies in memory already, if the
    program is compiled with `compute.compiler_options`. There is no derivative in forward mode.

    Args:
        tokens: as many dimensions as wanted.
        kernel: a linear map's.
        precision: of the products, as `jax.lax.dot_general` takes it.
    """
    last = ((tokens.ndim - 1,), (0,))
    return jax.lax.dot_general(tokens, kernel, (last, ((), ())), precision=precision)


def _matmul_forward(
    tokens: Array, kernel: Array, precision: Any
) -> tuple[Array, tuple[Array, Array]]:
    return matmul(tokens, kernel, precision), (tokens, kernel)


def _matmul_backward(
    precision: Any, factors: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    tokens, kernel = factors
    tokens, gradient = jax.lax.platform_dependent(
        (tokens, gradient), cpu=jax.lax.optimization_barrier, default=lambda factors: factors
    )
    last, rows = gradient.ndim - 1, tuple(range(gradient.ndim - 1))
    product = functools.partial(jax.lax.dot_general, precision=precision)
    return (
        product(gradient, kernel, (((last,), (1,)), ((), ()))),
        product(tokens, gradient, ((rows, rows), ((), ()))),
    )


matmul.defvjp(_matmul_forward, _matmul_backward)


def _product(tokens: Array, kernel: Array, dimensions: Any, precision: Any) -> Array:
    """Multiplies for `flax.linen.Dense`, whose dimensions are always `matmul`'s."""
    return checkpoint_name(matmul(tokens, kernel, precision), PRODUCT)


def dense(
    features: int,
    axes: tuple[str, str],
    *,
    use_bias: bool = True,
    dtype: DTypeLike,
    std: float = 0.02,
    name: str | None = None,
) -> nn.Dense:
    """Makes a linear map from N(0, std); `axes` name the kernel's input and output dimensions."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=normal_init(axes, std),
        bias_init=zeros_init(axes[1:]),
        dot_general=_product,
        name=name,
    )


def head_size(hidden_size: int, heads: int) -> int:
    """Returns the width of one attention head.

    Raises:
        ConfigError: `heads` does not divide `hidden_size`.
    """
    if heads < 1 or hidden_size % heads:
        raise ConfigError(f"hidden_size={hidden_size} is not a multiple of heads={heads}")
    return hidden_size // heads


def require_positions(length: int, max_positions: int) -> None:
    """Checks that a text encoder has a position for each token.

    Raises:
        ConfigError: it has fewer.
    """
    if length > max_positions:
        raise ConfigError(
            f"texts of {length} tokens need as many positions; "
            f"the text encoder has max_positions={max_positions}"
        )


def embed_words(table: Float[Array, "V D"], text: Int[Array, "B L"]) -> Float[Array, "B L D"]:
    """Looks up token ids; an id outside the table gives NaN, where JAX's own lookup would clamp."""
    # Gathered whole in its width first, as FSDP does: the partitioner cannot bring a lookup from
    # columns split over `fsdp` to rows split over it without copying everything.
    table = constrain(table, (Axis.VOCAB, None))
    return jnp.take(table, text, axis=0, mode="fill", fill_value=jnp.nan)


class LayerNorm(nn.Module):
    """Normalises each token to mean 0 and variance 1 in float32, then scales and shifts it.

    Flax's own takes no lower precision in under strict promotion, and computes the variance as
    E[x^2] - E[x]^2 unless told otherwise, which cancels where the mean is large.

    Attributes:
        eps: added to the variance; it differs between models (1e-12 BERT, 1e-6 ViT, 1e-5 CLIP).
        dtype: of the output.
    """

    eps: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Normalises over the last dimension."""
        shape = tokens.shape[-1:]
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), (Axis.EMBED,))
        scale = self.param("scale", ones, shape)
        bias = self.param("bias", zeros_init((Axis.EMBED,)), shape)
        x = tokens.astype(jnp.float32)
        x = x - x.mean(axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + self.eps)
        return (x * scale[None, None] + bias[None, None]).astype(self.dtype)


def split_heads(tokens: Float[Array, "B L W"], size: int) -> Float[Array, "B H L S"]:
    """Cuts each token into heads of `size` numbers.

    Heads before tokens: products of plain matrices, which CPUs do in half the time that
    `jax.nn.dot_product_attention` takes for its own order.
    """
    x = tokens.reshape(*tokens.shape[:2], -1, size).transpose(0, 2, 1, 3)
    return constrain(x, _HEADS)


def _logits(query: Array, key: Array, seen: Sequence[Array]) -> Array:
    """Returns the scaled products of queries and keys, very low where a mask is False."""
    logits = jnp.matmul(
        query * query.shape[3] ** -0.5,
        key.transpose(0, 1, 3, 2),
        preferred_element_type=jnp.float32,
    )
    for mask in seen:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    return logits


def attend(
    query: Float[Array, "B H Q S"],
    key: Float[Array, "C H N S"],
    value: Float[Array, "C H N S"],
    seen: Sequence[Bool[Array, "..."]],
    drop: Callable[[Array], Array] = lambda weights: weights,
) -> Float[Array, "B Q W"]:
    """Weighs the values by the softmax of queries and keys (Vaswani et al., 2017), heads joined.

    Args:
        query: from `split_heads`.
        key: the same; C is B, or 1 where all rows read the same.
        value: the same.
        seen: masks that spread over [B, H, Q, N]; a value counts where all are True.
        drop: drops weights in training.
    """
    logits = _logits(query, key, seen)
    # The softmax, divided by its sum when it has weighed the values: fewer numbers to touch.
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    total = weights.sum(axis=-1, keepdims=True).astype(value.dtype)
    x = constrain(jnp.matmul(drop(weights.astype(value.dtype)), value) / total, _HEADS)
    return x.transpose(0, 2, 1, 3).reshape(len(query), query.shape[2], -1)


def fused_implementation(backend: str, dtype: DTypeLike) -> Literal["cudnn", "xla"]:
    """Returns what computes `fused_attend` on a backend: cuDNN, on GPUs with bfloat16, or XLA."""
    return "cudnn" if backend == "gpu" and jnp.dtype(dtype) == jnp.bfloat16 else "xla"


def fused_attend(
    query: Float[Array, "B H Q S"],
    key: Float[Array, "B H N S"],
    value: Float[Array, "B H N S"],
    mask: Bool[Array, "B N"] | None,
    *,
    causal: bool,
) -> Float[Array, "B Q W"]:
    """Returns what `attend` does, from one kernel where the backend has it.

    Args:
        query: as for `attend`.
        key: the same.
        value: the same.
        mask: which values count, the first ones of each row: a row with a True after a False gives
            NaN, and one without a True reads its first value. None: all count.
        causal: whether query i reads only the values up to i.
    """
    # Lengths, where a mask would do: cuDNN takes a mask as a bias of [B, H, Q, N], which is no
    # smaller than the weights that it saves, has a gradient, and must have even sides in training.
    lengths = None if mask is None else jnp.maximum(mask.sum(axis=1, dtype=jnp.int32), 1)
    query, key, value = (heads.transpose(0, 2, 1, 3) for heads in (query, key, value))
    x = jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=causal,
        key_value_seq_lengths=lengths,
        implementation=fused_implementation(jax.default_backend(), query.dtype),
    )
    x = x.reshape(*x.shape[:2], -1)
    if mask is None:
        return x
    has_gaps = (mask[:, 1:] & ~mask[:, :-1]).any(axis=1)
    return jnp.where(has_gaps[:, None, None], jnp.nan, x)


def attention_row(
    query: Float[Array, "B H Q S"],
    key: Float[Array, "B H N S"],
    seen: Sequence[Bool[Array, "..."]],
    reader: Int[Array, "B"],
) -> Float[Array, "B N"]:
    """Returns how one query of each row weighs the tokens, averaged over heads, in float32.

    Args:
        query: as for `attend`.
        key: the same.
        seen: the same.
        reader: each row's query, in [0, Q); beyond gives NaN.
    """
    at = reader[:, None, None, None]
    one = jnp.take_along_axis(query, at, axis=2, mode="fill", fill_value=jnp.nan)
    shape = (len(query), 1, query.shape[2], key.shape[2])
    masks = [
        jnp.take_along_axis(jnp.broadcast_to(mask, shape), at, axis=2, mode="clip") for mask in seen
    ]
    return nn.softmax(_logits(one, key, masks)).mean(axis=1)[:, 0]


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017): tokens read themselves, or others.

    Attributes:
        heads: number of heads; divides the width of the tokens.
        causal: whether a token sees only itself and those before it.
        dropout: probability with which each attention probability is dropped in training (BERT).
        dtype: compute dtype.
        std: what the kernels start with.
        compute: how it is computed.
    """

    heads: int
    causal: bool = False
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    std: InitStd = InitStd()
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B L D"],
        mask: Bool[Array, "B N"] | None,
        *,
        train: bool,
        first: int | None = None,
        context: Float[Array, "B N D"] | None = None,
        reader: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B F D"] | tuple[Float[Array, "B F D"], Float[Array, "B N"]]:
        """Mixes the tokens; those where `mask` is False are seen by none (None: all are seen).

        Args:
            tokens: those that read.
            mask: which of those that are read count.
            train: whether dropout is on.
            first: of how many tokens the result is wanted, F; None for all.
            context: the tokens that are read; None lets `tokens` read themselves, N = L.
            reader: a token of each row, in [0, F), whose attention is wanted too: a second result,
                `attention_row`.

        Raises:
            ConfigError: dropout is on, and fused attention has none.
        """
        fused = self.compute.attention == "fused"
        if fused and train and self.dropout:
            raise ConfigError(
                f"attention='fused' cannot drop attention probabilities (dropout={self.dropout}); "
                "set dropout=0, or attention='plain'"
            )
        context = tokens if context is None else context
        width = tokens.shape[2]
        size = head_size(width, self.heads)

        def project(name: str, tokens: Array) -> Array:
            axes, std = (Axis.EMBED, Axis.HEADS), self.std.attention
            x = dense(width, axes, dtype=self.dtype, std=std, name=name)(tokens)
            return split_heads(x, size)

        query = project("q_proj", tokens[:, :first])
        key, value = project("k_proj", context), project("v_proj", context)
        seen = [] if mask is None else [mask[:, None, None, :]]
        if self.causal:
            seen.append(jnp.tril(jnp.ones((1, 1, query.shape[2], key.shape[2]), jnp.bool_)))
        if fused:
            x = fused_attend(query, key, value, mask, causal=self.causal)
        else:
            drop = nn.Dropout(self.dropout, deterministic=not train)
            x = attend(query, key, value, seen, drop)
        axes, std = (Axis.HEADS, Axis.EMBED), self.std.output
        x = dense(width, axes, dtype=self.dtype, std=std, name="out_proj")(x)
        x = constrain(x, TOKENS)
        return x if reader is None else (x, attention_row(query, key, seen, reader))


class Mlp(nn.Module):
    """Two linear maps with an activation between them.

    Attributes:
        mlp_size: width between the maps.
        activation: "gelu" (exact), "gelu_tanh" or "quick_gelu".
        dtype: compute dtype.
        std: what the kernels start with.
    """

    mlp_size: int
    activation: Activation
    dtype: DTypeLike = jnp.float32
    std: InitStd = InitStd()

    @nn.compact
    def __call__(self, tokens: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Maps each token by itself."""
        width = tokens.shape[-1]
        linear = functools.partial(dense, dtype=self.dtype)
        fc1 = linear(self.mlp_size, (Axis.EMBED, Axis.MLP), std=self.std.mlp, name="fc1")
        fc2 = linear(width, (Axis.MLP, Axis.EMBED), std=self.std.output, name="fc2")
        x = constrain(fc1(tokens), (Axis.BATCH, Axis.ACT_TOKENS, Axis.ACT_MLP))
        x = ACTIVATIONS[self.activation](x)
        return constrain(fc2(x), TOKENS)


class TransformerBlock(nn.Module):
    """Self-attention and an MLP, each with a residual connection and a LayerNorm.

    Attributes:
        heads: number of attention heads.
        mlp_size: width within the MLP.
        layer_norm_eps: LayerNorm's epsilon.
        activation: the MLP's activation.
        norm: "pre" normalises what enters each branch (ViT, CLIP), "post" the sum after it (BERT).
        causal: whether a token sees only itself and those before it (CLIP's text).
        dropout: probability of dropping attention probabilities and branch outputs in training.
        dtype: compute dtype.
        std: what the kernels start with.
        compute: how it is computed; `scan` concerns `run_blocks`.
    """

    heads: int
    mlp_size: int
    layer_norm_eps: float
    activation: Activation
    norm: Literal["pre", "post"]
    causal: bool = False
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    std: InitStd = InitStd()
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B L D"],
        mask: Bool[Array, "B L"] | None,
        *,
        train: bool,
        first: int | None = None,
        reader: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B F D"] | tuple[Float[Array, "B F D"], Float[Array, "B L"]]:
        """Transforms the tokens; those where `mask` is False are seen by none (None: all are).

        Of the result there are the `first` tokens alone (None: all, F = L): all others are seen,
        but nothing more is computed of them. With a `reader`, a place in [0, F) a row, the result
        is a pair: the tokens, and that token's attention by `attention_row`.
        """

        def transform(self, tokens: Array, mask: Array | None, reader: Array | None) -> Any:
            attention = Attention(
                self.heads,
                self.causal,
                self.dropout,
                self.dtype,
                self.std,
                self.compute,
                name="self_attn",
            )
            mlp = Mlp(self.mlp_size, self.activation, self.dtype, self.std, name="mlp")
            drop = nn.Dropout(self.dropout, deterministic=not train)

            layer_norm1 = LayerNorm(self.layer_norm_eps, self.dtype, name="layer_norm1")
            layer_norm2 = LayerNorm(self.layer_norm_eps, self.dtype, name="layer_norm2")
            entering = layer_norm1(tokens) if self.norm == "pre" else tokens
            mixed = attention(entering, mask, train=train, first=first, reader=reader)
            mixed, row = (mixed, None) if reader is None else mixed
            x = tokens[:, :first] + drop(mixed)
            if self.norm == "pre":
                x = x + drop(mlp(layer_norm2(x)))
            else:
                x = layer_norm1(x)
                x = layer_norm2(x + drop(mlp(x)))
            return x if reader is None else (x, row)

        return self.compute.rematerialise(transform)(self, tokens, mask, reader)


def block_of(spec: Any, **options: Any) -> TransformerBlock:
    """Makes a block of an encoder's specification; `options` are what it does not tell."""
    return TransformerBlock(
        heads=spec.heads,
        mlp_size=spec.mlp_size,
        layer_norm_eps=spec.layer_norm_eps,
        activation=spec.activation,
        **options,
    )


def run_blocks(
    blocks: Sequence[TransformerBlock],
    tokens: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None,
    *,
    train: bool,
    first: int | None = None,
    reader: Int[Array, "B"] | None = None,
) -> tuple[Float[Array, "B F D"], Float[Array, "B L"] | None]:
    """Runs blocks of one shape, the parts of one encoder, one after another.

    Args:
        blocks: bound to their encoder, alike but for their names.
        tokens: that enter the first block.
        mask: as all that follows, see `TransformerBlock.__call__`.
        train: the same.
        first: the same, of the last block.
        reader: the same.

    Returns:
        The last block's tokens, and its reader's attention (None without a reader).
    """
    asked = first is not None or reader is not None
    alike, last = (blocks[:-1], blocks[-1:]) if asked else (blocks, ())
    # Each block makes its own parameters: one tree, with the same values, however it is computed.
    if len(alike) > 1 and alike[0].compute.scan and not alike[0].is_initializing():
        tokens = _scan_blocks(alike, tokens, mask, train)
    else:
        for block in alike:
            tokens = block(tokens, mask, train=train)
    row = None
    for block in last:
        tokens = block(tokens, mask, train=train, first=first, reader=reader)
        tokens, row = (tokens, None) if reader is None else tokens
    return tokens, row


def _scan_blocks(
    blocks: Sequence[TransformerBlock], tokens: Array, mask: Array | None, train: bool
) -> Array:
    """Runs one block's program over the parameters of all."""
    params = [block.variables["params"] for block in blocks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    rngs = {}
    if blocks[0].has_rng("dropout"):
        rngs["dropout"] = jax.random.split(blocks[0].make_rng("dropout"), len(blocks))
    block = blocks[0].clone(parent=None)

    def run(tokens: Array, layer: tuple[Any, dict[str, Array]]) -> tuple[Array, None]:
        params, rngs = layer
        return block.apply({"params": params}, tokens, mask, train=train, rngs=rngs), None

    return jax.lax.scan(run, tokens, (stacked, rngs))[0]
