"""A pre-training step of the paper's model, float32, against two in PyTorch on the same weights.

"released" does what UniPT's released step does: 100 tokens, the image encoder twice, the MLM head
at every position. "lean" does as little as ours, at the same text length. Ours reads the captions
of one bucket. All take optimizer steps on the same batch, in turn; before that, without dropout,
all must compute the same loss.

Usage: python benchmarks/pretraining_step.py [--batch_size=8] [--tokens=48] [--rounds=5]
    [--image=vit_b16] [--text=bert_base]
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import compare
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_peers
from full_size_step import VOCABULARY, random_batch
from jax.sharding import Mesh

from unipt_jax.config import load
from unipt_jax.core.sharding import make_mesh, put_batch
from unipt_jax.training import loop, objective, run, state

LONGEST = 100  # Tokens of the released code, whatever the captions are.


def batch_of(config, tokens: int) -> dict[str, np.ndarray]:
    """Returns a batch of noise whose captions have `tokens` tokens, 15 % of them masked."""
    batch = random_batch(config.batch_size, config.image.height, config.image.width, tokens)
    count = round(0.15 * (tokens - 2))
    return batch | {name: batch[name][:, :count] for name in batch if name.startswith("mlm_")}


def padded(batch: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """Returns the batch with its texts padded to `length`."""
    more = ((0, 0), (0, length - batch["text"].shape[1]))
    texts = ("text", "masked_text", "text_mask")
    return batch | {name: np.pad(batch[name], more) for name in texts}


def begun(config, model, batch) -> tuple[Any, Callable[[Any], None], Mesh]:
    """Returns a model's first weights, its step on a placed batch, and the mesh, of one device."""
    transform, train_step = run.build_step(config, model, steps=1000)
    mesh = make_mesh(devices=jax.devices()[:1])
    train_state, shardings = state.create(model, batch, transform, seed=0, mesh=mesh)
    weights = jax.device_get(train_state.params)
    compiled = loop.jit_step(train_step, shardings, mesh)

    def step(batch):
        nonlocal train_state
        with jax.set_mesh(mesh):
            train_state, metrics = compiled(train_state, batch)
        jax.block_until_ready(metrics)

    return weights, step, mesh


def our_loss(aim: objective.Objective, params, batch) -> float:
    """Returns what is optimised, of a batch."""
    key = jax.random.key(0)
    loss = jax.jit(lambda params, batch: aim.loss(aim.features(params, batch, key), batch, key)[0])
    return float(loss(params, jax.tree.map(jnp.asarray, batch)))


def measure(
    batch_size: int, tokens: int, rounds: int, image: str, text: str
) -> Sequence[compare.Row]:
    """Compares losses, then times the steps in turn."""
    fields = {"data": "none", "batch_size": batch_size, "model.image": image, "model.text": text}
    config = load.load("configs/pretrain.py", fields)
    spec = run.build_spec(config, vocab_size=VOCABULARY, end_token=0, identities=0)
    model = run.build_model(config, spec)
    batch = batch_of(config, tokens)
    weights, ours, mesh = begun(config, model, batch)
    peer = torch_peers.UniPT(spec, weights)
    require_same_loss(config, spec, weights, batch, peer)
    del weights

    lengths = (tokens, LONGEST)
    batches = [put_batch(batch_of(config, length), mesh) for length in lengths]
    how = config.optimizer
    # Both train one model: memory has no room for two.
    adamw = torch_peers.adamw(peer, how.learning_rate, how.weight_decay)
    released, lean = (
        torch_peers.training_step(peer.train(), loss, adamw)
        for loss in (torch_peers.released_loss, torch_peers.lean_loss)
    )
    long = torch_peers.prepared(padded(batch, LONGEST))
    equal = [torch_peers.prepared(batch_of(config, length)) for length in lengths]
    times = compare.in_turn(
        [
            lambda: ours(batches[0]),
            lambda: released(long),
            lambda: lean(equal[0]),
            lambda: ours(batches[1]),
            lambda: lean(equal[1]),
        ],
        rounds,
    )
    short, way, lean_short, full, lean_full = times.T
    step = f"pre-training step, {batch_size} pairs"
    return [
        compare.row(f"{step} of {tokens} tokens, against the released way", short, way, 1.5),
        compare.row(f"{step} of {tokens} tokens, against a lean step", short, lean_short, 1.0),
        compare.row(f"{step} of {LONGEST} tokens, against a lean step", full, lean_full, 1.0),
    ]


def require_same_loss(config, spec, params, batch, peer: torch_peers.UniPT) -> None:
    """Checks, without dropout, that all three compute the same loss.

    Raises:
        ValueError: they do not.
    """
    text = dataclasses.replace(spec.text, dropout=0.0)
    still = run.build_model(config, dataclasses.replace(spec, text=text))
    found = [our_loss(objective.weighted(still, config.loss), params, batch)]
    peer.eval()
    with torch.inference_mode():
        found.append(torch_peers.lean_loss(peer, torch_peers.prepared(batch)).item())
        long = torch_peers.prepared(padded(batch, LONGEST))
        found.append(torch_peers.released_loss(peer, long).item())
    if not np.allclose(found, found[0], rtol=1e-4):
        raise ValueError(f"losses differ: ours {found[0]}, lean {found[1]}, released {found[2]}")


if __name__ == "__main__":
    compare.main(
        __doc__, measure, batch_size=8, tokens=48, rounds=5, image="vit_b16", text="bert_base"
    )
