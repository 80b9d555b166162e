"""Noise on captions, against learning them by heart; a text is never emptied nor made longer."""

import numpy as np
from jaxtyping import Bool, Int

MASKED, REPLACED = 0.6, 0.2  # the rest, 0.2, is deleted


def corrupt_tokens(
    tokens: Int[np.ndarray, "L"],
    *,
    is_special: Bool[np.ndarray, "V"],
    mask: int,
    probability: float,
    rng: np.random.Generator,
) -> Int[np.ndarray, "K"]:
    """Returns K <= L tokens, some of them hidden, wrong or gone; `tokens` is left as it is.

    Each token that is not special is chosen with the given probability. Of the chosen, 60 % become
    `mask`, 20 % a random ordinary token, and 20 % are deleted (RDE, CVPR 2024, whose probability
    is 0.2). If that would delete every ordinary token, a random one of them stays.
    """
    ordinary = ~is_special[tokens]
    chosen = ordinary & (rng.random(len(tokens)) < probability)
    fate = rng.random(len(tokens))
    replaced = chosen & (fate >= MASKED) & (fate < MASKED + REPLACED)
    deleted = chosen & (fate >= MASKED + REPLACED)
    noisy = tokens.copy()
    noisy[chosen & (fate < MASKED)] = mask
    noisy[replaced] = rng.choice(np.flatnonzero(~is_special), size=replaced.sum())
    if ordinary.any() and deleted[ordinary].all():
        deleted[rng.choice(np.flatnonzero(ordinary))] = False
    return noisy[~deleted]


def delete_words(caption: str, probability: float, rng: np.random.Generator) -> str:
    """Deletes each word with the given probability; if all would go, a random one stays.

    Of the four operations of EDA (Wei and Zou, EMNLP 2019) it is the one that TBPS-CLIP (AAAI
    2024; released code) applies, with probability 0.05. Words are what white space separates.
    """
    words = caption.split()
    stays = rng.random(len(words)) >= probability
    if words and not stays.any():
        stays[rng.integers(len(words))] = True
    return " ".join(word for word, kept in zip(words, stays, strict=True) if kept)
