"""UniPT's dual encoder in PyTorch: images and sentences in one embedding space.

UniPT-JAX puts this file beside the weights that it exports; it needs torch and transformers alone.
`spec` in `config.json` is the model's shape. Below: B images or texts, L tokens of width D, E the
embedding's width, V the vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class UniPTConfig(PreTrainedConfig):
    """`spec`: the shape of the model, as nested plain values; `text_length`: in tokens."""

    model_type = "unipt"
    spec = None
    text_length = None


@dataclass
class UniPTOutput(ModelOutput):
    """Embeddings [B, E] of length 1, and their cosine similarities times the logit scale."""

    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, tokens, mask):
        """Mixes tokens [B, L, D]; mask [B, 1, 1 or L, L] is True where one may see another."""
        query, key, value = (
            project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, width, mlp_size, activation):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(width, mlp_size)
        self.fc2 = nn.Linear(mlp_size, width)

    def forward(self, tokens):
        """Maps each token by itself."""
        return self.fc2(self.activation(self.fc1(tokens)))


class TransformerBlock(nn.Module):
    """Attention and an MLP, normalised before each ("pre": ViT, CLIP) or after ("post": BERT)."""

    def __init__(self, spec, norm):
        super().__init__()
        width, eps = spec["hidden_size"], spec["layer_norm_eps"]
        self.norm = norm
        self.self_attn = Attention(width, spec["heads"])
        self.mlp = Mlp(width, spec["mlp_size"], spec["activation"])
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, tokens, mask=None):
        """Transforms tokens [B, L, D]."""
        if self.norm == "pre":
            x = tokens + self.self_attn(self.layer_norm1(tokens), mask)
            return x + self.mlp(self.layer_norm2(x))
        x = self.layer_norm1(tokens + self.self_attn(tokens, mask))
        return self.layer_norm2(x + self.mlp(x))


def table(*shape):
    """A parameter that belongs to no layer."""
    return nn.Parameter(0.02 * torch.randn(shape))


def blocks(spec, norm):
    """An encoder's blocks."""
    return nn.ModuleList(TransformerBlock(spec, norm) for _ in range(spec["layers"]))


class ImageEncoder(nn.Module):
    """A Vision Transformer; DeiT's and CLIP's differ as `spec` says."""

    def __init__(self, spec):
        super().__init__()
        width, side = spec["hidden_size"], spec["patch_size"]
        self.image_size = tuple(spec["image_size"])
        rows, columns = (pixels // side for pixels in self.image_size)
        self.patch_embedding = nn.Conv2d(3, width, side, stride=side, bias=spec["patch_bias"])
        self.class_token = table(width)
        self.distillation_token = table(width) if spec["distillation_token"] else None
        prefix = 2 if spec["distillation_token"] else 1
        self.position_embedding = table(prefix + rows * columns, width)
        eps = spec["layer_norm_eps"]
        self.pre_layer_norm = nn.LayerNorm(width, eps=eps) if spec["pre_layer_norm"] else None
        self.layers = blocks(spec, "pre")
        self.layer_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, pixel_values):
        """Returns tokens [B, L, D], the class token first, of normalised pixels [B, 3, H, W]."""
        if tuple(pixel_values.shape[2:]) != self.image_size:
            raise ValueError(
                f"images are {tuple(pixel_values.shape[2:])} (height, width), "
                f"but the model takes {self.image_size}"
            )
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        tokens = [self.class_token, self.distillation_token]
        first = torch.stack([token for token in tokens if token is not None])
        x = torch.cat([first.expand(len(patches), -1, -1), patches], dim=1)
        x = x + self.position_embedding
        if self.pre_layer_norm is not None:
            x = self.pre_layer_norm(x)
        for layer in self.layers:
            x = layer(x)
        return self.layer_norm(x)


class Bert(nn.Module):
    """BERT without its pooler."""

    def __init__(self, spec):
        super().__init__()
        width = spec["hidden_size"]
        self.word_embeddings = table(spec["vocab_size"], width)
        self.position_embeddings = table(spec["max_positions"], width)
        self.token_type_embeddings = table(spec["type_vocab_size"], width)
        self.layer_norm = nn.LayerNorm(width, eps=spec["layer_norm_eps"])
        self.layers = blocks(spec, "post")

    def forward(self, input_ids, mask):
        """Returns tokens [B, L, D] of ids [B, L]; mask [B, L] is False at padding."""
        x = F.embedding(input_ids, self.word_embeddings)
        x = x + self.position_embeddings[: input_ids.shape[1]] + self.token_type_embeddings[0]
        x = self.layer_norm(x)
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        return x

    def class_position(self, input_ids):
        """Returns where each text's [CLS] is: first."""
        return torch.zeros_like(input_ids[:, 0])


class ClipText(nn.Module):
    """CLIP's text encoder, in which a token sees itself and those before it."""

    def __init__(self, spec):
        super().__init__()
        width = spec["hidden_size"]
        self.end_token = spec["end_token"]
        self.word_embeddings = table(spec["vocab_size"], width)
        self.position_embeddings = table(spec["max_positions"], width)
        self.layers = blocks(spec, "pre")
        self.layer_norm = nn.LayerNorm(width, eps=spec["layer_norm_eps"])

    def forward(self, input_ids, mask):
        """Returns tokens [B, L, D] of ids [B, L]; mask [B, L] is False at padding."""
        length = input_ids.shape[1]
        x = F.embedding(input_ids, self.word_embeddings) + self.position_embeddings[:length]
        past = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :] & past)
        return self.layer_norm(x)

    def class_position(self, input_ids):
        """Returns where each text's first end-of-text token is; -1 where it has none."""
        is_end = input_ids == self.end_token
        return is_end.int().argmax(dim=1).masked_fill(~is_end.any(dim=1), -1)


class Head(nn.Module):
    """One embedding of all tokens: the maximum over the mapped tokens, or one of them, mapped."""

    def __init__(self, width, embedding_dim, pooling):
        super().__init__()
        self.pooling = pooling
        self.projection = nn.Linear(width, embedding_dim, bias=pooling == "max")

    def forward(self, tokens, mask, position):
        """Returns [B, E], not normalised: of tokens where `mask` [B, L], or at `position` [B].

        Without a position, of -1, there is no embedding: not a number.
        """
        if self.pooling == "class":
            x = self.projection(tokens[torch.arange(len(tokens)), position])
            return x.masked_fill((position < 0)[:, None], torch.nan)
        x = self.projection(tokens)
        return x.masked_fill(~mask[:, :, None], torch.finfo(x.dtype).min).amax(dim=1)


class MlmHead(nn.Module):
    """BERT's masked-language-model head; its decoder is the table of word embeddings."""

    def __init__(self, spec):
        super().__init__()
        self.activation = ACTIVATIONS[spec["activation"]]
        self.dense = nn.Linear(spec["hidden_size"], spec["hidden_size"])
        self.layer_norm = nn.LayerNorm(spec["hidden_size"], eps=spec["layer_norm_eps"])
        self.bias = nn.Parameter(torch.zeros(spec["vocab_size"]))

    def forward(self, tokens, word_embeddings):
        """Returns logits [B, L, V] of tokens [B, L, D]."""
        x = self.layer_norm(self.activation(self.dense(tokens)))
        return F.linear(x, word_embeddings, self.bias)


class UniPTModel(PreTrainedModel):
    """An image and a text encoder that meet in one embedding space, called as a CLIPModel is.

    There is no dropout in it.
    """

    config_class = UniPTConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        spec = self.spec = config.spec
        text_encoder = {"bert": Bert, "clip_text": ClipText}[spec["text"]["kind"]]
        self.image_encoder = ImageEncoder(spec["image"])
        self.text_encoder = text_encoder(spec["text"])
        size, pooling = spec["embedding_dim"], spec["pooling"]
        self.image_head = Head(spec["image"]["hidden_size"], size, pooling)
        self.text_head = Head(spec["text"]["hidden_size"], size, pooling)
        self.mlm_head = MlmHead(spec["text"]) if spec["mlm"] else None
        learned = spec["temperature"] == "learned"
        start = torch.tensor(spec["logit_scale"]).log()
        self.logit_scale = nn.Parameter(start) if learned else None
        self.post_init()

    def get_image_features(self, pixel_values):
        """Embeds normalised pixels [B, 3, H, W]: `pooler_output` [B, E], not normalised."""
        tokens = self.image_encoder(pixel_values.to(self.dtype))
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        first = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        features = self.image_head(tokens, mask, first)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=features)

    def get_text_features(self, input_ids, attention_mask=None):
        """Embeds token ids [B, L]: `pooler_output` [B, E], not normalised."""
        tokens, mask = self._text_tokens(input_ids, attention_mask)
        if self.spec["pool_padding"]:
            mask = torch.ones_like(mask)
        features = self.text_head(tokens, mask, self.text_encoder.class_position(input_ids))
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=features)

    def get_mlm_logits(self, input_ids, attention_mask=None):
        """Returns logits [B, L, V] over the vocabulary, where the model has an MLM head."""
        tokens, _ = self._text_tokens(input_ids, attention_mask)
        return self.mlm_head(tokens, self.text_encoder.word_embeddings)

    def forward(self, input_ids, pixel_values, attention_mask=None):
        """Compares texts with images."""
        image = F.normalize(self.get_image_features(pixel_values).pooler_output, dim=-1)
        text = F.normalize(self.get_text_features(input_ids, attention_mask).pooler_output, dim=-1)
        logits = self._logit_scale() * text @ image.T
        return UniPTOutput(
            logits_per_image=logits.T, logits_per_text=logits, text_embeds=text, image_embeds=image
        )

    def _text_tokens(self, input_ids, attention_mask):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        mask = attention_mask.bool()
        return self.text_encoder(input_ids, mask), mask

    def _logit_scale(self):
        if self.logit_scale is not None:
            return self.logit_scale.exp()
        return self.spec["logit_scale"] if self.spec["temperature"] == "fixed" else 1.0
