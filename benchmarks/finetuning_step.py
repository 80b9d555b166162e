"""A fine-tuning step of CLIP B/16 by IRRA's losses, float32, against the same in PyTorch.

The lean peer guesses words at the masked positions alone, at our text length; "IRRA's way" reads
77 tokens and guesses a word at each of them, as its code does. All take optimizer steps on the same
batch, in turn; before that all must compute the same loss from the same weights.

Usage: python benchmarks/finetuning_step.py [--batch_size=8] [--tokens=48] [--rounds=5]
    [--identities=11003] [--tower=clip_b16]
"""

import functools
from collections.abc import Sequence

import compare
import numpy as np
import torch
import torch_peers
from pretraining_step import batch_of, begun, our_loss, padded

from unipt_jax.config import load
from unipt_jax.core.sharding import put_batch
from unipt_jax.training import objective, run

VOCABULARY, END, LONGEST = 49408, 49407, 77  # CLIP's


def texts_of(config, tokens: int) -> dict[str, np.ndarray]:
    """Returns a batch of noise whose captions end once, as CLIP's do."""
    batch = batch_of(config, tokens)
    for name in ("text", "masked_text"):
        batch[name] = batch[name] % END
        batch[name][:, -1] = END
    return batch


def measure(
    batch_size: int, tokens: int, rounds: int, identities: int, tower: str
) -> Sequence[compare.Row]:
    """Compares losses, then times the steps in turn."""
    fields = {"data": "none", "batch_size": batch_size, "model.image": tower, "model.text": tower}
    config = load.load("configs/finetune.py:cuhk_pedes,recipe=irra", fields)
    spec = run.build_spec(config, vocab_size=VOCABULARY, end_token=END, identities=identities)
    model = run.build_model(config, spec)
    batch = texts_of(config, tokens)
    weights, ours, mesh = begun(config, model, batch)
    peers = [torch_peers.Irra(spec, weights) for _ in range(2)]
    lean, way = (
        functools.partial(torch_peers.irra_loss, everywhere=value) for value in (False, True)
    )
    require_same_loss(config, model, weights, batch, peers[0], (lean, way))

    placed = put_batch(batch, mesh)
    steps = [
        torch_peers.training_step(
            peer.train(), loss, torch.optim.Adam(peer.parameters(), lr=1e-5, eps=1e-3, fused=True)
        )
        for peer, loss in zip(peers, (lean, way), strict=True)
    ]
    batches = [torch_peers.prepared(it) for it in (batch, padded(batch, LONGEST))]
    times = compare.in_turn(
        [lambda: ours(placed), lambda: steps[0](batches[0]), lambda: steps[1](batches[1])], rounds
    )
    mine, equal, long = times.T
    step = f"fine-tuning step by IRRA's losses, {batch_size} pairs of {tokens} tokens"
    return [
        compare.row(f"{step}, against a lean step", mine, equal, 0.95),
        compare.row(f"{step}, against IRRA's way", mine, long, None),
    ]


def require_same_loss(config, model, params, batch, peer, losses) -> None:
    """Checks that ours and the peer's compute the same loss.

    Raises:
        ValueError: they do not.
    """
    aim = objective.weighted(model, config.loss, reads_masked=True)
    found = [our_loss(aim, params, batch)]
    with torch.inference_mode():
        found += [it(peer.eval(), torch_peers.prepared(batch)).item() for it in losses]
    if not np.allclose(found, found[0], rtol=1e-4):
        raise ValueError(f"losses differ: ours {found[0]}, the peer's {found[1:]}")


if __name__ == "__main__":
    compare.main(
        __doc__, measure, batch_size=8, tokens=48, rounds=5, identities=11_003, tower="clip_b16"
    )
