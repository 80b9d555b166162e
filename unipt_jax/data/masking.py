"""Masking for BERT's masked language model (Devlin et al., 2019; paper, section 3.3)."""

import itertools

import numpy as np
from jaxtyping import Bool, Int

MASKED, RANDOM = 0.8, 0.1  # the rest, 0.1, keeps its token


def maximum_predictions(length: int, probability: float) -> int:
    """Returns the most tokens `mask_tokens` chooses of `length` tokens with two special ones."""
    return max(1, _count(length - 2, probability))


def mask_tokens(
    tokens: Int[np.ndarray, "L"],
    *,
    is_special: Bool[np.ndarray, "V"],
    is_continuation: Bool[np.ndarray, "V"] | None,
    mask: int | None,
    probability: float,
    whole_word: bool,
    rng: np.random.Generator,
) -> tuple[Int[np.ndarray, "L"], Int[np.ndarray, "M"]]:
    """Chooses tokens to predict and hides them; `tokens` itself is left as it is.

    Of the tokens that are not special, `round(probability * n)` are chosen, at least one unless
    the probability is 0. Of the chosen, 80 % become `mask`, 10 % a random ordinary token, 10 %
    stay. With `whole_word` all pieces of a word are chosen together, and a word that would exceed
    the number is passed over (none may be left then). `is_continuation` may be None without
    `whole_word`, and `mask` where the probability is 0.

    Returns:
        The masked copy and the chosen positions, ascending. The labels are `tokens[positions]`.
    """
    candidates = np.flatnonzero(~is_special[tokens])
    wanted = _count(len(candidates), probability)
    if not wanted:
        return tokens.copy(), np.zeros(0, np.int32)
    if whole_word:
        starts = np.flatnonzero(~is_continuation[tokens[candidates]])
        words = list(itertools.pairwise([0, *starts[1:].tolist(), len(candidates)]))
        chosen: list[int] = []
        for index in rng.permutation(len(words)).tolist():
            start, end = words[index]
            if len(chosen) + end - start <= wanted:
                chosen.extend(range(start, end))
    else:
        chosen = rng.permutation(len(candidates))[:wanted]
    positions = np.sort(candidates[chosen]).astype(np.int32)
    masked = tokens.copy()
    fate = rng.random(len(positions))
    # The n-th ordinary token lies as far behind n as there are special ones before it.
    special = np.flatnonzero(is_special)
    drawn = rng.integers(len(is_special) - len(special), size=len(positions))
    random_tokens = drawn + np.searchsorted(special - np.arange(len(special)), drawn, "right")
    masked[positions[fate < MASKED]] = mask
    randomised = (fate >= MASKED) & (fate < MASKED + RANDOM)
    masked[positions[randomised]] = random_tokens[randomised]
    return masked, positions


def _count(candidates: int, probability: float) -> int:
    if probability == 0 or candidates <= 0:
        return 0
    return min(candidates, max(1, int(probability * candidates + 0.5)))
