"""What users of PyTorch would run: Hugging Face's encoders and the training steps around them."""

import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CLIPConfig,
    CLIPModel,
    ViTConfig,
    ViTModel,
)

from unipt_jax.interop import names
from unipt_jax.models.dual_encoder import DualEncoderSpec
from unipt_jax.models.vit import VisionSpec

# Labels that torch's cross-entropy leaves out.
IGNORED = -100


class UniPT(torch.nn.Module):
    """ViT and BERT with a linear map and a maximum over tokens each, and BERT's MLM head."""

    def __init__(self, spec: DualEncoderSpec, params: Mapping[str, Any]):
        super().__init__()
        self.spec = spec.image
        image, text = spec.image, spec.text
        config = ViTConfig(
            image_size=image.image_size,
            patch_size=image.patch_size,
            hidden_size=image.hidden_size,
            num_hidden_layers=image.layers,
            num_attention_heads=image.heads,
            intermediate_size=image.mlp_size,
            layer_norm_eps=image.layer_norm_eps,
        )
        weights = names.from_flax({"image_encoder": params["image_encoder"]}, names.VIT)
        self.image = loaded(ViTModel, config, weights, add_pooling_layer=False)
        config = BertConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            intermediate_size=text.mlp_size,
            max_position_embeddings=text.max_positions,
            hidden_dropout_prob=text.dropout,
            attention_probs_dropout_prob=text.dropout,
        )
        read = {name: params[name] for name in ("text_encoder", "mlm_head")}
        self.text = loaded(BertForMaskedLM, config, names.from_flax(read, names.BERT))
        self.image_head = linear(params["image_head"]["projection"])
        self.text_head = linear(params["text_head"]["projection"])

    def embed_image(self, pixels):
        """Returns [B, D] of pixels [B, 3, H, W], values -1 to 1."""
        return self.image_head(self.image(pixels).last_hidden_state).amax(dim=1)

    def read(self, text, mask):
        """Returns BERT's tokens [B, L, W]."""
        return self.text.bert(text, attention_mask=mask).last_hidden_state

    def embed_text(self, tokens, mask):
        """Returns [B, D] of BERT's tokens."""
        mapped = self.text_head(tokens)
        return mapped.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)


def loaded(cls: type, config: Any, weights: Mapping[str, np.ndarray], **options: Any):
    """Returns a model of Hugging Face's with these weights, all of them."""
    with tempfile.TemporaryDirectory() as directory:
        safetensors.numpy.save_file(weights, f"{directory}/model.safetensors", {"format": "pt"})
        config.save_pretrained(directory)
        model, found = cls.from_pretrained(directory, output_loading_info=True, **options)
    faults = {name: keys for name, keys in found.items() if keys}
    if faults:
        raise ValueError(f"{cls.__name__}: {faults}")
    return model


def linear(projection: Mapping[str, np.ndarray]) -> torch.nn.Linear:
    """Returns a linear map of our weights."""
    kernel = projection["kernel"]
    made = torch.nn.Linear(*kernel.shape)
    made.load_state_dict(
        {"weight": torch.tensor(kernel.T.copy()), "bias": torch.tensor(projection["bias"])}
    )
    return made


class Irra(torch.nn.Module):
    """CLIP with IRRA's classifier of identities and its encoder of masked words and images."""

    def __init__(self, spec: DualEncoderSpec, params: Mapping[str, Any]):
        super().__init__()
        self.spec = spec.image
        image, text = spec.image, spec.text
        towers = ("image_encoder", "text_encoder", "image_head", "text_head")
        weights = names.from_flax({name: params[name] for name in towers}, names.CLIP)
        weights["logit_scale"] = np.zeros((), np.float32)
        # CLIP of Hugging Face is square: another one takes the place of how images enter.
        place = "vision_model.embeddings.position_embedding.weight"
        positions = torch.tensor(weights[place])
        weights[place] = np.zeros((2, image.hidden_size), np.float32)
        config = CLIPConfig(
            vision_config=tower(image)
            | {"image_size": image.patch_size, "patch_size": image.patch_size},
            text_config=tower(text)
            | {
                "vocab_size": text.vocab_size,
                "max_position_embeddings": text.max_positions,
                "eos_token_id": text.end_token,
            },
            projection_dim=spec.embedding_dim,
        )
        self.clip = loaded(CLIPModel, config, weights)
        self.clip.vision_model.embeddings = Patches(self.clip.vision_model.embeddings, positions)
        self.classifier = linear(params["identity_head"])
        self.cross_modal = CrossModal(spec.cross_modal.heads, params["cross_modal"])

    def embed_image(self, pixels):
        """Returns all tokens in the common space, [B, N, D]; the first is the image's."""
        vision = self.clip.vision_model
        tokens = vision(pixel_values=pixels).last_hidden_state
        return self.clip.visual_projection(vision.post_layernorm(tokens))

    def embed_text(self, text):
        """Returns the same of texts, [B, L, D], and each one's own token, [B, D]."""
        tokens = self.clip.text_model(input_ids=text).last_hidden_state
        tokens = self.clip.text_projection(tokens)
        ends = (text == self.clip.config.text_config.eos_token_id).int().argmax(dim=1)
        return tokens, tokens[torch.arange(len(text)), ends]


def tower(spec: Any) -> dict[str, Any]:
    """Returns what the configuration of each of CLIP's encoders has."""
    return {
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.mlp_size,
        "hidden_act": spec.activation,
        "layer_norm_eps": spec.layer_norm_eps,
    }


class Patches(torch.nn.Module):
    """CLIP's embedding of images that need not be square."""

    def __init__(self, square: torch.nn.Module, positions: torch.Tensor):
        super().__init__()
        self.patch_embedding = square.patch_embedding
        self.class_embedding = square.class_embedding
        self.position_embedding = torch.nn.Parameter(positions)

    def forward(self, pixels, interpolate_pos_encoding=False):
        """Returns the tokens that enter the encoder, [B, N, W]."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        start = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([start, patches], dim=1) + self.position_embedding


class CrossModal(torch.nn.Module):
    """IRRA's: text reads image, four of CLIP's blocks, and a guess of words."""

    def __init__(self, heads: int, params: Mapping[str, Any]):
        super().__init__()
        self.text_norm = layer_norm(params["text_layer_norm"])
        self.image_norm = layer_norm(params["image_layer_norm"])
        self.read = attention(heads, params["cross_attn"])
        layers = sum(name.startswith("layers_") for name in params)
        blocks = [params[f"layers_{index}"] for index in range(layers)]
        self.norms = modules([layer_norm(p[f"layer_norm{n}"]) for p in blocks for n in (1, 2)])
        self.attentions = modules([attention(heads, p["self_attn"]) for p in blocks])
        self.up = modules([linear(p["mlp"]["fc1"]) for p in blocks])
        self.down = modules([linear(p["mlp"]["fc2"]) for p in blocks])
        self.last_norm = layer_norm(params["layer_norm"])
        head = params["mlm_head"]
        self.dense, self.head_norm = linear(head["dense"]), layer_norm(head["layer_norm"])
        self.decoder = linear({"kernel": params["decoder"].T, "bias": head["bias"]})

    def forward(self, text, image):
        """Returns the text's tokens [B, L, D] after they have read the image's."""
        image = self.image_norm(image)
        x = self.read(self.text_norm(text), image, image, need_weights=False)[0]
        for index, attend in enumerate(self.attentions):
            y = self.norms[2 * index](x)
            x = x + attend(y, y, y, need_weights=False)[0]
            y = self.up[index](self.norms[2 * index + 1](x))
            x = x + self.down[index](y * torch.sigmoid(1.702 * y))
        return self.last_norm(x)

    def guess(self, x):
        """Returns logits over the vocabulary of tokens [..., D]."""
        y = self.dense(x)
        return self.decoder(self.head_norm(y * torch.sigmoid(1.702 * y)))


def layer_norm(params: Mapping[str, np.ndarray]) -> torch.nn.LayerNorm:
    """Returns a LayerNorm of our weights."""
    made = torch.nn.LayerNorm(params["scale"].shape, eps=1e-5)
    weight, bias = torch.tensor(params["scale"]), torch.tensor(params["bias"])
    made.load_state_dict({"weight": weight, "bias": bias})
    return made


def attention(heads: int, params: Mapping[str, Any]) -> torch.nn.MultiheadAttention:
    """Returns attention of our weights."""
    made = torch.nn.MultiheadAttention(len(params["out_proj"]["bias"]), heads, batch_first=True)
    parts = [linear(params[name]) for name in ("q_proj", "k_proj", "v_proj")]
    out = linear(params["out_proj"])
    made.load_state_dict(
        {
            "in_proj_weight": torch.cat([part.weight.detach() for part in parts]),
            "in_proj_bias": torch.cat([part.bias.detach() for part in parts]),
            "out_proj.weight": out.weight.detach(),
            "out_proj.bias": out.bias.detach(),
        }
    )
    return made


def modules(made: list[torch.nn.Module]) -> torch.nn.ModuleList:
    """Returns modules as one, which has their parameters."""
    return torch.nn.ModuleList(made)


def contrastive(image, text):
    """Returns the paper's Eq. 1: symmetric InfoNCE on bare cosines."""
    cosines = F.normalize(image) @ F.normalize(text).T
    labels = torch.arange(len(cosines))
    return (F.cross_entropy(cosines, labels) + F.cross_entropy(cosines.T, labels)) / 2


def prepared(batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns a batch as torch's steps read it."""
    labels = np.full(batch["text"].shape, IGNORED, np.int64)
    np.put_along_axis(
        labels,
        batch["mlm_positions"],
        np.where(batch["mlm_mask"], batch["mlm_labels"], IGNORED),
        axis=1,
    )
    return {
        "image": torch.from_numpy(batch["image"]),
        "text": torch.from_numpy(batch["text"]).long(),
        "masked_text": torch.from_numpy(batch["masked_text"]).long(),
        "mask": torch.from_numpy(batch["text_mask"]),
        "labels": torch.from_numpy(labels),
        "identity": torch.from_numpy(batch["identity"]).long(),
    }


def normalised(images, spec: VisionSpec):
    """Returns uint8 [B, H, W, 3] as float [B, 3, H, W] of the encoder's mean and deviation."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def released_loss(model: UniPT, batch: Mapping[str, Any]):
    """Does what UniPT's released step does: two passes of both encoders, MLM at every position.

    The second pass's image features enter no loss, so nothing is propagated back through them.
    """
    pixels, mask = normalised(batch["image"], model.spec), batch["mask"]
    text = model.embed_text(model.read(batch["text"], mask), mask)
    loss = contrastive(model.embed_image(pixels), text)
    model.embed_image(pixels)
    logits = model.text.cls(model.read(batch["masked_text"], mask))
    return loss + F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


def lean_loss(model: UniPT, batch: Mapping[str, Any]):
    """Does the same with as little work as ours: one pass each, MLM at the masked positions."""
    mask = batch["mask"]
    both = torch.cat([batch["text"], batch["masked_text"]])
    clean, masked = model.read(both, mask.repeat(2, 1)).chunk(2)
    loss = contrastive(
        model.embed_image(normalised(batch["image"], model.spec)), model.embed_text(clean, mask)
    )
    chosen = batch["labels"] != IGNORED
    return loss + F.cross_entropy(model.text.cls(masked[chosen]), batch["labels"][chosen])


def irra_loss(model: Irra, batch: Mapping[str, Any], *, everywhere: bool):
    """Computes IRRA's losses: SDM, half of both identity losses, and MLM.

    The words are guessed at the masked positions alone or, as in IRRA's code, `everywhere`.
    """
    image = model.embed_image(normalised(batch["image"], model.spec))
    tokens, text = model.embed_text(batch["masked_text"])
    who = batch["identity"]
    loss = sdm(image[:, 0], text, who)
    for side in (image[:, 0], text):
        loss = loss + F.cross_entropy(model.classifier(side), who) / 2
    read = model.cross_modal(tokens, image)
    if everywhere:
        logits, labels = model.cross_modal.guess(read).flatten(0, 1), batch["labels"].flatten()
    else:
        chosen = batch["labels"] != IGNORED
        logits, labels = model.cross_modal.guess(read[chosen]), batch["labels"][chosen]
    return loss + F.cross_entropy(logits, labels)


def sdm(image, text, who, temperature=0.02, epsilon=1e-8):
    """Returns IRRA's similarity distribution matching."""
    cosines = F.normalize(image) @ F.normalize(text).T / temperature
    same = (who[:, None] == who[None]).float()
    wanted = torch.log(same / same.sum(dim=1, keepdim=True) + epsilon)
    total = 0.0
    for logits in (cosines, cosines.T):
        found = F.log_softmax(logits, dim=1)
        total = total + (found.exp() * (found - wanted)).sum(dim=1).mean()
    return total


def training_step(model: torch.nn.Module, loss, optimizer: torch.optim.Optimizer):
    """Returns a function that takes one optimizer step on a batch and returns the loss."""

    def step(batch: Mapping[str, Any]) -> float:
        optimizer.zero_grad(set_to_none=True)
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        return value.item()

    return step


def adamw(model: torch.nn.Module, learning_rate: float, weight_decay: float):
    """Returns AdamW in torch's fastest form, without decay on biases and LayerNorms."""
    shrunk = [p for p in model.parameters() if p.ndim > 1]
    kept = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": shrunk, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
